//! Random schedules of claims, publications, crashes, zombies, lost answers and collections of orphans, driven by
//! [`crate::publish`] as the daemon is. A model in memory says what every catalog must answer; the promises are checked on
//! it after every call.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::publish::{Event, Publication, Step};

const WORKERS: usize = 3;
const PARTITIONS: i32 = 3;
const START: i64 = 100;

/// What happens next.
#[derive(Debug, Clone)]
enum Act {
    /// A worker takes partitions over, one a bit, whoever has them; the one before does not learn of it.
    Claim { worker: usize, partitions: u8 },
    /// It closes windows over the partitions it thinks it owns, and begins to publish them, unless it is at it already.
    Close { worker: usize, partitions: u8, documents: i64, selected: bool },
    /// One step of its publication.
    Step { worker: usize, luck: Luck },
    /// A COMMIT that hung somewhere arrives at last.
    Land { worker: usize },
    /// It dies and forgets everything.
    Crash { worker: usize },
    /// `winnowd gc`, with no grace.
    Collect,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Luck {
    Good,
    /// The step is not carried out, and the worker knows.
    Refused,
    /// It is carried out and the answer is lost.
    AnswerLost,
    /// No answer; a COMMIT may be carried out later.
    Hangs,
}

fn act() -> impl Strategy<Value = Act> {
    let worker = || 0..WORKERS;
    let partitions = || 1u8..(1 << PARTITIONS);
    let luck = prop_oneof![6 => Just(Luck::Good), 1 => Just(Luck::Refused), 2 => Just(Luck::AnswerLost), 2 => Just(Luck::Hangs)];
    prop_oneof![
        3 => (worker(), partitions()).prop_map(|(worker, partitions)| Act::Claim { worker, partitions }),
        5 => (worker(), partitions(), 1i64..5, any::<bool>()).prop_map(|(worker, partitions, documents, selected)| {
            Act::Close { worker, partitions, documents, selected }
        }),
        16 => (worker(), luck).prop_map(|(worker, luck)| Act::Step { worker, luck }),
        2 => worker().prop_map(|worker| Act::Land { worker }),
        2 => worker().prop_map(|worker| Act::Crash { worker }),
        1 => Just(Act::Collect),
    ]
}

/// What is asked of a catalog.
#[derive(Debug, Clone)]
enum Call {
    Claim(Vec<i32>),
    Start { partition: i32, epoch: i64 },
    Stage { shard: String, has_rows: bool },
    Publish(Box<Shard>),
    State(String),
    Abandon,
}

/// One publication.
#[derive(Debug, Clone)]
struct Shard {
    manifest: ShardManifest,
    advances: Vec<Advance>,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Claims(Vec<(i64, Option<i64>)>),
    Offset(i64),
    Done,
    Published(Option<i64>),
    Fenced,
    NotStaged,
    State(Option<ShardState>),
    /// Abandoned now or before.
    Orphans(BTreeSet<String>),
}

/// What a catalog is, in the plainest form, and the store beside it.
#[derive(Debug, Default)]
struct Model {
    /// Next offset and owner epoch.
    checkpoints: BTreeMap<i32, (Option<i64>, i64)>,
    shards: BTreeMap<String, ShardState>,
    orphans: BTreeSet<String>,
    /// By partition, in order of publication.
    windows: BTreeMap<i32, Vec<Interval>>,
    published: Vec<ShardManifest>,
    n_sequence: i64,
    objects: BTreeSet<String>,
    /// A worker went away in the belief that this was not published.
    given_up: BTreeSet<String>,
}

impl Model {
    fn answer(&mut self, call: &Call) -> Answer {
        match call {
            Call::Claim(partitions) => {
                let mut claim = |partition: &i32| {
                    let checkpoint = self.checkpoints.entry(*partition).or_default();
                    checkpoint.1 += 1;
                    (checkpoint.1, checkpoint.0)
                };
                Answer::Claims(partitions.iter().map(&mut claim).collect())
            }
            Call::Start { partition, epoch } => match self.checkpoints.get_mut(partition) {
                Some((next, owner)) if owner == epoch => Answer::Offset(*next.get_or_insert(START)),
                _ => Answer::Fenced,
            },
            Call::Stage { shard, .. } => {
                self.shards.entry(shard.clone()).or_insert(ShardState::Staged);
                Answer::Done
            }
            Call::Publish(shard) => self.publish(shard),
            Call::State(shard) => Answer::State(self.shards.get(shard).copied()),
            Call::Abandon => {
                let staged = self.shards.iter().filter(|(_, state)| **state == ShardState::Staged);
                let staged: Vec<String> = staged.map(|(shard, _)| shard.clone()).collect();
                for shard in staged {
                    self.shards.remove(&shard);
                    self.orphans.insert(shard);
                }
                Answer::Orphans(self.orphans.clone())
            }
        }
    }

