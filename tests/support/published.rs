//! What was published, read as trainers and operators read it, and whether each position was decided exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::process::Command;

use arrow::array::{Array, Float64Array, Int32Array, Int64Array, StringArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use winnowd::catalog::{Access, CatalogReader, SqlCatalog, Totals};
use winnowd::config::CatalogUrl;
use winnowd::manifest::{DeadLetterFile, ManifestEntry, SideFile};
use winnowd::sink::{StoredDeadLetter, read_dead_letters};
use winnowd::window::WindowSummary;

use super::block_on;

/// One row of a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub id: String,
    pub partition: i32,
    pub offset: i64,
    pub log_importance_weight: f64,
    pub selection_key: f64,
    pub inclusion_probability: f64,
    pub sample_weight: f64,
    pub window: String,
    /// Whether it stands in a file of the validation split.
    pub held_out: bool,
    /// Of several targets: the one that chose it, and its weight for each.
    pub target: Option<String>,
    pub log_importance_weights: Vec<(String, f64)>,
    pub loss: Option<f64>,
    pub loss_weight: Option<f64>,
    pub expected_loss: Option<f64>,
}

/// Everything that a deployment has published.
pub struct Published {
    pub totals: Totals,
    pub windows: Vec<WindowSummary>,
    pub dead_letters: Vec<StoredDeadLetter>,
    pub rows: Vec<Row>,
}

impl Published {
    /// `None`: the catalog has shards that are not in `manifest.jsonl` yet.
    pub fn read(folder: &Path, catalog: &CatalogUrl) -> Option<Self> {
        let (totals, windows, letter_files, shards) = block_on(async {
            let catalog = SqlCatalog::open(catalog, Access::Read).await.expect("the catalog");
            let totals = catalog.totals("test").await.expect("totals").unwrap_or_default();
            let windows = catalog.windows("test").await.expect("windows");
            let letter_files = catalog.dead_letter_files("test").await.expect("files of dead letters");
            (totals, windows, letter_files, catalog.shards("test").await.expect("shards"))
        });
        // Trainers see the manifest; it must say what the catalog says, and the files must be what it says.
        let manifest = std::fs::read_to_string(folder.join("out/manifest.jsonl")).unwrap_or_default();
        if manifest.lines().count() < shards.len() {
            return None;
        }
        assert_eq!(manifest.lines().count(), shards.len(), "lines of manifest.jsonl");
        let mut rows = Vec::new();
        for (line, (sequence, shard)) in manifest.lines().zip(&shards) {
            let entry: ManifestEntry = serde_json::from_str(line).expect("a manifest entry");
            assert_eq!(Some(&entry), shard.entry(*sequence).as_ref());
            let path = folder.join("out").join(&entry.path);
            assert_eq!(std::fs::metadata(&path).expect("the file").len(), entry.bytes);
            assert_eq!(entry.digest, digest(&path));
            let before = rows.len();
            read_rows(&path, false, &mut rows);
            assert_eq!((rows.len() - before) as u64, entry.rows);
            if let Some(file) = &entry.validation {
                let (path, before) = (folder.join("out").join(&file.path), rows.len());
                assert_eq!(
                    (std::fs::metadata(&path).expect("the file").len(), digest(&path)),
                    (file.bytes, file.digest.clone())
                );
                read_rows(&path, true, &mut rows);
                assert!(file.rows > 0 && (rows.len() - before) as u64 == file.rows);
            }
        }
        let entries: Vec<_> = manifest.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect();
        assert_side_files(folder, &entries);
        let mut dead_letters = Vec::new();
        for DeadLetterFile { path, rows, bytes, digest: expected } in letter_files {
            let file = folder.join("out").join(&path);
            let content = std::fs::read(&file).expect("the file of dead letters");
            assert_eq!((content.len() as u64, digest(&file)), (bytes, expected));
            let before = dead_letters.len();
            dead_letters
                .extend(read_dead_letters(&path, content.into()).expect("Parquet").map(|l| l.expect("a dead letter")));
            assert_eq!((dead_letters.len() - before) as u64, rows);
        }
        Some(Published { totals, windows, dead_letters, rows })
    }

