//! `winnowd fit`: target and raw files become a model file.

mod count;
mod ngrams;

use std::path::PathBuf;

use super::UsageError;
use super::files::{FeaturiserArguments, Files, OutFile, ReadArguments};
use crate::features::Featuriser;
use crate::score::{Model, ModelId, Target};
use crate::source::files::Input;

pub use count::{Sampling, Side};

#[derive(clap::Args)]
pub struct FitArguments {
    #[command(flatten)]
    targets: TargetArguments,
    /// Documents as they come: a sample of the stream
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    raw: Vec<PathBuf>,
    #[command(flatten)]
    sample: SampleArguments,
    /// Where to write the model
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    featuriser: FeaturiserArguments,
    /// Most frequent uni- and bigrams to keep in the model for people, of a uniform sample of 2,000 documents a side
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Model")]
    keep_ngrams: usize,
    #[command(flatten)]
    read: ReadArguments,
}

#[derive(clap::Args)]
pub struct TargetArguments {
    /// Documents like those that are wanted: JSONL and CSV (plain, .gz, .zst) or Parquet; folders, patterns, s3://BUCKET/PREFIX. Files given the same
    /// NAME are one target; without names all are
    #[arg(long, value_name = "[NAME=]PATH", num_args = 1..)]
    pub target: Vec<String>,
    /// Share of the selection that is meant for a named target [default: equal shares]
    #[arg(long, value_name = "NAME=SHARE", num_args = 1..)]
    proportion: Vec<String>,
}

#[derive(clap::Args)]
pub struct SampleArguments {
    /// Fit the raw side on so many documents, drawn uniformly from all files (which are read twice)
    #[arg(long, value_name = "N", conflicts_with = "raw_fraction", help_heading = "Model")]
    raw_sample: Option<u64>,
    /// Fit the raw side on this share of the documents, drawn uniformly from all files
    #[arg(long, value_name = "SHARE", help_heading = "Model")]
    raw_fraction: Option<f64>,
    /// Seed of the sample
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    sample_seed: u64,
}

impl SampleArguments {
    pub fn checked(&self) -> Result<Sampling, UsageError> {
        match (self.raw_sample, self.raw_fraction) {
            (Some(0), _) => Err(UsageError("--raw-sample 0: must be at least 1".to_owned())),
            (Some(n), _) => Ok(Sampling::Count { n, seed: self.sample_seed }),
            (_, Some(share)) if !(share > 0.0 && share <= 1.0) => {
                Err(UsageError(format!("--raw-fraction {share}: must be above 0 and at most 1")))
            }
            (_, Some(share)) if share < 1.0 => Ok(Sampling::Share { share, seed: self.sample_seed }),
            _ => Ok(Sampling::All),
        }
    }
}

/// A target before it is counted.
pub struct TargetFiles {
    pub name: String,
    pub proportion: f64,
    pub inputs: Vec<Input>,
}

impl TargetArguments {
    /// Every target with its share and its files, in the order in which they were first named.
    pub fn checked(&self, read: &ReadArguments) -> anyhow::Result<Vec<TargetFiles>> {
        let mut named: Vec<(String, Vec<PathBuf>)> = Vec::new();
        for value in &self.target {
            let (name, path) = split_name(value);
            match named.iter_mut().find(|(other, _)| other == name) {
                Some((_, paths)) => paths.push(path),
                None => named.push((name.to_owned(), vec![path])),
            }
        }
        if named.len() > 1 && named.iter().any(|(name, _)| name.is_empty()) {
            let problem = "--target: some files have a name (NAME=PATH) and some have none: name all of them or none";
            return Err(UsageError(problem.to_owned()).into());
        }
        let proportions = self.proportions(&named)?;
        let target = |((name, paths), proportion): ((String, Vec<PathBuf>), f64)| {
            Ok(TargetFiles { name, proportion, inputs: read.inputs(&paths, false)? })
        };
        named.into_iter().zip(proportions).map(target).collect()
    }

    fn proportions(&self, named: &[(String, Vec<PathBuf>)]) -> Result<Vec<f64>, UsageError> {
        if self.proportion.is_empty() {
            return Ok(vec![1.0 / named.len() as f64; named.len()]);
        }
        let given = shares("--proportion", &self.proportion)?;
        if let Some((unknown, _)) = given.iter().find(|(name, _)| named.iter().all(|(n, _)| n != name)) {
            return Err(UsageError(format!("--proportion {unknown}: no --target has this name")));
        }
        let of = |(name, _): &(String, Vec<PathBuf>)| {
            let share = given.iter().find(|(n, _)| n == name).map(|(_, share)| *share);
            share.ok_or_else(|| UsageError(format!("--proportion: target `{name}` has none; give all of them or none")))
        };
        let shares = named.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        let sum: f64 = shares.iter().sum();
        if (sum - 1.0).abs() > 1e-9 {
            return Err(UsageError(format!("--proportion: the shares sum to {sum}, not to 1")));
        }
        Ok(shares)
    }
}