    fn publish(&mut self, Shard { manifest, advances }: &Shard) -> Answer {
        let ours = |a: &Advance| self.checkpoints[&a.at.partition] == (Some(a.interval.from), a.owner_epoch);
        if !advances.iter().all(ours) {
            return Answer::Fenced;
        }
        let is_staged = self.shards.get(&manifest.shard) == Some(&ShardState::Staged);
        // Staged once more by a worker that had not heard the answer, after it had been abandoned.
        if !is_staged || self.orphans.contains(&manifest.shard) {
            return Answer::NotStaged;
        }
        for advance in advances {
            self.checkpoints.entry(advance.at.partition).or_default().0 = Some(advance.interval.to);
            self.windows.entry(advance.at.partition).or_default().push(advance.interval);
        }
        self.shards.insert(manifest.shard.clone(), ShardState::Published);
        self.published.push(manifest.clone());
        self.n_sequence += i64::from(manifest.path.is_some());
        Answer::Published(manifest.path.is_some().then_some(self.n_sequence))
    }

    /// The promises.
    fn check(&self) {
        for (partition, windows) in &self.windows {
            let mut next = START;
            for window in windows {
                assert_eq!(window.from, next, "partition {partition}: windows follow one another");
                next = window.to;
            }
            assert_eq!(self.checkpoints[partition].0, Some(next), "partition {partition}: the checkpoint follows them");
        }
        for manifest in &self.published {
            let shard = &manifest.shard;
            assert!(manifest.path.is_none() || self.objects.contains(shard), "{shard} is published without its object");
            assert!(!self.orphans.contains(shard), "{shard} is published and an orphan");
            assert!(!self.given_up.contains(shard), "{shard} was given up and is published");
        }
    }
}

/// A worker as the catalog sees it.
#[derive(Debug, Default)]
struct WorkerState {
    /// Epoch and next offset of the partitions it thinks it owns.
    owned: BTreeMap<i32, (i64, i64)>,
    publishing: Option<(Publication, Shard)>,
    /// COMMITs without an answer that may still happen. They survive the worker.
    hanging: Vec<Shard>,
}

/// A schedule under way: on the model, and on a catalog beside it.
struct Run<'a> {
    catalog: Option<&'a SqlCatalog>,
    pipeline: String,
    model: Model,
    workers: [WorkerState; WORKERS],
    n_shards: usize,
}