    /// Every position from 0 to the end of each partition is decided exactly once.
    pub fn assert_exactly_once(&self, produced: &BTreeMap<i32, i64>) {
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        let mut by_window: BTreeMap<String, u64> = BTreeMap::new();
        for window in &self.windows {
            let expected = next.entry(window.at.partition).or_default();
            assert_eq!(window.interval.from, *expected, "{}: windows follow one another", window.id());
            *expected = window.interval.to;
            assert_eq!(window.n_records, (window.interval.to - window.interval.from) as u64, "{}", window.id());
            assert_eq!(window.n_records, window.n_selected + window.n_rejected + window.n_dead_letters);
            by_window.insert(window.id(), window.n_selected);
        }
        let ends: BTreeMap<i32, i64> = produced.iter().filter(|(_, n)| **n > 0).map(|(p, n)| (*p, *n)).collect();
        assert_eq!(next, ends, "windows reach the end of every partition");

        let mut positions = BTreeSet::new();
        for row in &self.rows {
            assert!(positions.insert((row.partition, row.offset)), "position {}/{} twice", row.partition, row.offset);
            *by_window.get_mut(&row.window).expect("a published window") -= 1;
        }
        assert!(by_window.values().all(|&left| left == 0), "every selection is in a shard");
        for letter in &self.dead_letters {
            assert!(
                positions.insert((letter.at.partition, letter.offset)),
                "a dead letter was selected, or stands twice"
            );
        }
        let sum = |count: fn(&WindowSummary) -> u64| self.windows.iter().map(count).sum::<u64>() as i64;
        let totals = &self.totals;
        assert_eq!(totals.n_records, ends.values().sum::<i64>());
        assert_eq!((totals.n_records, totals.n_selected), (sum(|w| w.n_records), sum(|w| w.n_selected)));
        assert_eq!((totals.n_rejected, totals.n_dead_letters), (sum(|w| w.n_rejected), sum(|w| w.n_dead_letters)));
        assert_eq!(totals.n_selected as usize, self.rows.len());
        assert_eq!(totals.n_dead_letters as usize, self.dead_letters.len());
    }
}

/// Where there are side files, they say what the manifest says.
fn assert_side_files(folder: &Path, entries: &[ManifestEntry]) {
    for project in ["litdata", "fms"] {
        for file in SideFile::of_project(project).expect("a project") {
            let Ok(content) = std::fs::read(folder.join("out").join(file.path())) else { continue };
            assert_eq!(file.sequence(&content), entries.len() as i64, "{}", file.path());
            let parts = |content: Vec<u8>| match serde_json::from_slice::<serde_json::Value>(&content) {
                Ok(index) => index["chunks"].to_string(),
                Err(_) => String::from_utf8(content).expect("text"),
            };
            assert_eq!(parts(content), parts(file.extended(b"", entries, &[])), "{}", file.path());
        }
    }
}

fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum").stdout;
    format!("sha256:{}", String::from_utf8_lossy(&output[..64]))
}

fn read_rows(path: &Path, held_out: bool, rows: &mut Vec<Row>) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("the shard")).expect("Parquet");
    for batch in reader.build().expect("Parquet") {
        let batch = batch.expect("Parquet");
        let column = |name: &str| batch.column_by_name(name).expect("a documented column").as_any();
        let strings = |name| column(name).downcast_ref::<StringArray>().expect("strings");
        let floats = |name| column(name).downcast_ref::<Float64Array>().expect("numbers");
        let optional = |name, i| Some(floats(name)).filter(|c| c.is_valid(i)).map(|c| c.value(i));
        let partitions = column("partition").downcast_ref::<Int32Array>().expect("partitions");
        let offsets = column("offset").downcast_ref::<Int64Array>().expect("offsets");
        let schema = batch.schema();
        let of_target = |column: &str| column.strip_prefix("log_importance_weight_").map(str::to_owned);
        let columns = schema.fields().iter().zip(batch.columns());
        let by_target: Vec<(String, &Float64Array)> = columns
            .filter_map(|(field, column)| Some((of_target(field.name())?, column.as_any().downcast_ref()?)))
            .collect();
        rows.extend((0..batch.num_rows()).map(|i| Row {
            id: strings("id").value(i).to_owned(),
            partition: partitions.value(i),
            offset: offsets.value(i),
            log_importance_weight: floats("log_importance_weight").value(i),
            selection_key: floats("selection_key").value(i),
            inclusion_probability: floats("inclusion_probability").value(i),
            sample_weight: floats("sample_weight").value(i),
            window: strings("window").value(i).to_owned(),
            held_out,
            target: (!by_target.is_empty()).then(|| strings("target").value(i).to_owned()),
            log_importance_weights: by_target.iter().map(|(name, weights)| (name.clone(), weights.value(i))).collect(),
            loss: optional("loss", i),
            loss_weight: optional("loss_weight", i),
            expected_loss: optional("expected_loss", i),
        }));
    }
}
