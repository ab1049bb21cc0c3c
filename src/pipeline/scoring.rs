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
        let quotas = &self.selector.quotas;
        let pool = quotas.field.as_deref().map(|field| quotas.pool_of(document.word(field).as_deref()));
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
            let is_projected = sensitivity.is_some() && field.is_none();
            // Documents that wait outside of their window leave their buckets behind, but for what is still to be made of them.
            let waits = self.selector.sees_whole_windows() && is_counted;
            let are_asked_for = is_sampled || is_projected || !weight.others.is_empty();
            let buckets = if waits && !are_asked_for { None } else { kept(buckets, features) };
            let content = Content::Whole(document.to_document());
            let other_weights = weight.for_others(&document.text, buckets.as_ref(), features);
            let fingerprint =
                is_sampled.then(|| Fingerprint::of(buckets.as_ref(), &document.text, featuriser, features));
            let projected = is_projected.then(|| match &buckets {
                Some(buckets) => Projection::OF_TEXTS.of_list(buckets, points),
                None => Projection::OF_TEXTS.of_text(&document.text, featuriser, features),
            });
            return ScoredDocument {
                content,
                score,
                other_weights,
                numbers,
                pool,
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
            pool,
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
mod tests;