/// `NAME=SHARE`, each name once, each share above 0 and at most 1.
pub fn shares(option: &str, values: &[String]) -> Result<Vec<(String, f64)>, UsageError> {
    let mut shares: Vec<(String, f64)> = Vec::new();
    for value in values {
        let wrong = |what: &str| UsageError(format!("{option} {value}: {what}"));
        let (name, share) = value.rsplit_once('=').ok_or_else(|| wrong("expected NAME=SHARE"))?;
        let share = share.parse().map_err(|_| wrong("the share is no number"))?;
        if !(share > 0.0 && share <= 1.0) {
            return Err(wrong("the share must be above 0 and at most 1"));
        }
        if shares.iter().any(|(other, _)| other == name) {
            return Err(wrong("this name has a share already"));
        }
        shares.push((name.to_owned(), share));
    }
    Ok(shares)
}

/// `NAME=PATH`, where a name is made of letters, digits, `_` and `-`; everything else is a path without a name.
fn split_name(value: &str) -> (&str, PathBuf) {
    match value.split_once('=') {
        Some((name, path))
            if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') =>
        {
            (name, PathBuf::from(path))
        }
        _ => ("", PathBuf::from(value)),
    }
}

pub fn fit(arguments: &FitArguments) -> anyhow::Result<()> {
    let plan = FitPlan {
        targets: arguments.targets.checked(&arguments.read)?,
        raw: arguments.read.inputs(&arguments.raw, matches!(arguments.sample.checked()?, Sampling::Count { .. }))?,
        sampling: arguments.sample.checked()?,
        featuriser: arguments.featuriser.checked()?.0,
        smoothing: arguments.featuriser.checked()?.1,
        keep_ngrams: arguments.keep_ngrams,
    };
    if plan.targets.is_empty() {
        return Err(UsageError("--target: name at least one file".to_owned()).into());
    }
    let out = OutFile::create(&arguments.out)?;
    let files = Files::new(&arguments.read)?;
    let model = plan.fit(&files)?;
    let bytes = model.to_bytes();
    out.write(&bytes)?;
    super::print(&format!("{}\n{}", arguments.out.display(), super::model::summary(&model, &ModelId::of(&bytes))))
}

/// What a model is fitted from, and how.
pub struct FitPlan {
    pub targets: Vec<TargetFiles>,
    pub raw: Vec<Input>,
    pub sampling: Sampling,
    pub featuriser: Featuriser,
    pub smoothing: f64,
    pub keep_ngrams: usize,
}

impl FitPlan {
    /// Reads target and raw files, on all cores.
    pub fn fit(&self, files: &Files) -> anyhow::Result<Model> {
        self.fit_with_raw(files, || self.side("raw", &self.raw, self.sampling).count(files))
    }

    /// Reads the target files, and has the raw side counted by somebody else.
    pub fn fit_with_raw(
        &self,
        files: &Files,
        raw: impl FnOnce() -> anyhow::Result<crate::score::Side>,
    ) -> anyhow::Result<Model> {
        let mut targets = Vec::new();
        for TargetFiles { name, proportion, inputs } in &self.targets {
            let what = if name.is_empty() { "target".to_owned() } else { format!("target {name}") };
            let side = self.side(&what, inputs, Sampling::All).count(files)?;
            targets.push(Target { name: name.clone(), proportion: *proportion, side });
        }
        let raw = raw()?;
        let made_by = concat!("winnowd ", env!("CARGO_PKG_VERSION")).to_owned();
        let model = Model { featuriser: self.featuriser, smoothing: self.smoothing, targets, raw, made_by };
        model.validated().map_err(|e| UsageError(e.to_string()).into())
    }

    fn side<'a>(&self, what: &'a str, inputs: &'a [Input], sampling: Sampling) -> Side<'a> {
        Side { what, inputs, sampling, featuriser: self.featuriser, keep_ngrams: self.keep_ngrams }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_at_the_first_equals_sign() {
        assert_eq!(split_name("code=a.jsonl"), ("code", "a.jsonl".into()));
        assert_eq!(split_name("a-b_C9=x=y.jsonl"), ("a-b_C9", "x=y.jsonl".into()));
        assert_eq!(split_name("dir/a=b.jsonl"), ("", "dir/a=b.jsonl".into()));
        assert_eq!(split_name("=b"), ("", "=b".into()));
        assert_eq!(split_name("a.jsonl"), ("", "a.jsonl".into()));
    }

    #[test]
    fn shares_are_checked() {
        let shares = |values: &[&str]| shares("--x", &values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert_eq!(shares(&["a=0.25", "b=c=1"]).unwrap(), [("a".to_owned(), 0.25), ("b=c".to_owned(), 1.0)]);
        for wrong in [&["a"][..], &["a=x"], &["a=0"], &["a=1.1"], &["a=NaN"], &["a=0.1", "a=0.2"]] {
            assert!(shares(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
