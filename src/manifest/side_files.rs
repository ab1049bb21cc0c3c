//! What loaders of other projects read beside the shards, made of the lines of `manifest.jsonl` and of nothing else: whoever writes them
//! writes the same bytes. Pure.

use serde::{Deserialize, Serialize};

use super::{CountedTokens, ManifestEntry, PublishedFile};

/// A file that says the same as the manifest, in the way of another project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SideFile {
    /// litData's index of a folder of Parquet files, as `litdata.index_parquet_dataset` makes it and `ParquetLoader` reads it.
    LitdataTrain,
    /// The same of what is held out.
    LitdataValidation,
    /// The counts that fms-fsdp looks for in `meta` beside the folders of its datasets, so that it need not open every file.
    FmsCounts,
}

impl SideFile {
    /// Those of a project by its name in the configuration; `None`: it cannot be served.
    pub fn of_project(name: &str) -> Option<&'static [SideFile]> {
        match name {
            "litdata" => Some(&[SideFile::LitdataTrain, SideFile::LitdataValidation]),
            "fms" => Some(&[SideFile::FmsCounts]),
            _ => None,
        }
    }

    /// Relative to the root of the sink.
    pub fn path(self) -> &'static str {
        match self {
            SideFile::LitdataTrain => "shards/index.json",
            SideFile::LitdataValidation => "validation/index.json",
            SideFile::FmsCounts => "meta/combined_counts.csv",
        }
    }

    /// The sequence number that it has come to, 0 if there is none or it is not what it should be: then it is made anew.
    pub fn sequence(self, present: &[u8]) -> i64 {
        match self {
            SideFile::FmsCounts => counts(present).map_or(0, |(sequence, _)| sequence),
            _ => serde_json::from_slice::<Index>(present).map_or(0, |index| index.winnowd_sequence),
        }
    }

    /// The file with further entries, which follow what is present. `column_types`: of the shards, as Arrow's Python library calls them.
    pub fn extended(self, present: &[u8], entries: &[ManifestEntry], column_types: &[String]) -> Vec<u8> {
        match self {
            SideFile::FmsCounts => with_counts(present, entries),
            SideFile::LitdataTrain => {
                let of = |e: &ManifestEntry| Some(Chunk::new(&e.path, e.rows, e.bytes)).filter(|c| c.chunk_size > 0);
                with_chunks(present, entries, column_types, of)
            }
            SideFile::LitdataValidation => {
                let of = |file: &PublishedFile| Chunk::new(&file.path, file.rows, file.bytes);
                with_chunks(present, entries, column_types, |entry| entry.validation.as_ref().map(of))
            }
        }
    }
}

/// `index.json`. litData looks at `chunks` and `config`.
#[derive(Serialize, Deserialize)]
struct Index {
    chunks: Vec<Chunk>,
    config: IndexConfig,
    /// Up to which line of the manifest.
    winnowd_sequence: i64,
}

#[derive(Serialize, Deserialize)]
struct Chunk {
    chunk_bytes: u64,
    chunk_size: u64,
    dim: Option<u64>,
    filename: String,
}

#[derive(Serialize, Deserialize)]
struct IndexConfig {
    chunk_bytes: Option<u64>,
    chunk_size: Option<u64>,
    compression: Option<String>,
    data_format: Vec<String>,
    data_spec: Option<String>,
    encryption: Option<String>,
    item_loader: String,
}

impl Chunk {
    fn new(path: &str, rows: u64, bytes: u64) -> Self {
        // The index stands in the same folder.
        let filename = path.rsplit('/').next().unwrap_or(path).to_owned();
        Chunk { chunk_bytes: bytes, chunk_size: rows, dim: None, filename }
    }
}

fn with_chunks(
    present: &[u8],
    entries: &[ManifestEntry],
    column_types: &[String],
    chunk_of: impl Fn(&ManifestEntry) -> Option<Chunk>,
) -> Vec<u8> {
    let (mut chunks, before) = match serde_json::from_slice::<Index>(present) {
        Ok(index) => (index.chunks, index.winnowd_sequence),
        Err(_) => (Vec::new(), 0),
    };
    chunks.extend(entries.iter().filter_map(chunk_of));
    let config = IndexConfig {
        chunk_bytes: None,
        chunk_size: None,
        compression: None,
        data_format: column_types.to_vec(),
        data_spec: None,
        encryption: None,
        item_loader: "ParquetLoader".to_owned(),
    };
    let winnowd_sequence = entries.last().map_or(before, |entry| entry.sequence);
    serde_json::to_vec(&Index { chunks, config, winnowd_sequence }).expect("strings and numbers are JSON")
}

const COUNTS_HEADING: &str = "dataset/filename,documents,tokens";

