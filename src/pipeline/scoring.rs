//! A batch of records decoded, scored and counted on all cores, in order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use crate::features::{BucketList, Featuriser, PointScratch, Projection, Scratch};
use crate::record::{Decoder, DocumentRef, EmbeddingField, FieldNames, Reject, Schemas, TextScratch, embedding};
use crate::score::{Score, VersionedWeight};
use crate::select::{CoverageSelector, Division, Noise, Reservoir, SelectorSettings};
use crate::source::{Batch, Record};
use crate::sql::{DocumentFilter, Verdict};
use crate::tokenizer::Tokenizer;
use crate::window::{
    Content, DeadLetter, Fingerprint, OpenWindow, ScoredDocument, ScoredRecord, WindowPolicy, WindowTally,
};

/// Records whose documents the filter looks at together.
const FILTER_RECORDS: usize = 64;

const LONG_TEXT_BYTES: usize = 256 << 10;

/// A window's n-grams are counted by each thread for itself when its records in the batch have so many bytes a bucket. To add
/// the counts of a thread up takes less time then than to count the n-grams one by one, from memory that is far away, and they
/// take no more room than the records.
const TALLY_BYTES_PER_BUCKET: u64 = 8;

/// The windows that the records of a batch will belong to. It is known before they are decoded.
pub struct Destinations<'a> {
    selector: &'a SelectorSettings,
    /// The most documents that a window selects.
    most_selected: usize,
    windows: Vec<Destination<'a>>,
    /// By record; `None` of those that are not ours to decide.
    of_records: Vec<Option<u32>>,
}

struct Destination<'a> {
    weight: Arc<VersionedWeight>,
    noise: &'a Noise,
    /// As it stood before the batch; `None` if it only opens in it.
    window: Option<&'a OpenWindow>,
    is_divided: bool,
    /// Of its records in the batch.
    n_records: usize,
    payload_bytes: u64,
    /// The best keys in the batch, where there are more than can be selected.
    best: Option<Mutex<Reservoir<()>>>,
    /// The best sampling numbers in the batch, where there are more than the sample has.
    sampled: Option<Mutex<Reservoir<()>>>,
}

impl<'a> Destinations<'a> {
    pub fn new(selector: &'a SelectorSettings, policy: &WindowPolicy, batch: &Batch) -> Self {
        let most_selected = selector.fraction.at_most(policy.max_documents) as usize;
        Destinations { selector, most_selected, windows: Vec::new(), of_records: Vec::with_capacity(batch.len()) }
    }

    /// A window that is open; gives the number that it gets.
    pub fn open(&mut self, window: &'a OpenWindow, weight: Arc<VersionedWeight>, noise: &'a Noise) -> u32 {
        self.window(Some(window), window.is_divided(), weight, noise)
    }

    /// The same of one that only opens within the batch, and will be divided so.
    pub fn coming(&mut self, division: &Division, weight: Arc<VersionedWeight>, noise: &'a Noise) -> u32 {
        let is_divided = !division.is_whole() || self.selector.sees_whole_windows();
        self.window(None, is_divided, weight, noise)
    }

    fn window(
        &mut self,
        window: Option<&'a OpenWindow>,
        is_divided: bool,
        weight: Arc<VersionedWeight>,
        noise: &'a Noise,
    ) -> u32 {
        self.windows.push(Destination {
            weight,
            noise,
            window,
            is_divided,
            n_records: 0,
            payload_bytes: 0,
            best: None,
            sampled: None,
        });
        self.windows.len() as u32 - 1
    }

    /// Where the next record of the batch will go.
    pub fn record(&mut self, window: Option<u32>, payload_bytes: u64) {
        if let Some(window) = window {
            let window = &mut self.windows[window as usize];
            window.n_records += 1;
            window.payload_bytes += payload_bytes;
            if window.n_records > self.most_selected + 1 && !window.is_divided {
                window.best.get_or_insert_with(|| Mutex::new(Reservoir::new(self.most_selected)));
            }
            let sample = self.selector.coverage_sample as usize;
            if window.n_records > sample + 1 {
                window.sampled.get_or_insert_with(|| Mutex::new(Reservoir::new(sample)));
            }
        }
        self.of_records.push(window);
    }
}

