//! The stages of the way from a record to a shard, each ready to be timed on the same documents, on one thread.

use std::hint::black_box;
use std::sync::Arc;

use winnowd::config::Config;
use winnowd::features::{
    BucketList, DigestKernel, Featuriser, NgramHash, PointScratch, Projection, Scratch, TextKernel, for_each_token,
    lowercase_into,
};
use winnowd::manifest::DerivedSettings;
use winnowd::record::{Decoder, TextScratch, TopicPartition};
use winnowd::score::{DecayedCounts, ImportanceWeight, Model, ModelId, NgramCounts, Score};
use winnowd::select::{
    BudgetRounding, DEFAULT_STRATA, Division, Edges, FilterSettings, FixedEdges, Noise, QuantileSketch, Reservoir,
    SelectorKind, SelectorSettings, SketchVersion, StrataRounding, StratumReservoirs,
};
use winnowd::sink::{GiveUp, ShardWriter, WriterSettings};
use winnowd::sql::{DerivedColumns, DocumentFilter};
use winnowd::window::{
    CloseReason, ClosedWindow, Content, OpenWindow, Opening, ScoredDocument, ScoredRecord, SelectedDocument,
};

use crate::support::{Corpus, featurisers, fit};

/// What one-pass selectors are called here.
pub const SELECT: &str = "select";
/// Documents that they choose a tenth of.
const OFFERS: u64 = 1_000_000;
/// Documents that become points in a pass.
const POINTS: usize = 10_000;

/// What a stage's rate counts.
#[derive(Clone, Copy)]
pub enum Work {
    TextBytes(u64),
    Documents(u64),
}

type Pass = Box<dyn FnMut()>;

/// One pass over the corpus, or as much work as makes sense for a stage.
pub struct Stage {
    pub name: &'static str,
    /// Which implementation does it, where there are several.
    pub kernel: &'static str,
    pub work: Work,
    pub pass: Pass,
}

/// The implementations that this machine can run, the slowest first: name, and scratch that uses it. Machines that lack
/// an instruction set for digests lack that of its place for texts.
fn kernels(hash: NgramHash) -> Vec<(&'static str, Scratch)> {
    let (texts, digests) = (TextKernel::available(), DigestKernel::available());
    match hash {
        NgramHash::Reference => {
            let text = |place: usize| texts[place.min(texts.len() - 1)];
            let scratch =
                |(i, digest): (usize, &DigestKernel)| (digest.as_str(), Scratch::with_kernels(text(i), *digest));
            digests.iter().enumerate().map(scratch).collect()
        }
        NgramHash::Fast => {
            texts.iter().map(|text| (text.as_str(), Scratch::with_kernels(*text, DigestKernel::default()))).collect()
        }
    }
}

