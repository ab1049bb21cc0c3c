//! Embeddings that come with documents: a list of numbers, or a string with their bytes.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

/// Whoever writes embeddings may leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Squared distances of as many numbers as this stay finite.
const MAX_DIMENSIONS: usize = u16::MAX as usize;
const MAX_NUMBER: f32 = 1e15;

/// Which field has an embedding, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingField {
    pub field: String,
    /// What a string in it is the Base64 of.
    pub base64: Base64Floats,
}

/// Numbers one after the other, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base64Floats {
    #[default]
    F16,
    F32,
}

/// The embedding that a JSON value is; `None` of anything else: other types, no or more than 65,535 numbers, some that are not finite or
/// beyond ±10¹⁵.
pub fn embedding(json: &str, base64: Base64Floats) -> Option<Vec<f32>> {
    match json.starts_with('"') {
        true => embedding_of_base64(&serde_json::from_str::<String>(json).ok()?, base64),
        false => serde_json::from_str(json).ok().filter(|numbers: &Vec<f32>| is_embedding(numbers)),
    }
}

/// The same of a string.
pub fn embedding_of_base64(text: &str, base64: Base64Floats) -> Option<Vec<f32>> {
    floats(&BASE64.decode(text).ok()?, base64).filter(|numbers| is_embedding(numbers))
}

/// Whether they are as many and as large as those of an embedding may be.
pub fn is_embedding(numbers: &[f32]) -> bool {
    (1..=MAX_DIMENSIONS).contains(&numbers.len()) && numbers.iter().all(|x| x.abs() <= MAX_NUMBER)
}

fn floats(bytes: &[u8], floats: Base64Floats) -> Option<Vec<f32>> {
    match floats {
        Base64Floats::F16 => {
            let (numbers, rest) = bytes.as_chunks::<2>();
            rest.is_empty().then(|| numbers.iter().map(|x| half(u16::from_le_bytes(*x))).collect())
        }
        Base64Floats::F32 => {
            let (numbers, rest) = bytes.as_chunks::<4>();
            rest.is_empty().then(|| numbers.iter().map(|x| f32::from_le_bytes(*x)).collect())
        }
    }
}

/// A number of 16 bits, exactly.
fn half(bits: u16) -> f32 {
    /// 2¹¹²: the difference of the exponents' biases.
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7FFF));
    if magnitude >= 0x7C00 {
        return f32::NAN;
    }
    // Those without a leading one are so here as well, until they are scaled.
    f32::from_bits(sign | (f32::from_bits(magnitude << 13) * SCALE).to_bits())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the definition of binary16.
    fn by_definition(bits: u16) -> f64 {
        let (exponent, fraction) = (i32::from(bits >> 10 & 0x1F), f64::from(bits & 0x3FF) / 1024.0);
        let magnitude = match exponent {
            0 => fraction * (-14f64).exp2(),
            _ => (1.0 + fraction) * f64::from(exponent - 15).exp2(),
        };
        if bits & 0x8000 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_number_of_16_bits_is_what_its_definition_says() {
        for bits in 0..=u16::MAX {
            match bits & 0x7C00 {
                0x7C00 => assert!(half(bits).is_nan()),
                _ => assert_eq!(f64::from(half(bits)), by_definition(bits), "{bits:#x}"),
            }
        }
    }

    proptest! {
        #[test]
        fn lists_and_bytes_say_the_same(bits in proptest::collection::vec(0u16..0x7C00, 1..40), is_padded: bool) {
            let numbers: Vec<f32> = bits.iter().map(|x| half(*x)).collect();
            let bytes = |bytes: Vec<u8>| {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                format!("\"{}\"", if is_padded { &text } else { text.trim_end_matches('=') })
            };
            let of_halves = bytes(bits.iter().flat_map(|x| x.to_le_bytes()).collect());
            let of_floats = bytes(numbers.iter().flat_map(|x| x.to_le_bytes()).collect());
            let list = serde_json::to_string(&numbers).unwrap();
            for (json, floats) in
                [(&list, Base64Floats::F16), (&of_halves, Base64Floats::F16), (&of_floats, Base64Floats::F32)]
            {
                prop_assert_eq!(embedding(json, floats), Some(numbers.clone()));
            }
        }
    }

    #[test]
    fn nothing_else_is_one() {
        for json in [
            "null",
            "1",
            "[]",
            "\"\"",
            "{}",
            "[1,null]",
            "[1,\"2\"]",
            "[1e39]",
            "[1e16]",
            "\"AA\"",
            "\"?\"",
            "\"AHw=\"",
            "[1",
            "true",
        ] {
            assert_eq!(embedding(json, Base64Floats::F16), None, "{json}");
        }
        assert_eq!(embedding("\"AADA\\/w==\"", Base64Floats::F16), None, "not a number");
        assert_eq!(embedding("[1,-2.5]", Base64Floats::F16), Some(vec![1.0, -2.5]));
        assert_eq!(embedding("\"ADwAwQ==\"", Base64Floats::F16), Some(vec![1.0, -2.5]));
    }
}