impl Destination<'_> {
    /// Depends on the batch alone, and decides only who counts.
    fn is_tallied(&self) -> bool {
        self.payload_bytes >= TALLY_BYTES_PER_BUCKET * u64::from(self.weight.weight.featuriser().buckets)
    }

    /// Whether a document may still be selected, as far as is known here. Which documents pass depends on the threads, what is
    /// selected does not: one that does not pass has enough better ones in its window.
    fn might_select(&self, selector: &SelectorSettings, offset: i64, score: &Score) -> bool {
        let key = selector.key(self.noise, offset, selector.total_log_weight(score, self.weight.weight.featuriser()));
        score.n_tokens >= selector.min_tokens
            && self.window.is_none_or(|window| window.might_select(key))
            && self.best.as_ref().is_none_or(|best| is_held(best, offset, key))
    }

    /// The same of the sample from which it is measured what the selection covers.
    fn might_sample(&self, selector: &SelectorSettings, offset: i64, score: &Score) -> bool {
        if selector.coverage_sample == 0 || score.n_tokens < selector.min_tokens {
            return false;
        }
        let number = self.noise.sampling(offset);
        self.window.is_none_or(|window| window.might_sample(number))
            && self.sampled.as_ref().is_none_or(|sampled| is_held(sampled, offset, number))
    }
}

/// Whether a record may be among the best of its batch, which are remembered.
fn is_held(best: &Mutex<Reservoir<()>>, offset: i64, key: f64) -> bool {
    let mut best = lock(best);
    let might_hold = best.might_hold(key);
    if might_hold {
        best.offer(offset, key, ());
    }
    might_hold
}

/// What came of a batch.
pub struct ScoredBatch {
    /// In order; `None` of those that are not ours to decide.
    pub records: Vec<Option<ScoredRecord>>,
    /// By record the number of its window, and by that number the weights that it was scored with.
    pub of_records: Vec<Option<u32>>,
    pub weights: Vec<Arc<VersionedWeight>>,
    /// By number of window: what the threads have counted of documents that say so.
    pub tallies: Vec<Vec<WindowTally>>,
}

/// Decodes and scores, with what its threads remember from batch to batch.
pub struct Scorer {
    decoder: Decoder,
    kept_payload_bytes: usize,
    filter: Option<Arc<DocumentFilter>>,
    tokenizer: Option<Arc<Tokenizer>>,
    schemas: Schemas,
    threads: Vec<Mutex<Thread>>,
    spare: Mutex<Vec<WindowTally>>,
}

struct Thread {
    text: TextScratch,
    features: Scratch,
    buckets: BucketList,
    points: PointScratch,
    /// By number of window.
    tallies: Vec<(u32, WindowTally)>,
}

impl Scorer {
    /// `kept_payload_bytes`: of a dead letter.
    pub fn new(decoder: Decoder, kept_payload_bytes: usize) -> Self {
        let thread = || Thread {
            text: TextScratch::default(),
            features: Scratch::default(),
            buckets: BucketList::new(0),
            points: PointScratch::default(),
            tallies: Vec::new(),
        };
        let threads = (0..rayon::current_num_threads()).map(|_| Mutex::new(thread())).collect();
        let schemas = Schemas::default();
        Scorer { decoder, kept_payload_bytes, filter: None, tokenizer: None, schemas, threads, spare: Mutex::default() }
    }

    /// The schemas that records name from now on, all of them.
    pub fn read_with(&mut self, schemas: Schemas) {
        self.schemas = schemas;
    }

    /// What documents must pass from now on.
    pub fn filter_by(&mut self, filter: Option<Arc<DocumentFilter>>) {
        self.filter = filter;
    }

    /// What counts the tokens of every document from now on; `None`: nobody asks for them.
    pub fn count_with(&mut self, tokenizer: Option<Arc<Tokenizer>>) {
        self.tokenizer = tokenizer;
    }