/// All stages, in the order in which a document passes them.
pub fn stages(corpus: &'static Corpus) -> Vec<Stage> {
    let mut stages = Vec::new();
    let mut add = |name, kernel, work, pass: Pass| {
        stages.push(Stage { name, kernel, work, pass });
    };
    let text = Work::TextBytes(corpus.text_bytes);

    let valid = |record: &Vec<u8>| std::str::from_utf8(record).is_ok();
    add("utf8", "std", text, Box::new(move || assert!(corpus.records.iter().all(valid))));
    let mut buffer = TextScratch::default();
    add(
        "json",
        "borrowed",
        text,
        Box::new(move || {
            decode(corpus, |decoder, record, at| {
                black_box(decoder.decode_ref(Some(record), at, 0, None, &mut buffer).expect("a document"));
            });
        }),
    );
    add(
        "json",
        "owned",
        text,
        Box::new(move || {
            decode(corpus, |decoder, record, at| {
                black_box(decoder.decode(Some(record), at, 0, None).expect("a document"));
            });
        }),
    );
    add("tokens", "specification", text, Box::new(move || corpus.texts.iter().for_each(|text| tokens(text))));
    for (featuriser_name, featuriser) in featurisers() {
        let [features, score, against, count] = match featuriser_name {
            "reference" => ["features/reference", "score/reference", "against/reference", "count/reference"],
            _ => ["features/fast", "score/fast", "against/fast", "count/fast"],
        };
        let model = fit(corpus, featuriser);
        let weights = [ImportanceWeight::of_targets(&model).remove(0), against_selected(&model)];
        for (kernel, mut scratch) in kernels(featuriser.hash) {
            add(
                features,
                kernel,
                text,
                Box::new(move || {
                    for text in &corpus.texts {
                        featuriser.for_each_chunk(text, &mut scratch, |buckets| {
                            black_box(buckets);
                        });
                    }
                }),
            );
        }
        for (score, weight) in [score, against].into_iter().zip(weights) {
            for (kernel, mut scratch) in kernels(featuriser.hash) {
                let weight = weight.clone();
                add(
                    score,
                    kernel,
                    text,
                    Box::new(move || {
                        for text in &corpus.texts {
                            black_box(weight.score(text, &mut scratch));
                        }
                    }),
                );
            }
        }
        for (kernel, mut scratch) in kernels(featuriser.hash) {
            let mut counts = NgramCounts::zero(featuriser.buckets as usize);
            add(
                count,
                kernel,
                text,
                Box::new(move || {
                    for text in &corpus.texts {
                        counts.add_text(text, &featuriser, &mut scratch);
                    }
                }),
            );
        }
    }
    for (kernel, sql) in FILTERS {
        let filter = DocumentFilter::compile(&FilterSettings { sql: sql.to_owned(), fields: [].into() });
        let filter = filter.expect("a filter");
        add("filter", kernel, text, Box::new(move || judge(corpus, &filter)));
    }
    // What is done for one and a half times selection.coverage_sample documents of a window.
    let featuriser = Featuriser::with_hash(NgramHash::Fast);
    let mut scratch = Scratch::default();
    let mut list = |text: &String| {
        let mut list = BucketList::new(featuriser.buckets);
        featuriser.for_each_chunk(text, &mut scratch, |buckets| list.extend(buckets));
        list
    };
    let lists: Vec<BucketList> = corpus.texts.iter().take(POINTS).map(&mut list).collect();
    let mut scratch = PointScratch::default();
    let points = Work::Documents(lists.len() as u64);
    let pass = move || {
        for list in &lists {
            black_box(Projection::OF_TEXTS.of_list(list, &mut scratch));
        }
    };
    add("point", "projected n-grams", points, Box::new(pass));
    for (selector, pass) in selectors() {
        add(SELECT, selector, Work::Documents(OFFERS), pass);
    }
    let window = everything(corpus);
    let selected = everything(corpus).selected;
    let columns = [("n".to_owned(), "length(text)".to_owned())].into();
    let derived = DerivedColumns::compile(&DerivedSettings { columns, ..DerivedSettings::default() });
    let derived = derived.expect("a column");
    add("columns", "length(text)", text, Box::new(move || derive(&derived, &selected)));
    add("parquet", "zstd-1", text, Box::new(move || write(&window)));
    stages
}

/// Without a look at the text, and with one at every byte of it.
const FILTERS: [(&str, &str); 2] = [
    ("n_bytes BETWEEN", "n_bytes BETWEEN 200 AND 200000"),
    ("length(text) AND LIKE", "length(text) > 200 AND text NOT LIKE '%lorem ipsum%'"),
];

/// As many at a time as the daemon does: decoding is measured with it, and is a stage of its own.
fn judge(corpus: &Corpus, filter: &DocumentFilter) {
    let (decoder, at) = (Decoder::for_files(), TopicPartition::new("corpus", 0));
    for records in corpus.records.chunks(64) {
        let mut scratches: Vec<_> = records.iter().map(|_| TextScratch::default()).collect();
        let documents: Vec<_> = (records.iter().zip(&mut scratches))
            .map(|(record, text)| decoder.decode_ref(Some(record), &at, 0, None, text).expect("a document"))
            .collect();
        black_box(filter.judge(&documents.iter().collect::<Vec<_>>()));
    }
}

fn derive(derived: &DerivedColumns, selected: &[SelectedDocument]) {
    let at = TopicPartition::new("corpus", 0);
    for documents in selected.chunks(64) {
        let documents: Vec<_> = documents.iter().collect();
        drop(black_box(derived.of(&documents, &at)));
    }
}

/// Weights against what was selected: some of the target.
fn against_selected(model: &Model) -> ImportanceWeight {
    let (target, raw) = (model.target_probabilities(), model.raw.counts.probabilities());
    let mut selected = DecayedCounts::prior(model.featuriser, &raw, 1_000_000);
    selected.add(&model.targets[0].side.counts, None);
    let denominator = [(0.25, &raw), (0.75, &selected.probabilities())];
    ImportanceWeight::against(model.featuriser, &target, &denominator, model.smoothing)
}

fn decode(corpus: &Corpus, mut each: impl FnMut(&Decoder, &[u8], &TopicPartition)) {
    let (decoder, at) = (Decoder::for_files(), TopicPartition::new("corpus", 0));
    corpus.records.iter().for_each(|record| each(&decoder, record, &at));
}

fn tokens(text: &str) {
    let mut lowered = String::with_capacity(text.len() + 16);
    lowercase_into(text, &mut lowered);
    for_each_token(&lowered, |token| {
        black_box(token);
    });
}