impl Run<'_> {
    async fn call(&mut self, call: Call) -> Answer {
        let expected = self.model.answer(&call);
        if let Some(catalog) = self.catalog {
            assert_eq!(ask(catalog, &self.pipeline, &call).await, expected, "{call:?}");
        }
        self.model.check();
        expected
    }

    async fn act(&mut self, act: &Act) {
        match *act {
            Act::Claim { worker, partitions } => self.claim(worker, &bits(partitions)).await,
            Act::Close { worker, partitions, documents, selected } => {
                self.close(worker, &bits(partitions), documents, selected);
            }
            Act::Step { worker, luck } => self.step(worker, luck).await,
            Act::Land { worker } => {
                if let Some(shard) = self.workers[worker].hanging.pop() {
                    self.call(Call::Publish(Box::new(shard))).await;
                }
            }
            Act::Crash { worker } => {
                let hanging = std::mem::take(&mut self.workers[worker].hanging);
                self.workers[worker] = WorkerState { hanging, ..WorkerState::default() };
            }
            Act::Collect => {
                let Answer::Orphans(orphans) = self.call(Call::Abandon).await else { unreachable!() };
                self.model.objects.retain(|object| !orphans.contains(object));
                self.model.check();
            }
        }
    }

    async fn claim(&mut self, worker: usize, partitions: &[i32]) {
        let Answer::Claims(claims) = self.call(Call::Claim(partitions.to_vec())).await else { unreachable!() };
        // A new session: what it was at is dropped.
        self.workers[worker].publishing = None;
        for (&partition, (epoch, next)) in partitions.iter().zip(claims) {
            let next = match next {
                Some(next) => next,
                None => match self.call(Call::Start { partition, epoch }).await {
                    Answer::Offset(offset) => offset,
                    other => panic!("{other:?}"),
                },
            };
            self.workers[worker].owned.insert(partition, (epoch, next));
        }
    }

    fn close(&mut self, worker: usize, partitions: &[i32], documents: i64, selected: bool) {
        let state = &mut self.workers[worker];
        let owned: Vec<_> = partitions.iter().filter_map(|p| Some((*p, *state.owned.get(p)?))).collect();
        if state.publishing.is_some() || owned.is_empty() {
            return;
        }
        self.n_shards += 1;
        let (mut advances, mut windows) = (Vec::new(), Vec::new());
        for (partition, (epoch, from)) in owned {
            let to = from + documents;
            advances.push(advance(partition, from, to, epoch));
            windows.push(window(partition, from, to, u64::from(selected)));
            state.owned.insert(partition, (epoch, to));
        }
        let shard = format!("{}-{}", self.pipeline, self.n_shards);
        let manifest = ShardManifest { pipeline: self.pipeline.clone(), ..manifest(&shard, windows) };
        state.publishing = Some((Publication::new(selected), Shard { manifest, advances }));
    }

    async fn step(&mut self, worker: usize, luck: Luck) {
        let Some((mut publication, shard)) = self.workers[worker].publishing.take() else { return };
        let id = shard.manifest.shard.clone();
        let event = match (publication.step(), luck) {
            (Step::Finished | Step::Abandon, _) => unreachable!("ended below"),
            (Step::Commit, Luck::Hangs) => {
                self.workers[worker].hanging.push(shard.clone());
                Event::CommitUnknown
            }
            (_, Luck::Refused | Luck::Hangs) => Event::Failed,
            (Step::Stage, luck) => {
                let has_rows = shard.manifest.path.is_some();
                match self.call(Call::Stage { shard: id.clone(), has_rows }).await {
                    _ if luck == Luck::AnswerLost => Event::Failed,
                    Answer::Done => Event::Staged,
                    other => panic!("{other:?}"),
                }
            }
            (Step::Upload, luck) => {
                self.model.objects.insert(id.clone());
                if luck == Luck::Good { Event::Uploaded } else { Event::Failed }
            }
            (Step::Commit, luck) => match self.call(Call::Publish(Box::new(shard.clone()))).await {
                _ if luck == Luck::AnswerLost => Event::CommitUnknown,
                Answer::Published(_) => Event::Committed,
                Answer::Fenced | Answer::NotStaged => Event::Fenced,
                other => panic!("{other:?}"),
            },
            (Step::ReadBack, luck) => match self.call(Call::State(id.clone())).await {
                _ if luck == Luck::AnswerLost => Event::Failed,
                Answer::State(Some(ShardState::Published)) => Event::FoundPublished,
                Answer::State(_) => Event::FoundStaged,
                other => panic!("{other:?}"),
            },
        };
        publication.observe(event);
        match publication.step() {
            Step::Finished => assert_eq!(self.model.shards.get(&id), Some(&ShardState::Published), "{id}: finished"),
            Step::Abandon => {
                // It begins again at the checkpoints, with a new claim.
                self.model.given_up.insert(id);
                self.workers[worker].owned.clear();
                self.model.check();
            }
            _ => self.workers[worker].publishing = Some((publication, shard)),
        }
    }

    /// Whatever happened: somebody who starts now gets on.
    async fn recover(&mut self) {
        let all: Vec<i32> = (0..PARTITIONS).collect();
        self.claim(0, &all).await;
        self.close(0, &all, 2, true);
        let before = self.model.published.len();
        for _ in 0..3 {
            self.step(0, Luck::Good).await;
        }
        assert_eq!(self.model.published.len(), before + 1, "a new worker publishes");
        // What still hangs somewhere finds itself fenced.
        while let Some(shard) = self.workers.iter_mut().find_map(|worker| worker.hanging.pop()) {
            assert_ne!(self.call(Call::Publish(Box::new(shard))).await, Answer::Published(Some(self.model.n_sequence)));
        }
        if let Some(catalog) = self.catalog {
            self.compare(catalog).await;
        }
    }

    async fn compare(&self, catalog: &SqlCatalog) {
        let checkpoints = catalog.checkpoints(&self.pipeline).await.unwrap();
        let checkpoints: BTreeMap<_, _> =
            checkpoints.into_iter().map(|c| (c.partition, (c.next_offset, c.owner_epoch))).collect();
        assert_eq!(checkpoints, self.model.checkpoints);
        let mut windows: BTreeMap<i32, Vec<Interval>> = BTreeMap::new();
        for window in catalog.windows(&self.pipeline).await.unwrap() {
            windows.entry(window.at.partition).or_default().push(window.interval);
        }
        assert_eq!(windows, self.model.windows);
        let shards = catalog.shards(&self.pipeline).await.unwrap();
        let expected: Vec<_> = self.model.published.iter().filter(|m| m.path.is_some()).cloned().collect();
        assert_eq!(shards, (1..).zip(expected).collect::<Vec<_>>());
        let totals = catalog.totals(&self.pipeline).await.unwrap().unwrap();
        assert_eq!(totals.n_windows as usize, windows.values().map(Vec::len).sum::<usize>());
    }
}