    /// In: a batch and the windows of its records. Out: what came of each record, in the same order, and the counts of their
    /// n-grams; the same decisions whatever the number of threads.
    pub fn score(&self, batch: &Batch, destinations: Destinations<'_>) -> ScoredBatch {
        let Destinations { selector, windows, of_records, .. } = destinations;
        let job = |number: u32| Job { scorer: self, selector, number, destination: &windows[number as usize] };
        let records = match &self.filter {
            None => {
                let score = |(i, number): (usize, &Option<u32>)| {
                    let (number, record, mut thread) = ((*number)?, batch.get(i), self.thread());
                    let mut text = std::mem::take(&mut thread.text);
                    let document = self.decode(&record, &mut text);
                    let scored = job(number).score(&record, document.as_ref(), &Verdict::Passes, &mut thread);
                    drop(document);
                    thread.text = text;
                    Some(scored)
                };
                of_records.par_iter().enumerate().with_min_len(16).map(score).collect()
            }
            Some(filter) => {
                let score = |(chunk, numbers): (usize, &[Option<u32>])| {
                    self.score_together(filter, batch, chunk * FILTER_RECORDS, numbers, job)
                };
                of_records.par_chunks(FILTER_RECORDS).enumerate().flat_map_iter(score).collect()
            }
        };
        let mut tallies: Vec<_> = windows.iter().map(|_| Vec::new()).collect();
        for (number, tally) in self.threads.iter().flat_map(|thread| std::mem::take(&mut lock(thread).tallies)) {
            tallies[number as usize].push(tally);
        }
        ScoredBatch { records, of_records, weights: windows.into_iter().map(|w| w.weight).collect(), tallies }
    }

    /// Records from the `first` of a batch on, which the filter looks at together.
    fn score_together<'a>(
        &self,
        filter: &DocumentFilter,
        batch: &Batch,
        first: usize,
        numbers: &[Option<u32>],
        job: impl Fn(u32) -> Job<'a>,
    ) -> Vec<Option<ScoredRecord>> {
        let mut thread = self.thread();
        let mut texts: Vec<_> = numbers.iter().map(|_| TextScratch::default()).collect();
        let decode = |((i, number), text): ((usize, &Option<u32>), _)| {
            let (number, record) = ((*number)?, batch.get(first + i));
            Some((number, record, self.decode(&record, text)))
        };
        let decoded: Vec<_> = numbers.iter().enumerate().zip(&mut texts).filter_map(decode).collect();
        let documents: Vec<_> = decoded.iter().filter_map(|(.., document)| document.as_ref().ok()).collect();
        let mut verdicts = filter.judge(&documents).into_iter();
        let mut scored = decoded.iter().map(|(number, record, document)| {
            let verdict = document.as_ref().map_or(Verdict::Passes, |_| verdicts.next().expect("one a document"));
            job(*number).score(record, document.as_ref(), &verdict, &mut thread)
        });
        numbers.iter().map(|number| number.and_then(|_| scored.next())).collect()
    }

    fn decode<'r>(&'r self, record: &Record<'r>, text: &'r mut TextScratch) -> Result<DocumentRef<'r>, Reject> {
        self.decoder.decode_record(record.raw(), &self.schemas, text)
    }

    /// Outside of the pool there is one thread, the caller's.
    fn thread(&self) -> MutexGuard<'_, Thread> {
        lock(&self.threads[rayon::current_thread_index().unwrap_or_default()])
    }

    /// Moves counts to their window.
    pub fn count(&self, tallies: Vec<WindowTally>, window: &mut OpenWindow) {
        for mut tally in tallies {
            window.add(&tally);
            tally.clear();
            let mut spare = lock(&self.spare);
            if spare.len() < 2 * self.threads.len() {
                spare.push(tally);
            }
        }
    }

    fn empty_tally(&self, buckets: usize) -> WindowTally {
        let spare = lock(&self.spare).pop().filter(|tally| tally.buckets() == buckets);
        spare.unwrap_or_else(|| WindowTally::zero(buckets))
    }
}

/// A thread that panicked has left nothing behind that another could not use: whoever waits for the batch panics, too.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A record on its way to its window.
struct Job<'a> {
    scorer: &'a Scorer,
    selector: &'a SelectorSettings,
    number: u32,
    destination: &'a Destination<'a>,
}

