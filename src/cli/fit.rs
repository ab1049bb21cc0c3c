//! `winnowd fit`: target and raw files become a model file.

use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::UsageError;
use super::progress::Progress;
use crate::features::{Featuriser, Scratch};
use crate::record::Decoder;
use crate::score::{Model, ModelId, NgramCounts, Provenance, kl_divergence};
use crate::source::files::{FileError, for_each_document};

#[derive(clap::Args)]
pub struct FitArguments {
    /// Documents like those that are wanted
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    target: Vec<PathBuf>,
    /// Documents as they come: a sample of the stream
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    raw: Vec<PathBuf>,
    /// Field of the JSON objects that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_field: String,
    /// How texts become n-gram buckets; `reference` equals the published DSIR package
    #[arg(long, value_enum, default_value_t = FeaturiserName::Reference)]
    featuriser: FeaturiserName,
    /// Longest n-gram, in tokens
    #[arg(long, value_name = "N", default_value_t = 2)]
    ngrams: u8,
    /// Number of hash buckets
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    buckets: u32,
    /// Where to write the model
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FeaturiserName {
    Reference,
}

/// Counts of one side of a model.
pub struct Side {
    pub counts: NgramCounts,
    pub documents: u64,
}

pub fn fit(arguments: &FitArguments) -> anyhow::Result<()> {
    let FeaturiserName::Reference = arguments.featuriser;
    let featuriser = Featuriser::Reference { max_n: arguments.ngrams, buckets: arguments.buckets };
    let featuriser = featuriser.validated().map_err(UsageError)?;
    let mut decoder = Decoder::for_files();
    decoder.fields.text.clone_from(&arguments.text_field);
    let target = count_files("target", &arguments.target, &decoder, &featuriser)?;
    let raw = count_files("raw", &arguments.raw, &decoder, &featuriser)?;
    let names = |paths: &[PathBuf]| paths.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let provenance = Provenance {
        target_documents: target.documents,
        raw_documents: raw.documents,
        target_inputs: names(&arguments.target),
        raw_inputs: names(&arguments.raw),
        made_by: concat!("winnowd ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let divergence = kl_divergence(&target.counts, &raw.counts);
    let model = Model::new(featuriser, target.counts, raw.counts, provenance).map_err(|e| UsageError(e.to_string()))?;
    let bytes = model.to_bytes();
    write_atomically(&arguments.out, &bytes)
        .map_err(|e| UsageError(format!("`{}` cannot be written: {e}", arguments.out.display())))?;
    println!("{}", arguments.out.display());
    println!("  id      {}", ModelId::of(&bytes));
    println!("  target  {} documents, {} n-grams", target.documents, model.target.total());
    println!("  raw     {} documents, {} n-grams", raw.documents, model.raw.total());
    println!("  KL(target, raw) = {divergence:.3} nats");
    Ok(())
}

/// Counts the n-grams of files, several at a time.
fn count_files(what: &str, paths: &[PathBuf], decoder: &Decoder, featuriser: &Featuriser) -> Result<Side, FileError> {
    let progress = Progress::new(what);
    let sides: Result<Vec<Side>, FileError> = paths
        .par_iter()
        .map(|path| {
            let mut side = Side { counts: NgramCounts::zero(featuriser.buckets()), documents: 0 };
            let mut scratch = Scratch::default();
            for_each_document(path, decoder, |document, bytes| {
                side.counts.add_text(&document.text, featuriser, &mut scratch);
                side.documents += 1;
                progress.add(bytes);
            })?;
            Ok(side)
        })
        .collect();
    let mut total = Side { counts: NgramCounts::zero(featuriser.buckets()), documents: 0 };
    for side in sides? {
        total.counts.merge(&side.counts);
        total.documents += side.documents;
    }
    progress.finish();
    Ok(total)
}

/// Readers see the old file or the whole new one.
fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