/// The one-pass forms: what a scored document costs until it is known which tenth of a million is chosen.
fn selectors() -> [(&'static str, Pass); 3] {
    let toml = "selection.min_tokens = 0\nmodel.path = \"none\"";
    let settings = Config::from_toml(toml, []).expect("a configuration").selector;
    let noise = Noise::new(1, &TopicPartition::new("corpus", 0));
    // Of each: a log weight, and how hard it is.
    let scored = |offset: i64| (20.0 * noise.sampling(offset), -noise.priority(offset).ln());
    let scored: Arc<Vec<(f64, f64)>> = Arc::new((0..OFFERS as i64).map(scored).collect());
    let of_kind = |kind| {
        let (settings, noise, scored) = (SelectorSettings { kind, ..settings.clone() }, noise.clone(), scored.clone());
        Box::new(move || best(&settings, &noise, &scored)) as Pass
    };
    let [drawn, highest] = [SelectorKind::ImportanceResampling, SelectorKind::TopK].map(of_kind);
    let covering = Box::new(move || covering(&settings, &noise, &scored));
    [("importance_resampling", drawn), ("top_k", highest), ("coverage, edges known before", covering)]
}

fn best(settings: &SelectorSettings, noise: &Noise, scored: &[(f64, f64)]) {
    let count = scored.len() / 10;
    let mut reservoir = Reservoir::new(count);
    for (offset, (weight, _)) in (0..).zip(scored) {
        let key = settings.key(noise, offset, *weight);
        if reservoir.might_hold(key) {
            reservoir.offer(offset, key, offset);
        }
    }
    black_box(reservoir.select(count));
}

fn covering(settings: &SelectorSettings, noise: &Noise, scored: &[(f64, f64)]) {
    let count = scored.len() / 10;
    let of = SketchVersion { version: 0, n_documents: 0 };
    let edges = FixedEdges { of, cutoff: None, pools: vec![Edges::new(0.0, 6.0, DEFAULT_STRATA)] };
    let mut strata = StratumReservoirs::new(Arc::new(Division::whole()), Arc::new(edges), count as u64);
    // What the windows to come take their edges from.
    let mut sketch = QuantileSketch::default();
    for (offset, (weight, hard)) in (0..).zip(scored) {
        sketch.add(*hard);
        strata.offer((0, offset), *hard, |_| settings.key(noise, offset, *weight), offset, drop);
    }
    black_box((strata.select(count as u64, BudgetRounding::Nearest, StrataRounding::Down), sketch));
}

/// A window that selected every document.
fn everything(corpus: &Corpus) -> ClosedWindow {
    let toml = "selection.fraction = 1\nselection.min_tokens = 0\nmodel.path = \"none\"";
    let config = Config::from_toml(toml, []).expect("a configuration");
    let model = fit(corpus, Featuriser::with_hash(NgramHash::Fast));
    let (decoder, at) = (Decoder::for_files(), TopicPartition::new("corpus", 0));
    let noise = Noise::new(1, &at);
    let weight = winnowd::score::VersionedWeight::pinned(ImportanceWeight::of_targets(&model).remove(0));
    let policy = winnowd::window::WindowPolicy { max_documents: corpus.records.len() as u64, ..config.window };
    let buckets = model.featuriser.buckets as usize;
    let division = Arc::new(Division::whole());
    let opening = Opening { division: &division, clusters: None, edges: None, buckets };
    let mut window = OpenWindow::new(at.clone(), 0, &policy, &config.selector, opening);
    for (offset, record) in (0..).zip(&corpus.records) {
        let document = decoder.decode(Some(record), &at, offset, None).expect("a document");
        let score = Score { n_tokens: 1, ..Score::default() };
        let outcome = Ok(ScoredDocument {
            content: Content::Whole(document),
            score,
            other_weights: Vec::new(),
            numbers: [f64::NAN; 2],
            pool: None,
            point: None,
            is_counted: false,
            refused_by: None,
            fingerprint: None,
            buckets: Some(BucketList::new(2)),
        });
        let record = ScoredRecord { offset, record_timestamp_ms: None, payload_bytes: record.len() as u64, outcome };
        window.push(record, &weight, &config.selector, &noise);
    }
    window.close(CloseReason::Documents, &config.selector, &noise, &model.target_distribution())
}

fn write(window: &ClosedWindow) {
    let settings = WriterSettings { row_group_rows: 4096, row_group_bytes: 64 << 20, zstd_level: 1, shuffle: Some(0) };
    let mut shard = ShardWriter::create("bench", None, settings, &[], &[], Arc::new(GiveUp)).expect("a scratch file");
    let rows: Vec<_> = window.selected.iter().collect();
    shard.append(&rows, &window.summary.at, &window.summary.id(), &ModelId::of(b""), &[]).expect("rows");
    black_box(shard.finish(Vec::new()).expect("a shard").bytes);
}