impl Job<'_> {
    fn score(
        &self,
        record: &Record<'_>,
        document: Result<&DocumentRef<'_>, &Reject>,
        verdict: &Verdict,
        thread: &mut Thread,
    ) -> ScoredRecord {
        let Record { offset, timestamp_ms, payload, .. } = *record;
        let payload_bytes = payload.map_or(0, <[u8]>::len) as u64;
        let outcome = match (document, verdict) {
            (Ok(document), Verdict::Passes) => Ok(self.document(document, None, thread)),
            (Ok(document), Verdict::Refused(by)) => Ok(self.document(document, Some(*by), thread)),
            (Ok(_), Verdict::Fails(reject)) => Err(reject.clone()),
            (Err(reject), _) => Err(reject.clone()),
        };
        let outcome = match outcome {
            Ok(document) => Ok(document),
            Err(reject) => Err(DeadLetter {
                offset,
                record_timestamp_ms: timestamp_ms,
                reject,
                payload_bytes,
                payload: payload.map(|p| p[..p.len().min(self.scorer.kept_payload_bytes)].to_vec()),
            }),
        };
        ScoredRecord { offset, record_timestamp_ms: timestamp_ms, payload_bytes, outcome }
    }

    fn document(&self, document: &DocumentRef<'_>, refused_by: Option<u16>, thread: &mut Thread) -> ScoredDocument {
        let Thread { features, buckets, points, tallies, .. } = thread;
        let Destination { weight, noise, .. } = self.destination;
        let featuriser = weight.weight.featuriser();
        let is_counted = self.destination.is_tallied();
        let mut tally = is_counted.then(|| {
            self.tally(featuriser.buckets as usize, tallies).of_document(document.offset, self.selector, noise)
        });
        // A long text's buckets are found again later: all together they could take more memory than is accounted for.
        let (is_long, is_one_chunk) =
            (document.text.len() > LONG_TEXT_BYTES, document.text.len() <= Featuriser::CHUNK_BYTES);
        buckets.begin(featuriser.buckets);
        let of_text = weight.score(&document.text, features, |chunk| {
            if !is_long && !is_one_chunk {
                buckets.extend(chunk);
            }
            if let Some(tally) = &mut tally {
                tally.add_buckets(chunk);
            }
        });
        let counted_tokens = self.scorer.tokenizer.as_ref().and_then(|tokenizer| tokenizer.count(&document.text));
        let score = Score { loss: document.loss, counted_tokens, ..of_text };
        let fields = self.selector.coverage.as_ref().map_or([None; 2], CoverageSelector::fields);
        let numbers = fields.map(|field| number(document, field, &self.scorer.decoder.fields));
        let kept = |buckets: &mut BucketList, features: &Scratch| {
            if is_one_chunk {
                buckets.extend(features.last_chunk());
            }
            (!is_long).then(|| buckets.clone())
        };
        // What is not counted yet, nor kept as buckets, must be found in the text. The sample is of candidates: whoever is none must
        // not take the place of one in the batch.
        let lacks = self.selector.coverage.as_ref().is_some_and(|coverage| coverage.lacks(&numbers));
        let is_candidate = refused_by.is_none() && score.n_tokens >= self.selector.min_tokens;
        let sensitivity = self.selector.sensitivity.as_ref().filter(|_| is_candidate);
        let field = sensitivity.and_then(|sensitivity| sensitivity.embedding.as_ref());
        let given = field.and_then(|field| embedding_of(document, field));
        let lacks = lacks || (field.is_some() && given.is_none());
        let is_sampled =
            refused_by.is_none() && !lacks && self.destination.might_sample(self.selector, document.offset, &score);
        let might_select =
            refused_by.is_none() && self.destination.might_select(self.selector, document.offset, &score);
        if (is_long && !is_counted) || might_select {
            // Documents that wait outside of their window leave their buckets behind.
            let waits = self.selector.coverage.is_some() && is_counted && !is_sampled && weight.others.is_empty();
            let buckets = if waits { None } else { kept(buckets, features) };
            let content = Content::Whole(document.to_document());
            let other_weights = weight.for_others(&document.text, buckets.as_ref(), features);
            let fingerprint =
                is_sampled.then(|| Fingerprint::of(buckets.as_ref(), &document.text, featuriser, features));
            let projected = sensitivity.filter(|_| field.is_none()).map(|_| match &buckets {
                Some(buckets) => Projection::OF_TEXTS.of_list(buckets, points),
                None => Projection::OF_TEXTS.of_text(&document.text, featuriser, features),
            });
            return ScoredDocument {
                content,
                score,
                other_weights,
                numbers,
                point: given.or(projected),
                buckets,
                is_counted,
                refused_by,
                fingerprint,
            };
        }
        let source = document.source.as_deref().map(str::to_owned);
        let buckets = if is_counted && !is_sampled { None } else { kept(buckets, features) };
        let fingerprint = is_sampled.then(|| Fingerprint::of(buckets.as_ref(), &document.text, featuriser, features));
        ScoredDocument {
            content: Content::PassedOver { source },
            score,
            other_weights: Vec::new(),
            numbers,
            point: None,
            buckets: buckets.filter(|_| !is_counted),
            is_counted,
            refused_by,
            fingerprint,
        }
    }

    fn tally<'t>(&self, buckets: usize, tallies: &'t mut Vec<(u32, WindowTally)>) -> &'t mut WindowTally {
        let place = tallies.iter().rposition(|(number, _)| *number == self.number).unwrap_or_else(|| {
            tallies.push((self.number, self.scorer.empty_tally(buckets)));
            tallies.len() - 1
        });
        &mut tallies[place].1
    }
}