/// The sequence number, which is that of the rows of shards, and the file up to its last line break. `None`: it is no such file.
fn counts(present: &[u8]) -> Option<(i64, &str)> {
    let text = std::str::from_utf8(present).ok()?;
    let whole = &text[..text.rfind('\n')? + 1];
    let mut lines = whole.lines();
    if lines.next() != Some(COUNTS_HEADING) {
        return None;
    }
    Some((lines.filter(|line| line.starts_with("/shards/")).count() as i64, whole))
}

/// fms-fsdp finds a dataset behind a slash, and reads `documents`. Tokens depend on the tokenizer of the model: without one they are
/// left out.
fn with_counts(present: &[u8], entries: &[ManifestEntry]) -> Vec<u8> {
    let mut text = counts(present).map_or_else(|| format!("{COUNTS_HEADING}\n"), |(_, whole)| whole.to_owned());
    for entry in entries {
        let tokens =
            |of: fn(&CountedTokens) -> u64| entry.tokenizer.as_ref().map(|n| of(n).to_string()).unwrap_or_default();
        let held_out = entry.validation.as_ref().map(|file| (&file.path, file.rows, tokens(|n| n.validation_tokens)));
        // What is held out before the shard: its row says that the entry is complete.
        for (path, rows, tokens) in held_out.into_iter().chain([(&entry.path, entry.rows, tokens(|n| n.tokens))]) {
            text.push_str(&format!("/{path},{rows},{tokens}\n"));
        }
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::ModelId;

    fn entry(sequence: i64, rows: u64, held_out: Option<u64>) -> ManifestEntry {
        let file = |rows| PublishedFile {
            path: format!("validation/s{sequence}.parquet"),
            rows,
            bytes: 50 + rows,
            digest: "sha256:00".into(),
        };
        ManifestEntry {
            sequence,
            shard: format!("s{sequence}"),
            pipeline: "p".into(),
            path: format!("shards/s{sequence}.parquet"),
            rows,
            bytes: 100 + rows,
            digest: "sha256:00".into(),
            model: ModelId::of(b"m"),
            windows: vec![],
            tokenizer: None,
            validation: held_out.map(file),
            created_at: "2026-01-31T12:00:00.000Z".into(),
        }
    }

    const ALL: [SideFile; 3] = [SideFile::LitdataTrain, SideFile::LitdataValidation, SideFile::FmsCounts];

    fn entries() -> Vec<ManifestEntry> {
        let counted =
            CountedTokens { name: "t".into(), digest: "sha256:00".into(), tokens: 900, validation_tokens: 70 };
        let with_tokens = ManifestEntry { tokenizer: Some(counted), ..entry(2, 7, Some(3)) };
        vec![entry(1, 10, None), with_tokens, entry(3, 0, Some(1)), entry(4, 5, None)]
    }

    #[test]
    fn they_say_what_the_projects_read() {
        let types = ["string".to_owned(), "timestamp[ms, tz=UTC]".to_owned()];
        let of = |file: SideFile| String::from_utf8(file.extended(b"", &entries(), &types)).unwrap();
        let config = r#""config":{"chunk_bytes":null,"chunk_size":null,"compression":null,"data_format":["string","timestamp[ms, tz=UTC]"],"data_spec":null,"encryption":null,"item_loader":"ParquetLoader"},"winnowd_sequence":4}"#;
        let chunk = |name, rows, bytes| {
            format!(r#"{{"chunk_bytes":{bytes},"chunk_size":{rows},"dim":null,"filename":"{name}.parquet"}}"#)
        };
        let (a, b, c) = (chunk("s1", 10, 110), chunk("s2", 7, 107), chunk("s4", 5, 105));
        assert_eq!(of(SideFile::LitdataTrain), format!(r#"{{"chunks":[{a},{b},{c}],{config}"#));
        let (a, b) = (chunk("s2", 3, 53), chunk("s3", 1, 51));
        assert_eq!(of(SideFile::LitdataValidation), format!(r#"{{"chunks":[{a},{b}],{config}"#));
        assert_eq!(
            of(SideFile::FmsCounts),
            "dataset/filename,documents,tokens\n/shards/s1.parquet,10,\n/validation/s2.parquet,3,70\n/shards/s2.parquet,7,900\n\
             /validation/s3.parquet,1,\n/shards/s3.parquet,0,\n/shards/s4.parquet,5,\n"
        );
    }

    /// However it grew, and whatever stood there before that is no such file.
    #[test]
    fn they_are_the_same_however_they_grew() {
        for file in ALL {
            let whole = file.extended(b"", &entries(), &[]);
            assert_eq!((file.sequence(b""), file.sequence(&whole)), (0, 4));
            for cut in 0..=4 {
                let first = file.extended(b"", &entries()[..cut], &[]);
                assert_eq!(file.sequence(&first), cut as i64);
                assert_eq!(file.extended(&first, &entries()[cut..], &[]), whole);
            }
            for damaged in [&b"{"[..], b"\xff", b"a,b\nc,d\n", b"null"] {
                assert_eq!(file.sequence(damaged), 0);
                assert_eq!(file.extended(damaged, &entries(), &[]), whole);
            }
        }
    }
}
