//! What `fit`, `score` and `select` have in common: how files are named, read and written, and Ctrl-C.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use parquet::errors::ParquetError;
use tempfile::NamedTempFile;
use tokio::signal::unix::{SignalKind, signal};

use super::{INTERRUPTED, Interrupted, UsageError};
use crate::config::{STORE_SCHEMES, Secret, is_store_option};
use crate::features::{Featuriser, NgramHash};
use crate::record::{Decoder, FieldNames};
use crate::score::Model;
use crate::source::files::{ExtraFields, Input, ReadSettings, Reader, expand, in_order};
use crate::store::StoreOptions;

#[derive(clap::Args)]
pub struct StoreArguments {
    /// A setting of the object store of s3://, gs:// and az:// inputs, such as aws_endpoint=http://minio:9000, as in sink.options;
    /// others come from the environment (AWS_ACCESS_KEY_ID, AWS_REGION, …), where secrets belong
    #[arg(long = "store-option", value_name = "KEY=VALUE", help_heading = "Reading")]
    store_option: Vec<String>,
}

impl StoreArguments {
    pub fn options(&self) -> Result<StoreOptions, UsageError> {
        let option = |given: &String| {
            let (key, value) = given.split_once('=').unwrap_or((given, ""));
            // Without the value, which may be a secret.
            if !given.contains('=') {
                return Err(UsageError(format!("--store-option {key}: expected KEY=VALUE")));
            }
            if !STORE_SCHEMES.iter().any(|scheme| is_store_option(scheme, key)) {
                return Err(UsageError(format!("--store-option {key}: is no setting of a store")));
            }
            Ok((key.to_owned(), Secret::new(value)))
        };
        self.store_option.iter().map(option).collect()
    }
}

#[derive(clap::Args)]
pub struct ReadArguments {
    /// Field or column that holds the text [default: text]
    #[arg(long, value_name = "NAME", help_heading = "Reading")]
    text_field: Option<String>,
    /// Field or column that holds the id; a document without one is called FILE/0/LINE [default: id]
    #[arg(long, value_name = "NAME", help_heading = "Reading")]
    id_field: Option<String>,
    /// Field or column that says where a document comes from [default: source]
    #[arg(long, value_name = "NAME", help_heading = "Reading")]
    source_field: Option<String>,
    /// Count and pass over lines that are no documents; without it the first one is an error
    #[arg(long, help_heading = "Reading")]
    skip_bad_lines: bool,
    /// Number of threads; the outcome does not depend on it [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Reading", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    store: StoreArguments,
}

#[derive(clap::Args)]
pub struct LossFieldArguments {
    /// Field or column that holds the loss of a proxy model, in nats
    #[arg(long, value_name = "NAME", help_heading = "Reading")]
    loss_field: Option<String>,
    /// Field or column that holds the loss of a reference model: what counts is by how much the loss is above it
    #[arg(long, value_name = "NAME", requires = "loss_field", help_heading = "Reading")]
    reference_loss_field: Option<String>,
}

impl LossFieldArguments {
    pub fn has_losses(&self) -> bool {
        self.loss_field.is_some()
    }

    pub fn has(&self, name: &str) -> bool {
        [&self.loss_field, &self.reference_loss_field].into_iter().flatten().any(|field| field == name)
    }

    /// The name of the field, if one was given.
    pub fn name(&self) -> Option<&str> {
        self.loss_field.as_deref()
    }
}

impl ReadArguments {
    /// The named files; those that are read twice must not be pipes.
    pub fn inputs(&self, paths: &[PathBuf], is_read_twice: bool) -> anyhow::Result<Vec<Input>> {
        let inputs = expand(paths, &self.store.options()?)?;
        if let Some(pipe) = inputs.iter().find(|input| is_read_twice && !input.is_regular) {
            let problem = format!("`{}` is no regular file, and it is read twice", pipe.path.display());
            return Err(UsageError(problem).into());
        }
        Ok(inputs)
    }

    /// The names that were given, and others for those that were not.
    pub fn fields_like(&self, others: &FieldNames) -> FieldNames {
        let mut fields = others.clone();
        if let Some(text) = &self.text_field {
            fields.text.clone_from(text);
        }
        fields.id = self.id_field.clone().or(fields.id);
        fields.source = self.source_field.clone().or(fields.source);
        fields
    }

    fn settings(&self) -> ReadSettings {
        // A timestamp has no column of its own in what is written: it travels along in the metadata.
        let fields = FieldNames { timestamp: None, ..self.fields_like(&Decoder::for_files().fields) };
        let threads = self
            .threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from);
        let decoder = Decoder { fields, ..Decoder::for_files() };
        ReadSettings { threads, skip_bad_lines: self.skip_bad_lines, ..ReadSettings::new(decoder) }
    }
}