async fn ask(catalog: &SqlCatalog, pipeline: &str, call: &Call) -> Answer {
    match call {
        Call::Claim(partitions) => {
            let partitions: Vec<_> = partitions.iter().map(|p| at(*p)).collect();
            let claims = catalog.claim(pipeline, &partitions, "me").await.unwrap();
            Answer::Claims(claims.iter().map(|claim| (claim.owner_epoch, claim.next_offset)).collect())
        }
        Call::Start { partition, epoch } => match catalog.start(pipeline, &at(*partition), *epoch, START).await {
            Ok(offset) => Answer::Offset(offset),
            Err(CatalogError::Fenced { .. }) => Answer::Fenced,
            Err(e) => panic!("{e}"),
        },
        Call::Stage { shard, has_rows } => {
            let path = format!("shards/{shard}.parquet");
            catalog.stage(pipeline, shard, has_rows.then_some(path.as_str())).await.unwrap();
            Answer::Done
        }
        Call::Publish(shard) => {
            let (manifest, advances) = (&shard.manifest, &shard.advances[..]);
            match catalog
                .publish(&PublishRequest {
                    manifest,
                    advances,
                    counts: &[],
                    feedback: None,
                    clusters: None,
                    edges: None,
                    forward_to: None,
                })
                .await
            {
                Ok(sequence) => Answer::Published(sequence),
                Err(CatalogError::Fenced { .. }) => Answer::Fenced,
                Err(CatalogError::NotStaged(_)) => Answer::NotStaged,
                Err(e) => panic!("{e}"),
            }
        }
        Call::State(shard) => Answer::State(catalog.shard_state(shard).await.unwrap()),
        Call::Abandon => {
            let orphans = catalog.abandon(pipeline, i64::MAX).await.unwrap();
            Answer::Orphans(orphans.into_iter().map(|orphan| orphan.shard).collect())
        }
    }
}

fn bits(set: u8) -> Vec<i32> {
    (0..PARTITIONS).filter(|p| set & (1 << p) != 0).collect()
}

/// Runs `cases` schedules, or as many as `PROPTEST_CASES` says.
fn every_schedule(cases: u32, catalog: Option<&SqlCatalog>) {
    let runtime = tokio::runtime::Handle::current();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let mut n = 0;
    let n = std::cell::RefCell::new(&mut n);
    let outcome = runner.run(&proptest::collection::vec(act(), 1..80), |acts| {
        **n.borrow_mut() += 1;
        let pipeline = format!("p{}", n.borrow());
        let run = async {
            if let Some(catalog) = catalog {
                catalog.register(&pipeline, &model_id(), b"model").await.unwrap();
            }
            let (model, workers) = (Model::default(), Default::default());
            let mut run = Run { catalog, pipeline, model, workers, n_shards: 0 };
            for act in &acts {
                run.act(act).await;
            }
            run.recover().await;
        };
        runtime.block_on(run);
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_schedule_keeps_the_promises_on_the_model() {
    tokio::task::block_in_place(|| every_schedule(4000, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_schedule_is_answered_by_sqlite_as_by_the_model() {
    let subject = sqlite().await.unwrap();
    tokio::task::block_in_place(|| every_schedule(200, Some(&subject.catalog)));
    subject.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_schedule_is_answered_by_postgres_as_by_the_model() {
    let Some(subject) = postgres().await else { return };
    tokio::task::block_in_place(|| every_schedule(200, Some(&subject.catalog)));
    subject.end().await;
}
