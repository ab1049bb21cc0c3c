//! `winnowd fit`: target and raw files become a model file.

use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::UsageError;
use super::progress::Progress;
use crate::features::{Featuriser, NgramHash, Scratch};
use crate::record::Decoder;
use crate::score::{Model, ModelId, NgramCounts, Provenance, Side};
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
    Fast,
}

pub fn fit(arguments: &FitArguments) -> anyhow::Result<()> {
    let hash = match arguments.featuriser {
        FeaturiserName::Reference => NgramHash::Reference,
        FeaturiserName::Fast => NgramHash::Fast,
    };
    let featuriser = Featuriser { hash, max_n: arguments.ngrams, buckets: arguments.buckets };
    let featuriser = featuriser.validated().map_err(UsageError)?;
    let mut decoder = Decoder::for_files();
    decoder.fields.text.clone_from(&arguments.text_field);
    let target = count_files("target", &arguments.target, &decoder, &featuriser)?;
    let raw = count_files("raw", &arguments.raw, &decoder, &featuriser)?;
    let model = Model::of_one_target(featuriser, target, raw).map_err(|e| UsageError(e.to_string()))?;
    let divergence = model.target_distribution().divergence_from(&model.raw.counts);
    let bytes = model.to_bytes();
    write_atomically(&arguments.out, &bytes)
        .map_err(|e| UsageError(format!("`{}` cannot be written: {e}", arguments.out.display())))?;
    println!("{}", arguments.out.display());
    println!("  id      {}", ModelId::of(&bytes));
    for (what, side) in [("target", &model.targets[0].side), ("raw", &model.raw)] {
        println!("  {what:<6}  {} documents, {} n-grams", side.provenance.documents, side.counts.total());
    }
    println!("  KL(target, raw) = {divergence:.3} nats");
    Ok(())
}

/// Counts the n-grams of files, several at a time.
fn count_files(what: &str, paths: &[PathBuf], decoder: &Decoder, featuriser: &Featuriser) -> Result<Side, FileError> {
    let progress = Progress::new(what);
    let zero = || (NgramCounts::zero(featuriser.buckets as usize), 0);
    let sides: Result<Vec<_>, FileError> = paths
        .par_iter()
        .map(|path| {
            let (mut counts, mut documents) = zero();
            let mut scratch = Scratch::default();
            for_each_document(path, decoder, |document, bytes| {
                counts.add_text(&document.text, featuriser, &mut scratch);
                documents += 1;
                progress.add(bytes);
            })?;
            Ok((counts, documents))
        })
        .collect();
    let (mut counts, mut documents) = zero();
    for (file_counts, file_documents) in sides? {
        counts.merge(&file_counts);
        documents += file_documents;
    }
    progress.finish();
    let inputs = paths.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    Ok(Side { counts, provenance: Provenance { documents, inputs, top_ngrams: Vec::new() } })
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
