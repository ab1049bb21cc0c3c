//! The bundled sample, split into a target and a stream.

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// 1,974 documents of nine sources; see `README.md` beside it for their origin and licences.
const SAMPLE: &[u8] = include_bytes!("sample.jsonl.zst");
/// The sources whose kind is wanted: every sixth document is the target, the others swim in the stream.
pub const WANTED: [&str; 3] = ["postgresql-doc", "python-doc", "rust-doc"];
const TARGET_STEP: usize = 6;

/// Records that are no documents, to show what becomes of them.
const BROKEN: [&[u8]; 3] =
    [b"{\"id\": \"cut-off\", \"text\": \"this record ends too ea", b"{\"text\": 42}", b"\xff\xfe not UTF-8"];

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SampleDocument {
    pub id: String,
    pub source: String,
    pub text: String,
}

pub struct Sample {
    pub target: Vec<SampleDocument>,
    pub stream: Vec<SampleDocument>,
}

impl Sample {
    pub fn load() -> anyhow::Result<Self> {
        let jsonl = zstd::decode_all(SAMPLE).context("the bundled sample is damaged")?;
        let mut sample = Sample { target: Vec::new(), stream: Vec::new() };
        let mut n_wanted = 0;
        for line in jsonl.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let document: SampleDocument = serde_json::from_slice(line).context("the bundled sample is damaged")?;
            let is_wanted = WANTED.contains(&document.source.as_str());
            n_wanted += usize::from(is_wanted);
            let side = if is_wanted && n_wanted % TARGET_STEP == 1 { &mut sample.target } else { &mut sample.stream };
            side.push(document);
        }
        // The file is ordered by source, a stream is not: order it by a hash of the id.
        let hash = |d: &SampleDocument| {
            d.id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
        };
        sample.stream.sort_by_cached_key(hash);
        Ok(sample)
    }

    /// Everything that is sent, as key and value.
    pub fn records(&self) -> impl Iterator<Item = (String, Vec<u8>)> {
        let documents = self.stream.iter().map(|d| (d.id.clone(), serde_json::to_vec(d).expect("strings serialise")));
        documents.chain(BROKEN.iter().enumerate().map(|(i, bytes)| (format!("broken {i}"), bytes.to_vec())))
    }

    pub fn n_records(&self) -> u64 {
        (self.stream.len() + BROKEN.len()) as u64
    }
}
