//! An exact share: `0.29` of 100 is 29, which binary floating point gets wrong.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A decimal share above 0 and at most 1, kept as a ratio of integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fraction {
    numerator: u64,
    denominator: u64,
}

impl Fraction {
    /// Whole part of `fraction * n`, rounded up with probability equal to the remainder: `uniform` in (0, 1) decides.
    ///
    /// So windows too small for a whole document still give their share on average, and a window for which
    /// `fraction * n` is whole gives exactly that many.
    pub fn of(self, n: u64, uniform: f64) -> u64 {
        let (whole, remainder) = self.whole_and_remainder(n);
        whole + u64::from(uniform * (self.denominator as f64) < remainder as f64)
    }

    /// What [`Fraction::of`] gives at least, and the probability that it gives one more.
    pub fn whole_and_chance(self, n: u64) -> (u64, f64) {
        let (whole, remainder) = self.whole_and_remainder(n);
        (whole, remainder as f64 / self.denominator as f64)
    }

    fn whole_and_remainder(self, n: u64) -> (u64, u64) {
        let product = u128::from(n) * u128::from(self.numerator);
        let denominator = u128::from(self.denominator);
        ((product / denominator) as u64, (product % denominator) as u64)
    }

    /// The most that [`Fraction::of`] can give for up to `n`.
    pub fn at_most(self, n: u64) -> u64 {
        (u128::from(n) * u128::from(self.numerator)).div_ceil(u128::from(self.denominator)) as u64
    }

    /// Whether a number of 64 bits is below this share of all of them.
    pub fn contains(self, number: u64) -> bool {
        u128::from(number) * u128::from(self.denominator) < u128::from(self.numerator) << 64
    }

    /// What is left beside it; `None` beside all.
    pub fn rest(self) -> Option<Fraction> {
        let numerator = self.denominator - self.numerator;
        (numerator > 0).then_some(Fraction { numerator, denominator: self.denominator })
    }

    pub fn is_above(self, other: Fraction) -> bool {
        let product = |numerator: u64, denominator: u64| u128::from(numerator) * u128::from(denominator);
        product(self.numerator, other.denominator) > product(other.numerator, self.denominator)
    }

    pub fn as_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }
}

impl FromStr for Fraction {
    type Err = String;

    /// Reads a plain decimal such as `0.1` or `1`, with up to 12 digits after the point.
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "expected a decimal above 0 and at most 1, such as 0.1".to_owned();
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        if decimals.len() > 12 || whole.len() > 1 || !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(error());
        }
        let decimals = decimals.trim_end_matches('0');
        let denominator = 10u64.pow(decimals.len() as u32);
        let numerator = format!("{whole}{decimals}").parse::<u64>().map_err(|_| error())?;
        if numerator == 0 || numerator > denominator {
            return Err(error());
        }
        Ok(Fraction { numerator, denominator })
    }
}

impl TryFrom<String> for Fraction {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Fraction> for String {
    fn from(fraction: Fraction) -> String {
        fraction.to_string()
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_f64())
    }
}