#[derive(clap::Args)]
pub struct FeaturiserArguments {
    /// How texts become n-gram buckets; `reference` equals the published DSIR package, `fast` is faster
    #[arg(long, value_enum, default_value_t = FeaturiserName::Reference, help_heading = "Model")]
    featuriser: FeaturiserName,
    /// Longest n-gram, in tokens
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Model")]
    ngrams: u8,
    /// Number of hash buckets
    #[arg(long, value_name = "N", default_value_t = 10_000, help_heading = "Model")]
    buckets: u32,
    /// Added to each probability before its logarithm is taken
    #[arg(long, value_name = "X", default_value_t = crate::score::DEFAULT_SMOOTHING, help_heading = "Model")]
    smoothing: f64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FeaturiserName {
    Reference,
    Fast,
}

impl FeaturiserArguments {
    /// The featuriser and the smoothing.
    pub fn checked(&self) -> Result<(Featuriser, f64), UsageError> {
        let hash = match self.featuriser {
            FeaturiserName::Reference => NgramHash::Reference,
            FeaturiserName::Fast => NgramHash::Fast,
        };
        let featuriser = Featuriser { hash, max_n: self.ngrams, buckets: self.buckets };
        let featuriser = featuriser.validated().map_err(UsageError)?;
        if !Model::SMOOTHING.contains(&self.smoothing) {
            let (least, most) = (Model::SMOOTHING.start(), Model::SMOOTHING.end());
            return Err(UsageError(format!("--smoothing {}: must be {least:e} to {most}", self.smoothing)));
        }
        Ok((featuriser, self.smoothing))
    }
}

/// Files that are read with the same settings, until somebody presses Ctrl-C.
pub struct Files {
    pub settings: ReadSettings,
    stop: &'static AtomicBool,
}

impl Files {
    pub fn new(arguments: &ReadArguments) -> anyhow::Result<Self> {
        Ok(Files { settings: arguments.settings(), stop: stop_on_signal()? })
    }

    /// With one thread, and nobody interrupts it.
    #[cfg(test)]
    pub fn of_one_thread() -> Self {
        static STOP: AtomicBool = AtomicBool::new(false);
        Files { settings: ReadSettings::new(Decoder::for_files()), stop: &STOP }
    }

    /// The same, but that losses are read as well, where they are named.
    pub fn with_losses(&self, losses: &LossFieldArguments) -> Self {
        let mut settings = self.settings.clone();
        settings.decoder.fields.loss = losses.loss_field.clone();
        settings.decoder.fields.reference_loss = losses.reference_loss_field.clone();
        Files { settings, stop: self.stop }
    }

    /// The same, but that scans give these fields, too.
    pub fn with_extra(&self, extra: ExtraFields) -> Self {
        Files { settings: ReadSettings { extra, ..self.settings.clone() }, stop: self.stop }
    }

    pub fn reader<'a>(&'a self, inputs: &'a [Input]) -> Reader<'a> {
        Reader { inputs, settings: &self.settings, stop: self.stop }
    }

    pub fn threads(&self) -> usize {
        self.settings.threads
    }

    /// One of `make` for each thread.
    pub fn states<S>(&self, make: impl Fn() -> S) -> Vec<S> {
        (0..self.settings.threads).map(|_| make()).collect()
    }

    /// Does pieces of work side by side, one thread for each state, and delivers what comes of them in order.
    pub fn in_order<S: Send, T: Send>(
        &self,
        pieces: std::ops::Range<usize>,
        states: Vec<S>,
        work: impl Fn(&mut S, usize) -> anyhow::Result<T> + Sync,
        mut deliver: impl FnMut(T) -> anyhow::Result<()> + Send,
    ) -> anyhow::Result<Vec<S>> {
        let mut pieces = pieces;
        let next = |_: &mut S| if self.stop.load(Ordering::Relaxed) { None } else { pieces.next() };
        let states = in_order(states, next, work, |result: anyhow::Result<T>| deliver(result?))?;
        self.check_interrupted()?;
        Ok(states)
    }

    /// A scan ends early without an error when somebody interrupts it; this is the error.
    pub fn check_interrupted(&self) -> Result<(), Interrupted> {
        if self.stop.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}

/// Turns true at the first SIGTERM or Ctrl-C; a second one ends the process at once.
fn stop_on_signal() -> anyhow::Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start threads")?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        let terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        (terminate, signal(SignalKind::interrupt()).context("cannot handle SIGINT")?)
    };
    let wait = move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if STOP.swap(true, Ordering::Relaxed) {
                    eprintln!("winnowd: second signal, ending at once");
                    std::process::exit(INTERRUPTED.into());
                }
            }
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(&STOP)
}

pub fn total_bytes(inputs: &[Input]) -> u64 {
    inputs.iter().map(|input| input.bytes).sum()
}

