//! The documents that benches run on, and models of them.

use std::path::Path;

use winnowd::features::{Featuriser, NgramHash, Scratch};
use winnowd::record::{Decoder, TopicPartition};
use winnowd::score::{Model, NgramCounts, Side};

/// Documents in memory: a JSON object each, and its text.
pub struct Corpus {
    pub records: Vec<Vec<u8>>,
    pub texts: Vec<String>,
    pub text_bytes: u64,
}

const SAMPLE: &str = "src/cli/demo/sample.jsonl.zst";

impl Corpus {
    /// Of the JSONL file (plain or zstd) that `WINNOWD_CORPUS` names, its first 64 MB of text; else the bundled sample.
    pub fn load() -> Self {
        let path =
            std::env::var("WINNOWD_CORPUS").unwrap_or_else(|_| format!("{}/{SAMPLE}", env!("CARGO_MANIFEST_DIR")));
        Self::read(Path::new(&path), 64 << 20)
    }

    pub fn read(path: &Path, limit_bytes: u64) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("`{}` cannot be read: {e}", path.display()));
        let zstd = path.extension().is_some_and(|e| e == "zst");
        let jsonl = if zstd { zstd::decode_all(&*bytes).expect("zstd data") } else { bytes };
        let (decoder, at) = (Decoder::for_files(), TopicPartition::new("corpus", 0));
        let mut corpus = Corpus { records: Vec::new(), texts: Vec::new(), text_bytes: 0 };
        for line in jsonl.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let document = decoder.decode(Some(line), &at, 0, None);
            let text = document.unwrap_or_else(|e| panic!("`{}`: {e:?}", path.display())).text;
            corpus.text_bytes += text.len() as u64;
            corpus.records.push(line.to_vec());
            corpus.texts.push(text);
            if corpus.text_bytes >= limit_bytes {
                break;
            }
        }
        assert!(corpus.text_bytes > 0, "`{}` holds no text", path.display());
        corpus
    }
}

/// The featurisers that are compared: name, settings.
pub fn featurisers() -> Vec<(&'static str, Featuriser)> {
    [NgramHash::Reference, NgramHash::Fast].map(|hash| (hash.as_str(), Featuriser::with_hash(hash))).into()
}

/// A model with every 50th document as its target and all as raw: its quality does not matter, only its size.
pub fn fit(corpus: &Corpus, featuriser: Featuriser) -> Model {
    let count = |step| {
        let mut counts = NgramCounts::zero(featuriser.buckets as usize);
        let mut scratch = Scratch::default();
        corpus.texts.iter().step_by(step).for_each(|text| {
            counts.add_text(text, &featuriser, &mut scratch);
        });
        Side::of(counts)
    };
    Model::of_one_target(featuriser, count(50), count(1)).expect("a model")
}
