//! A folder in which the real binary works on files, and what can be read of what it wrote.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::{Float64Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

/// A folder with the bundled sample, cut into target and raw as for the reference vectors.
pub struct Sandbox {
    pub folder: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let target_ids: HashSet<&str> = include_str!("../reference/target_ids.txt").lines().collect();
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/demo/sample.jsonl.zst");
        let sample = zstd::decode_all(File::open(sample).unwrap()).unwrap();
        let (mut target, mut raw) = (Vec::new(), Vec::new());
        for line in sample.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let id = serde_json::from_slice::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
            let side = if target_ids.contains(id.as_str()) { &mut target } else { &mut raw };
            side.extend_from_slice(line);
            side.push(b'\n');
        }
        let sandbox = Sandbox { folder };
        std::fs::write(sandbox.path("target.jsonl"), target).unwrap();
        std::fs::write(sandbox.path("raw.jsonl"), raw).unwrap();
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs winnowd in the folder.
    pub fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_winnowd"))
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    pub fn succeed(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "winnowd {arguments}: {}\n{errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says on standard error when it is called wrongly.
    pub fn refuse(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(64), "winnowd {arguments}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn report(&self, out: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(out).join("report.json")).unwrap()).unwrap()
    }

    /// The raw documents in all formats, their order kept.
    pub fn write_other_formats(&self) {
        let raw = std::fs::read(self.path("raw.jsonl")).unwrap();
        std::fs::write(self.path("raw.jsonl.zst"), zstd::encode_all(&raw[..], 1).unwrap()).unwrap();
        let mut gzip =
            flate2::write::GzEncoder::new(File::create(self.path("raw.jsonl.gz")).unwrap(), Default::default());
        gzip.write_all(&raw).unwrap();
        gzip.finish().unwrap();
        let rows = lines(&self.path("raw.jsonl"));
        let column = |name: &str| -> arrow::array::ArrayRef {
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row[name].as_str())))
        };
        let columns = ["source", "text", "id"].map(|name| (name, column(name)));
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer =
            ArrowWriter::try_new(File::create(self.path("raw.parquet")).unwrap(), batch.schema(), None).unwrap();
        for from in (0..batch.num_rows()).step_by(500) {
            writer.write(&batch.slice(from, 500.min(batch.num_rows() - from))).unwrap();
            writer.flush().unwrap();
        }
        writer.close().unwrap();
    }
}

pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn batches(path: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    reader.map(Result::unwrap).collect()
}

/// One column of strings.
pub fn strings(path: &Path, column: &str) -> Vec<String> {
    let of = |batch: RecordBatch| {
        let column = batch.column_by_name(column).unwrap().as_string::<i32>().clone();
        (0..column.len()).map(|row| column.value(row).to_owned()).collect::<Vec<_>>()
    };
    batches(path).into_iter().flat_map(of).collect()
}

pub fn numbers(path: &Path, column: &str) -> Vec<f64> {
    let of = |batch: RecordBatch| {
        let column = batch.column_by_name(column).unwrap().clone();
        match column.as_primitive_opt::<Float64Type>() {
            Some(column) => column.values().to_vec(),
            None => column.as_primitive::<UInt32Type>().values().iter().map(|n| f64::from(*n)).collect(),
        }
    };
    batches(path).into_iter().flat_map(of).collect()
}

pub const SELECTED: &str = "selected-00000.parquet";