/// What is written does not get to its place.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct WriteError {
    problem: String,
    source: io::Error,
}

impl WriteError {
    /// `out`: what the user named.
    pub fn new(out: &Path, source: io::Error) -> Self {
        // Where links lead, if that is there.
        let place = out.canonicalize().or_else(|_| std::path::absolute(out)).unwrap_or_else(|_| out.to_owned());
        let folder = place.parent().unwrap_or(&place).display();
        let hint = match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                format!("; free space in `{folder}`, or name another --out")
            }
            ErrorKind::ReadOnlyFilesystem => format!("; make `{folder}` writable, or name another --out"),
            _ => String::new(),
        };
        WriteError { problem: format!("--out `{}` cannot be written: {source}{hint}", out.display()), source }
    }

    /// Whether the disk is to blame, and neither the program nor what the user named.
    pub fn is_of_disk(&self) -> bool {
        matches!(self.source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
    }
}

/// The error of a place that the user named: a mistake, unless the disk is to blame.
pub fn unwritable(out: &Path, source: io::Error) -> anyhow::Error {
    let error = WriteError::new(out, source);
    if error.is_of_disk() { error.into() } else { UsageError(error.problem).into() }
}

/// The error of a writer of Parquet: that of the file below, if that is what failed.
pub fn unwritten(out: &Path, error: ParquetError) -> anyhow::Error {
    match crate::sink::file_error(error) {
        Ok(source) => WriteError::new(out, source).into(),
        Err(error) => anyhow::Error::new(error).context(format!("`{}`", out.display())),
    }
}

/// A file that a command writes. It gets to its place when it is complete, so that readers see the old one or the whole
/// new one. What is no regular file, such as a device or a pipe, stays what it is and is written to as it comes.
pub struct OutFile {
    /// By the user.
    named: PathBuf,
    place: Place,
}

enum Place {
    /// Beside what it becomes; it vanishes unless it is published.
    Scratch {
        file: NamedTempFile,
        becomes: PathBuf,
    },
    Direct(File),
}

impl OutFile {
    /// Refuses what cannot be written, before hours are spent.
    pub fn create(out: &Path) -> anyhow::Result<Self> {
        let place = Place::of(out).map_err(|e| unwritable(out, e))?;
        Ok(OutFile { named: out.to_owned(), place })
    }

    /// To write with.
    pub fn handle(&self) -> anyhow::Result<File> {
        let handle = match &self.place {
            Place::Scratch { file, .. } => file.reopen(),
            Place::Direct(file) => file.try_clone(),
        };
        handle.map_err(|e| unwritable(&self.named, e))
    }

    /// All has been written.
    pub fn publish(self) -> anyhow::Result<()> {
        let OutFile { named, place } = self;
        let Place::Scratch { file, becomes } = place else { return Ok(()) };
        file.as_file().sync_all().map_err(|e| unwritable(&named, e))?;
        file.persist(&becomes).map_err(|e| unwritable(&named, e.error))?;
        Ok(())
    }

    /// All that it is to hold.
    pub fn write(self, bytes: &[u8]) -> anyhow::Result<()> {
        self.handle()?.write_all(bytes).map_err(|e| unwritable(&self.named, e))?;
        self.publish()
    }
}

impl Place {
    fn of(out: &Path) -> io::Result<Self> {
        let folder_of = |path: &Path| match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let becomes = match out.metadata() {
            Ok(found) if found.is_dir() => return Err(ErrorKind::IsADirectory.into()),
            Ok(found) if !found.is_file() => return File::options().write(true).open(out).map(Place::Direct),
            // Where a link leads, so that it stays a link.
            Ok(_) => out.canonicalize()?,
            Err(e) if e.kind() == ErrorKind::NotFound => match out.read_link() {
                Ok(leads_to) => return Place::of(&folder_of(out).join(leads_to)),
                Err(_) => out.to_owned(),
            },
            Err(e) => return Err(e),
        };
        let file = tempfile::Builder::new()
            .prefix(".winnowd-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder_of(&becomes))?;
        Ok(Place::Scratch { file, becomes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_under_a_writer_of_parquet_is_told_by_its_name() {
        let out = Path::new("/somewhere/out.parquet");
        let error = unwritten(out, io::Error::from(ErrorKind::StorageFull).into());
        assert!(error.downcast_ref::<WriteError>().is_some_and(WriteError::is_of_disk), "{error}");
        let said = error.to_string();
        assert!(said.contains("--out `/somewhere/out.parquet` cannot be written"), "{said}");
        assert!(said.contains("free space in `/somewhere`"), "{said}");
        let error = unwritten(out, ParquetError::General("no".to_owned()));
        assert!(!error.is::<WriteError>() && error.to_string().contains("out.parquet"), "{error}");
    }
}