/// A number that came with the document; NaN where there is none, or where none is wanted. As in files, other values than
/// numbers count as none, and a field that stands twice as it stands last.
fn number(document: &DocumentRef<'_>, field: Option<&str>, names: &FieldNames) -> f64 {
    let Some(field) = field else { return f64::NAN };
    // Losses are no members: the decoder has taken them.
    let given = if Some(field) == names.loss.as_deref() {
        document.given_losses[0]
    } else if Some(field) == names.reference_loss.as_deref() {
        document.given_losses[1]
    } else {
        let value = document.members.iter().rev().find(|(name, _)| name == field);
        value.and_then(|(_, json)| serde_json::from_str(json).ok())
    };
    given.unwrap_or(f64::NAN)
}

/// The embedding that came with the document. A field that stands twice counts as it stands last.
fn embedding_of(document: &DocumentRef<'_>, EmbeddingField { field, base64 }: &EmbeddingField) -> Option<Vec<f32>> {
    let (_, json) = document.members.iter().rev().find(|(name, _)| name == field)?;
    embedding(json, *base64)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::config::Config;
    use crate::features::Featuriser;
    use crate::record::{Parts, RejectReason, TopicPartition};
    use crate::score::{ImportanceWeight, Model, NgramCounts, Side, Target, TargetDistribution, WeightVersion};
    use crate::select::{FilterSettings, Quotas};
    use crate::window::{CloseReason, ClosedWindow, SpooledRow};

    struct Setting {
        config: Config,
        weight: Arc<VersionedWeight>,
        target: TargetDistribution,
        division: Arc<Division>,
        at: [TopicPartition; 2],
        /// Partition and payload; offsets count up in each partition.
        records: Vec<(usize, Option<Vec<u8>>)>,
    }

    /// For one target, or for two with a share for one of the sources.
    fn setting(buckets: u32, is_divided: bool) -> Setting {
        // So that forty may be selected of a window.
        let toml = "model.path = \"none\"\ndocuments.loss_field = \"loss\"\nwindow.max_documents = 400\n[selection]\nfraction = 0.1\nmin_tokens = 3\ncoverage_sample = 10\n\
                    loss_coefficient = 2\nloss_low = 0\nloss_high = 6";
        let config = Config::from_toml(toml, []).unwrap();
        let featuriser = Featuriser { buckets, ..Featuriser::default() };
        let side = |text: &str| {
            let mut counts = NgramCounts::zero(buckets as usize);
            counts.add_text(text, &featuriser, &mut Scratch::default());
            Side::of(counts)
        };
        let one = Model::of_one_target(featuriser, side("good words only"), side("bad noise good words")).unwrap();
        let (model, sources) = if is_divided {
            let target = |name: &str, text| Target { name: name.to_owned(), proportion: 0.5, side: side(text) };
            let targets = vec![target("a", "good words only"), target("b", "bad bad words 3")];
            (Model { targets, ..one }, [("s1".to_owned(), 0.5)].into())
        } else {
            (one, [].into())
        };
        let payload = |i: usize| match i {
            50 => Some(b"{\"text\":".to_vec()),
            60 => None,
            _ => {
                let n = if i == 70 { LONG_TEXT_BYTES / 4 } else { i % 23 };
                let text = format!("good {} words {}", "bad ".repeat(n), i % 7);
                let (source, loss) = (format!("s{}", i % 3), i % 7);
                let hard = if i.is_multiple_of(11) { "unknown".into() } else { serde_json::json!(i * i % 101) };
                let mut embedding = vec![i % 5, i % 9, i % 2];
                embedding.resize(if i.is_multiple_of(11) { 0 } else { 3 + usize::from(i.is_multiple_of(29)) }, i);
                let document = serde_json::json!({
                    "text": text, "source": source, "loss": loss, "hard": hard, "embedding": embedding,
                });
                Some(document.to_string().into_bytes())
            }
        };
        Setting {
            config,
            weight: VersionedWeight::of_targets(WeightVersion::default(), ImportanceWeight::of_targets(&model), None),
            target: model.target_distribution(),
            division: Arc::new(Division::of(&Quotas { sources, ..Quotas::default() }, &model)),
            at: [0, 1].map(|partition| TopicPartition::new("docs", partition)),
            records: (0..400).map(|i| (usize::from(i % 5 == 0), payload(i))).collect(),
        }
    }

    impl Setting {
        /// The window of each partition, decided from batches of so many records; also how many came without their document.
        fn decide(&self, batch_records: usize) -> (Vec<ClosedWindow>, usize) {
            let Config { selector, window: policy, decoder, .. } = &self.config;
            let buckets = self.target.featuriser().buckets as usize;
            let open = |at: &TopicPartition| OpenWindow::new(at.clone(), 0, policy, selector, &self.division, buckets);
            let mut windows: Vec<_> = self.at.iter().map(open).collect();
            let noises: Vec<_> = self.at.iter().map(|at| Noise::new(selector.seed, at)).collect();
            let mut scorer = Scorer::new(decoder.clone(), 5);
            let compile = |filter| Arc::new(DocumentFilter::compile(filter).unwrap());
            scorer.filter_by(selector.filter.as_ref().map(compile));
            let (mut next, mut n_passed_over) = ([0, 0], 0);
            let mut spools = [Vec::new(), Vec::new()];
            for records in self.records.chunks(batch_records) {
                let mut batch = Batch::default();
                for (partition, payload) in records {
                    let (at, offset, payload) = (&self.at[*partition], next[*partition], payload.as_deref());
                    batch.push(Record {
                        at,
                        owner_epoch: 1,
                        offset,
                        timestamp_ms: Some(1),
                        payload,
                        parts: Parts::default(),
                    });
                    next[*partition] += 1;
                }
                let mut destinations = Destinations::new(selector, policy, &batch);
                let number = |(window, noise)| destinations.open(window, self.weight.clone(), noise);
                let numbers: Vec<_> = windows.iter().zip(&noises).map(number).collect();
                let number_of = |at: &TopicPartition| numbers[at.partition as usize];
                // Nobody decides the first record, as if its partition had been given up.
                let is_ours = |i: usize| i > 0 || next[0] + next[1] > batch.len() as i64;
                (0..batch.len()).for_each(|i| {
                    destinations.record(is_ours(i).then(|| number_of(batch.get(i).at)), batch.payload_bytes(i));
                });
                let scored = scorer.score(&batch, destinations);
                for (window, counts) in windows.iter_mut().zip(scored.tallies) {
                    scorer.count(counts, window);
                }
                for (i, record) in scored.records.into_iter().enumerate() {
                    let Some(record) = record else { continue };
                    let is_over = |d: &ScoredDocument| matches!(d.content, Content::PassedOver { .. });
                    n_passed_over += usize::from(record.outcome.as_ref().is_ok_and(is_over));
                    let partition = batch.get(i).at.partition as usize;
                    spools[partition].extend(windows[partition].push(
                        record,
                        &self.weight,
                        selector,
                        &noises[partition],
                    ));
                }
            }
            let close = |((mut window, noise), spool): ((OpenWindow, &Noise), Vec<SpooledRow>)| {
                let points = |numbers: &[u32], look: &mut dyn FnMut(&Score, &[f32])| -> Result<(), Infallible> {
                    numbers.iter().map(|number| &spool[*number as usize]).for_each(|row| look(&row.score, &row.point));
                    Ok(())
                };
                let Ok(()) = window.place(selector, noise, points);
                let mut kept = Vec::new();
                let rows = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
                    kept = numbers.iter().map(|number| spool[*number as usize].clone()).collect();
                    kept.iter().for_each(look);
                    Ok(())
                };
                let Ok(mut closed) = window.close_with(CloseReason::Idle, selector, noise, &self.target, rows);
                let waited = closed.waiting.iter().zip(kept).map(|(decision, row)| decision.of(row, selector));
                closed.selected.extend(waited);
                closed
            };
            (windows.into_iter().zip(&noises).zip(spools).map(close).collect(), n_passed_over)
        }
    }

    fn check(setting: &Setting) {
        let (expected, _) = setting.decide(1);
        assert_eq!(expected[1].summary.n_records, 79, "the first record is nobody's");
        let letters: Vec<_> = expected[1].dead_letters.iter().map(|letter| letter.payload.clone()).collect();
        assert_eq!(letters, [Some(b"{\"tex".to_vec()), None]);
        let is_measured = |window: &ClosedWindow| window.summary.spread.is_some_and(|spread| spread.n_sampled > 8);
        assert!(
            expected.iter().all(is_measured),
            "{:?}",
            expected.iter().map(|w| w.summary.spread).collect::<Vec<_>>()
        );
        for batch_records in [3, 40, 150, 400] {
            let (found, n_passed_over) = setting.decide(batch_records);
            let is_whole = setting.division.is_whole() && !setting.config.selector.sees_whole_windows();
            let is_expected = if is_whole { n_passed_over > 100 } else { n_passed_over == 0 };
            assert!(is_expected, "{n_passed_over} of 400");
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.summary, expected.summary);
                assert_eq!((&found.selected, &found.dead_letters), (&expected.selected, &expected.dead_letters));
                assert_eq!(found.raw_counts, expected.raw_counts);
                assert_eq!(found.selected_counts, expected.selected_counts);
                assert_eq!(found.sources.top(9), expected.sources.top(9));
            }
        }
    }

    /// Batches of one record are counted by the window, larger ones by the threads.
    #[test]
    fn windows_are_the_same_whatever_the_batches() {
        check(&setting(64, false));
    }

    /// Whom the filter refuses is counted and not selected; of whom it cannot be told is a dead letter.
    #[test]
    fn also_where_a_filter_refuses_some() {
        for (buckets, is_divided) in [(64, false), (1 << 16, true)] {
            let mut setting = setting(buckets, is_divided);
            let (all, _) = setting.decide(7);
            let sql = "source <> 's1' AND 12 / (n_bytes - 13) < 9".to_owned();
            setting.config.selector.filter = Some(FilterSettings { sql, fields: [].into() });
            let (expected, _) = setting.decide(1);
            for batch_records in [7, 150, 400] {
                let (found, _) = setting.decide(batch_records);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.summary, expected.summary);
                    assert_eq!((&found.selected, &found.dead_letters), (&expected.selected, &expected.dead_letters));
                    assert_eq!(found.raw_counts, expected.raw_counts);
                }
            }
            // Texts of thirteen bytes ("good  words 5") are divided by zero, but for those of the source that is refused before.
            let failed = |w: &ClosedWindow| {
                let is_failure = |letter: &&DeadLetter| letter.reject.reason == RejectReason::FilterFailed;
                w.dead_letters.iter().filter(is_failure).count() as u64
            };
            let n_failed = failed(&expected[0]) + failed(&expected[1]);
            let is_one = |i: &usize| i.is_multiple_of(23) && i % 3 != 1;
            assert_eq!(n_failed, (1..400).filter(is_one).count() as u64);
            for (window, all) in expected.iter().zip(&all) {
                assert_eq!(window.summary.n_records, all.summary.n_records);
                assert!(window.summary.n_selected > 5, "{}", window.summary.n_selected);
                assert!(window.selected.iter().all(|row| row.document.source.as_deref() != Some("s1")));
                let (total, of_all) = (window.raw_counts.total(), all.raw_counts.total());
                assert!(
                    total < of_all && total > of_all / 2,
                    "only those that failed are not counted: {total} of {of_all}"
                );
            }
        }
    }

    /// So many buckets that the windows count all, the long text again from its bytes.
    #[test]
    fn also_where_nothing_is_counted_by_the_threads() {
        check(&setting(1 << 16, false));
    }

    /// Which of several targets may want a document is not known before it is offered: none is passed over.
    #[test]
    fn also_where_targets_and_sources_divide_them() {
        check(&setting(64, true));
        check(&setting(1 << 16, true));
    }

    /// So do these, by what stands in for embeddings, and by embeddings that some lack.
    #[test]
    fn also_where_they_are_drawn_by_sensitivity() {
        for (buckets, embedding) in [(64, ""), (1 << 16, ""), (64, "embedding_field = \"embedding\"")] {
            let mut setting = setting(buckets, false);
            let toml = format!(
                "model.path = \"none\"\ndocuments.loss_field = \"loss\"\n[selection]\nselector = \"sensitivity\"\n\
                 centres = 5\n{embedding}"
            );
            setting.config.selector.sensitivity = Config::from_toml(&toml, []).unwrap().selector.sensitivity;
            check(&setting);
            let (windows, _) = setting.decide(40);
            for ClosedWindow { summary, selected, .. } in &windows {
                let sensitivity = summary.sensitivity.as_ref().unwrap();
                assert!(selected.len() as u64 == summary.n_selected && summary.n_selected > 5);
                assert_eq!((sensitivity.n_centres, sensitivity.losses), (5, crate::select::LossSource::Record));
                let is_embedded = !embedding.is_empty();
                assert_eq!(sensitivity.dimensions, if is_embedded { 3 } else { 128 });
                assert_eq!(sensitivity.n_without_embedding > 5, is_embedded, "{sensitivity:?}");
                assert_eq!(sensitivity.n_other_dimensions > 1, is_embedded, "{sensitivity:?}");
            }
        }
    }

    /// Documents that wait elsewhere, by a number of the record and by its loss, with and without targets and shares.
    #[test]
    fn also_where_they_are_spread_over_strata() {
        for (buckets, is_divided, importance) in [(64, false, "loss"), (1 << 16, true, "hard"), (64, true, "loss")] {
            let mut setting = setting(buckets, is_divided);
            let toml = format!(
                "model.path = \"none\"\ndocuments.loss_field = \"loss\"\n[selection]\nselector = \"coverage\"\nimportance = \"{importance}\"\n\
                 strata = 4\ncutoff = 0.1\ncutoff_field = \"hard\""
            );
            setting.config.selector.coverage = Config::from_toml(&toml, []).unwrap().selector.coverage;
            check(&setting);
            let (windows, _) = setting.decide(40);
            for ClosedWindow { summary, selected, waiting, .. } in &windows {
                let coverage = summary.coverage.as_ref().unwrap();
                assert!(!selected.is_empty() && selected.len() == waiting.len() && coverage.n_cut > 0);
                // Records 50 and 60 are none; every eleventh has no number.
                assert!(coverage.n_without_number >= 6, "{coverage:?}");
                let strata = coverage.pools.iter().flat_map(|pool| &pool.strata);
                assert_eq!(strata.map(|stratum| stratum.n_selected).sum::<u64>(), summary.n_selected);
            }
        }
    }
}
