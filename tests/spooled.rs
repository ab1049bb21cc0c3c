//! The daemon with strata, whose documents wait on disk until their window is decided: every window is what the definition says,
//! document by document, whatever dies; a small disk, a window much larger than the memory; edges of the stream, with which nothing waits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use support::*;
use winnowd::catalog::{Access, CatalogReader, EdgesCatalog, SqlCatalog};
use winnowd::features::Scratch;
use winnowd::manifest::ShardManifest;
use winnowd::record::TopicPartition;
use winnowd::score::{ImportanceWeight, Model};
use winnowd::select::{Division, EdgeSketches, EdgeTally, EdgesVersion, Noise, QuantileSketch};
use winnowd::window::{CloseReason, WindowSummary};

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: u64 = 4;
const STRATA: usize = 8;
const SEED: u64 = 7;

const COVERAGE: &str = "selection.selector = \"coverage\"\nselection.importance = \"hard\"\nselection.strata = 8\n\
                        selection.clip = 0\nselection.cutoff = 0.1";

/// Most are easy. To sixteenths, so that what is computed from it in any way is exact; one in thirteen has none.
fn hard(n: u64) -> Option<f64> {
    let uniform = Random::new(n ^ 0x4A12).below(1 << 20) as f64 / (1 << 20) as f64;
    (n % 13 != 5).then(|| (-(1.0 - uniform).ln() * 48.0).round() / 16.0)
}

/// Words that make weights, and as many that hardly compress.
fn text(n: u64, n_words: u64) -> String {
    const WORDS: [&str; 8] = ["select", "table", "index", "king", "thou", "query", "night", "vacuum"];
    let mut random = Random::new(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let word = |i: u64| match i % 2 {
        0 => WORDS[random.below(8) as usize].to_owned(),
        _ => format!("{:06x}", random.below(1 << 24)),
    };
    (0..n_words).map(word).collect::<Vec<_>>().join(" ")
}

fn produce(broker: &Broker, n_words: u64, numbers: std::ops::Range<u64>) {
    produce_filled(broker, n_words, 0, numbers);
}

/// With so many bytes more that are no text, and hardly compress.
fn produce_filled(broker: &Broker, n_words: u64, n_bytes: usize, numbers: std::ops::Range<u64>) {
    let mut random = Random::new(1);
    let filler: String = (0..1 << 17).map(|_| format!("{:06x}", random.below(1 << 24))).collect();
    let producer = broker.producer();
    for n in numbers {
        let hard = hard(n).map_or("unknown".into(), serde_json::Value::from);
        let at = random.below((filler.len() - n_bytes) as u64) as usize;
        let filler = &filler[at..][..n_bytes];
        let payload =
            serde_json::json!({ "id": n.to_string(), "text": text(n, n_words), "hard": hard, "filler": filler });
        producer.send((n % broker.partitions as u64) as i32, Some(payload.to_string().as_bytes()));
    }
    producer.flush();
}

fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("all documents", || (deployment.totals().n_records as u64 >= n).then_some(()));
}

fn assert_once(published: &Published, partitions: u64, n: u64) {
    published.assert_exactly_once(&(0..partitions as i32).map(|p| (p, (n / partitions) as i64)).collect());
}

fn shards(deployment: &Deployment) -> Vec<ShardManifest> {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        catalog.shards("test").await.unwrap().into_iter().map(|(_, shard)| shard).collect()
    })
}

/// All windows are decided again, and are the same.
fn verify(deployment: &Deployment, n_windows: usize) {
    let output = deployment.winnowd(&["replay", "--verify"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("{n_windows} windows are the same to the last bit, 0 differ, 0 cannot")), "{said}");
}

/// Documents by the definition, one at a time.
struct Oracle {
    weight: ImportanceWeight,
    partitions: u64,
    n_words: u64,
    is_uniform: bool,
}

/// A document of a window: where it stood, how hard it is, its log weight and its key.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    offset: i64,
    hard: f64,
    weight: f64,
    key: f64,
}

impl Oracle {
    fn new(n_words: u64, is_uniform: bool) -> Self {
        let weight = ImportanceWeight::of_targets(&Model::from_bytes(&model_bytes()).unwrap()).remove(0);
        Oracle { weight, partitions: PARTITIONS, n_words, is_uniform }
    }

    fn candidate(&self, at: &TopicPartition, offset: i64, noise: &Noise, scratch: &mut Scratch) -> Option<Candidate> {
        let n = offset as u64 * self.partitions + at.partition as u64;
        let hard = hard(n)?;
        let weight = self.weight.score(&text(n, self.n_words), scratch).log_importance_weight;
        let key = noise.gumbel(offset) + if self.is_uniform { 0.0 } else { weight };
        Some(Candidate { offset, hard, weight, key })
    }

    /// What the window must have come to, and its rows.
    fn check(&self, window: &WindowSummary, rows: &[&Row]) {
        let (at, interval) = (&window.at, window.interval);
        let n = (interval.to - interval.from) as u64;
        assert!(n.is_multiple_of(10), "a tenth of {n} documents is no whole number");
        let (noise, mut scratch) = (Noise::new(SEED, at), Scratch::default());
        let mut left: Vec<Candidate> = (interval.from..interval.to)
            .filter_map(|offset| self.candidate(at, offset, &noise, &mut scratch))
            .collect();
        let coverage = window.coverage.as_ref().unwrap();
        assert_eq!(coverage.n_without_number, n - left.len() as u64);
        // The hardest tenth goes; of equal ones the later. Where it was known before from which number on, all from there.
        left.sort_by(|a, b| b.hard.total_cmp(&a.hard).then(b.offset.cmp(&a.offset)));
        let n_cut = match (coverage.edges, coverage.cut_at) {
            (Some(_), Some(at)) => left.partition_point(|c| c.hard >= at),
            _ => left.len() / 10,
        };
        let cut: Vec<Candidate> = left.drain(..n_cut).collect();
        assert_eq!(coverage.n_cut, cut.len() as u64);
        let (low, high) = match coverage.edges {
            Some(_) => coverage.pools[0].range.unwrap(),
            None => (left.last().unwrap().hard, left[0].hard),
        };
        assert!(coverage.edges.is_some() || coverage.cut_at == cut.last().map(|cut| cut.hard));
        let above = |c: &Candidate| (c.hard - low).max(0.0);
        let stratum = |c: &Candidate| ((above(c) * STRATA as f64 / (high - low)) as usize).min(STRATA - 1);
        let members = |j| left.iter().copied().filter(|c| stratum(c) == j).collect::<Vec<_>>();
        let mut strata: Vec<Vec<Candidate>> = (0..STRATA).map(members).collect();
        let sizes: Vec<u64> = strata.iter().map(|of| of.len() as u64).collect();
        let budgets = water_level(&sizes, n / 10, noise.stratum_rounding(interval.from, 0));
        let mut expected: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
        for (of, &(budget, due)) in strata.iter_mut().zip(&budgets) {
            of.sort_by(|a, b| b.key.total_cmp(&a.key).then(a.offset.cmp(&b.offset)));
            let threshold = of.get(budget as usize).map(|first_out| first_out.key);
            for c in &of[..budget as usize] {
                let given_budget = match threshold {
                    _ if self.is_uniform => budget as f64 / of.len() as f64,
                    Some(threshold) => 1.0 - (-(c.weight - threshold).exp()).exp(),
                    None => 1.0,
                };
                expected.insert(c.offset, (c.key, due.min(1.0) * given_budget));
            }
        }
        let found: BTreeMap<i64, (f64, f64)> =
            rows.iter().map(|row| (row.offset, (row.selection_key, row.inclusion_probability))).collect();
        let offsets = |of: &BTreeMap<i64, _>| of.keys().copied().collect::<Vec<_>>();
        assert_eq!(offsets(&found), offsets(&expected), "{}", window.id());
        for (found, expected) in found.values().zip(expected.values()) {
            assert_eq!(found.0, expected.0);
            assert!((found.1 - expected.1).abs() < 1e-9, "{} instead of {}", found.1, expected.1);
        }
        let [pool] = &coverage.pools[..] else { panic!("one pool: {coverage:?}") };
        let n_selected: u64 = budgets.iter().map(|(budget, _)| budget).sum();
        assert_eq!((pool.range, coverage.shortfall), (Some((low, high)), n / 10 - n_selected));
        let occupied: Vec<_> = pool.strata.iter().map(|s| (s.stratum, s.n_documents, s.n_selected)).collect();
        let sizes = strata.iter().zip(&budgets).enumerate().filter(|(_, (of, _))| !of.is_empty());
        let expected = sizes.map(|(j, (of, (budget, _)))| (j as u32, of.len() as u64, *budget));
        assert_eq!(occupied, expected.collect::<Vec<_>>());
    }

    fn check_all(&self, published: &Published) {
        let mut rows: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        published.rows.iter().for_each(|row| rows.entry(&row.window).or_default().push(row));
        for window in &published.windows {
            self.check(window, rows.get(window.id().as_str()).map_or(&[], Vec::as_slice));
        }
    }
}

/// Budgets by the formula, and what they are on average: all that a stratum has, or the level of the others, which lie
/// one after the other on a line, where a document is given out at every whole number beyond `1 - uniform`.
fn water_level(sizes: &[u64], total: u64, uniform: f64) -> Vec<(u64, f64)> {
    let mut ascending = sizes.to_vec();
    ascending.sort_unstable();
    let (mut left, mut open) = (total.min(sizes.iter().sum()), sizes.len() as u64);
    for size in ascending {
        if size * open > left {
            break;
        }
        left -= size;
        open -= 1;
    }
    let level = if open == 0 { f64::INFINITY } else { left as f64 / open as f64 };
    let given_up_to = |n: u64| (n as f64 * level + uniform) as u64;
    let mut n_before = 0;
    let budget = |&size: &u64| {
        if size as f64 <= level {
            return (size, size as f64);
        }
        n_before += 1;
        // The last gets what is left, whatever the last bits say.
        let up_to = if n_before == open { left } else { given_up_to(n_before) };
        (up_to - given_up_to(n_before - 1), level)
    };
    sizes.iter().map(budget).collect()
}

/// A deployment whose documents wait in a folder of their own.
fn deployment(broker: &Broker, extra: &str) -> Deployment {
    let roll = if extra.contains("shard.max_rows") { "" } else { "shard.max_rows = 500" };
    let deployment = Deployment::new(broker, &format!("{COVERAGE}\n{roll}\n{extra}"));
    std::fs::create_dir(spool_folder(&deployment)).unwrap();
    let config = std::fs::read_to_string(&deployment.config).unwrap();
    let folder = spool_folder(&deployment).display().to_string();
    std::fs::write(&deployment.config, format!("{config}\nspool.folder = \"{folder}\"\n")).unwrap();
    deployment
}

fn spool_folder(deployment: &Deployment) -> std::path::PathBuf {
    deployment.folder.path().join("spool")
}

fn assert_nothing_is_left(deployment: &Deployment) {
    let left: Vec<_> = std::fs::read_dir(spool_folder(deployment)).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Killed while documents wait on disk: nothing is left there, nothing is lost or decided twice, and every window is what the
/// definition says, as it would have been without.
#[test]
fn windows_over_strata_are_what_the_definition_says_whatever_dies() {
    const WORDS: u64 = 120;
    let broker = Broker::with_topic("spooled-kills", PARTITIONS as i32);
    // As much as the in-process cluster keeps.
    let n: u64 = if broker.is_real() { 40_000 } else { 16_000 };
    let deployment = deployment(&broker, "window.max_documents = 1000");
    let kills = if broker.is_real() { 8 } else { 1 };
    let seed = random_seed();
    println!("{kills} kills, WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    // Between the ends of windows, so that documents wait in any case.
    let mut sent = 0;
    for kill in 0..kills {
        let daemon = deployment.start_without_end();
        let end = 2_000 + kill * 4_000;
        produce(&broker, WORDS, sent..end);
        sent = end;
        wait_for("documents that wait", || (daemon.metric("winnowd_spool_bytes") > 0.0).then_some(()));
        assert_nothing_is_left(&deployment);
        // The moment of the fault is the input of this test, not a way to wait.
        std::thread::sleep(Duration::from_millis(random.below(1_000)));
        daemon.kill_9();
        assert_nothing_is_left(&deployment);
        let decided = deployment.totals().n_records as u64;
        assert!(decided < sent, "kill {kill} met the daemon at work: {decided} of {sent} documents are decided");
    }
    produce(&broker, WORDS, sent..n);
    let daemon = deployment.start();
    wait_decided(&deployment, n);
    wait_for("an empty spool", || (daemon.metric("winnowd_spool_bytes") == 0.0).then_some(()));
    let status: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    let spool = serde_json::json!({ "bytes": 0, "max_bytes": 16u64 << 30, "files": 0, "paused_partitions": 0 });
    assert_eq!(status["spool"], spool);
    assert!(daemon.metric("winnowd_documents_without_number_total") > 0.0);
    let [occupied, selected_from] =
        ["documents", "selected"].map(|of| daemon.metric(&format!("winnowd_window_strata{{of=\"{of}\"}}")));
    assert!(selected_from > 1.0 && selected_from <= occupied && occupied <= STRATA as f64);
    assert!(daemon.metric("winnowd_cut_off_documents_total{tail=\"high\"}") > 0.0);
    assert_eq!(daemon.metric("winnowd_shortfall_documents_total{selector=\"coverage\"}"), 0.0);
    assert_eq!(daemon.metric("winnowd_spool_errors_total"), 0.0);
    assert_eq!(daemon.stop(), Some(0));
    assert_nothing_is_left(&deployment);
    let published = deployment.published();
    assert_once(&published, PARTITIONS, n);
    assert_eq!(published.windows.len() as u64, n / 1_000);
    Oracle::new(WORDS, false).check_all(&published);
    verify(&deployment, published.windows.len());

    // What was in force is recorded.
    for shard in shards(&deployment) {
        let selector = serde_json::to_value(&shard.selector).unwrap();
        let expected = serde_json::json!({ "strata": 8, "cutoff": { "rate": "0.1", "tail": "high" }, "within": "weighted",
            "clip": 0.0, "importance": { "field": "hard" }, "cutoff_by": { "field": "hard" },
            "strata_rounding": "random" });
        assert_eq!(selector["coverage"], expected);
    }
    let shown = deployment.winnowd(&["replay", "--window", &published.windows[0].id()]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let first = &published.windows[0].coverage.as_ref().unwrap().pools[0].strata[0];
    let expected = format!("stratum 0: {} of {} documents, highest key left ", first.n_selected, first.n_documents);
    assert!(shown.contains(&expected) && shown.contains("cut-off"), "`{expected}` is not in:\n{shown}");
    report_fault("`kill -9` while documents wait on disk", kills as usize, n, Duration::ZERO);
}

/// The numbers of a window, with those removed that its cut-off has removed.
fn tally(window: &WindowSummary, partitions: u64) -> EdgeTally {
    let numbers = (window.interval.from..window.interval.to)
        .filter_map(|offset| hard(offset as u64 * partitions + window.at.partition as u64));
    let mut numbers: Vec<f64> = numbers.collect();
    let sketch = |numbers: &[f64]| {
        let mut sketch = QuantileSketch::default();
        numbers.iter().for_each(|number| sketch.add(*number));
        sketch
    };
    let all = sketch(&numbers);
    numbers.sort_by(f64::total_cmp);
    numbers.truncate(numbers.len() - window.coverage.as_ref().unwrap().n_cut as usize);
    EdgeTally::new(&Division::whole(), all, vec![sketch(&numbers)])
}

/// Edges of the stream move with publications and only with them, whatever dies: every window that takes some has those that the
/// publications before have left, says so, and is what the definition says with them; nothing waits on disk any more.
#[test]
fn edges_of_the_stream_are_what_publications_have_left_whatever_dies() {
    const WORDS: u64 = 30;
    const HALF_LIFE: u64 = 10_000;
    let partitions: u64 = 2;
    let broker = Broker::with_topic("spooled-stream", partitions as i32);
    // Two windows fill a shard.
    let deployment = deployment(
        &broker,
        "window.max_documents = 500\nshard.max_rows = 100\nselection.edges_from = \"stream\"\nselection.edges_half_life_documents = 10000",
    );
    let mut sent = 0;
    // Before and after the moment at which a version comes to be.
    let points = ["commit.before:1", "commit.after:2", "commit.before:2"];
    for point in points {
        let environment = [("CRASH_POINT", point), ("WINNOWD_WINDOW__IDLE_TIMEOUT", "1d")];
        let mut daemon = deployment.start_with(&environment).expect("the daemon starts");
        produce(&broker, WORDS, sent..sent + 3_000);
        sent += 3_000;
        let status = wait_for(point, || daemon.child.try_wait().unwrap());
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
    }
    let daemon = deployment.start_without_end();
    // A window of each partition at a time, so that later ones open with what those before have left.
    for n in (sent + 1_000..=sent + 5_000).step_by(1_000) {
        wait_decided(&deployment, n - 1_000);
        produce(&broker, WORDS, n - 1_000..n);
    }
    let n = sent + 5_000;
    wait_decided(&deployment, n);
    wait_for("edges in force", || (daemon.metric("winnowd_edges_documents") > 5_000.0).then_some(()));
    // Half a window in every partition, which is no reason to write anything.
    let consumed = daemon.metric("winnowd_consumed_records_total");
    produce(&broker, WORDS, n..n + 500);
    wait_for("half a window", || (daemon.metric("winnowd_consumed_records_total") >= consumed + 500.0).then_some(()));
    assert_eq!((daemon.metric("winnowd_spool_bytes"), daemon.metric("winnowd_spool_files")), (0.0, 0.0));
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    assert_once(&published, partitions, n);
    Oracle { partitions, ..Oracle::new(WORDS, false) }.check_all(&published);
    verify(&deployment, published.windows.len());

    let mut versions: Vec<EdgesVersion> = Vec::new();
    let shards = shards(&deployment);
    for shard in &shards {
        let mut sum = EdgeTally::default();
        shard.windows.iter().for_each(|window| sum.merge(&tally(window, partitions)));
        let mut sketches = versions.last().map_or_else(EdgeSketches::default, |last| (*last.sketches).clone());
        sketches.add(&sum, HALF_LIFE);
        versions.push(EdgesVersion { version: versions.len() as i64, sketches: Arc::new(sketches) });
    }
    let newest = block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        let numbers = shards[0].selector.sketched_numbers(shards[0].model.as_str()).unwrap();
        assert_eq!(numbers, "field hard without the 0.1 of highest field hard");
        catalog.newest_edges("test", &numbers).await.unwrap()
    });
    assert_eq!(newest.as_ref(), versions.last());
    let settings = shards[0].selector.coverage.as_ref().unwrap().settings;
    let taken = |window: &WindowSummary| window.coverage.as_ref().unwrap().edges;
    for (shard, window) in shards.iter().enumerate().flat_map(|(i, shard)| shard.windows.iter().map(move |w| (i, w))) {
        let Some(of) = taken(window) else { continue };
        // Of a publication before its own.
        assert!((of.version as usize) < shard, "{of:?} in shard {shard}");
        let expected = versions[of.version as usize].fixed(&settings, &Division::whole()).unwrap();
        assert_eq!(window.coverage.as_ref().unwrap().fixed_edges(&settings), Some(expected));
    }
    let numbers: BTreeSet<_> = published.windows.iter().filter_map(taken).map(|of| of.version).collect();
    assert!(taken(&published.windows[0]).is_none() && numbers.len() > 2, "{numbers:?}");

    // And they are told.
    let window = published.windows.iter().find(|window| taken(window).is_some()).unwrap();
    let of = taken(window).unwrap();
    let said = |arguments: &[&str]| String::from_utf8_lossy(&deployment.winnowd(arguments).stdout).into_owned();
    let shown = said(&["replay", "--window", &window.id()]);
    assert!(
        shown.contains(&format!("edges of version {} of the stream's, of {}", of.version, of.n_documents)),
        "{shown}"
    );
    let shown = said(&["replay", "--window", &published.windows[0].id()]);
    assert!(shown.contains("edges of its own documents"), "{shown}");
    for offset in window.interval.from..window.interval.from + 30 {
        let position = format!("{}:{offset}", window.at.partition);
        let explained: serde_json::Value =
            serde_json::from_str(&said(&["explain", "--json", "--position", &position])).unwrap();
        assert_eq!(explained["competition"]["edges"]["version"], of.version, "{explained}");
        let number = hard(offset as u64 * partitions + window.at.partition as u64);
        let is_cut = number.is_some_and(|number| number >= window.coverage.as_ref().unwrap().cut_at.unwrap());
        let is_selected = published.rows.iter().any(|row| (row.partition, row.offset) == (window.at.partition, offset));
        let outcome = match number {
            None => "no_number",
            Some(_) if is_cut => "cut_off",
            Some(_) if is_selected => "selected",
            Some(_) => "below_threshold",
        };
        assert_eq!(explained["outcome"], outcome, "{explained}");
    }
    report_fault("`kill -9` while edges of the stream move", points.len(), n, Duration::ZERO);
}

/// Partitions go to a rival and come back, and the daemon ends politely in between: their documents on disk go with them.
#[test]
fn documents_that_wait_go_with_their_partition() {
    const N: u64 = 12_000;
    const WORDS: u64 = 120;
    let broker = Broker::with_topic("spooled-rival", PARTITIONS as i32);
    let deployment = deployment(&broker, "window.max_documents = 1000\nselection.within = \"uniform\"");
    let daemon = deployment.start_without_end();
    // Half a window in every partition.
    produce(&broker, WORDS, 0..2_000);
    wait_for("four files", || (daemon.metric("winnowd_spool_files") == 4.0).then_some(()));
    let rival = broker.rival(&deployment);
    wait_for("partitions of the rival", || {
        rival.poll(Duration::from_millis(50));
        (rival.assignment().expect("an assignment").count() > 0).then_some(())
    });
    wait_for("files to go", || {
        rival.poll(Duration::from_millis(20));
        (daemon.metric("winnowd_spool_files") < 4.0).then_some(())
    });
    rival.unsubscribe();
    drop(rival);
    // They come back, and are read again.
    wait_for("four files again", || (daemon.metric("winnowd_spool_files") == 4.0).then_some(()));
    produce(&broker, WORDS, 2_000..6_000);
    wait_decided(&deployment, 4_000);
    assert_eq!(daemon.metric("winnowd_session_restarts_total"), 0.0, "{}", deployment.log());
    assert_eq!(daemon.stop(), Some(0));
    assert_nothing_is_left(&deployment);
    assert_eq!(deployment.totals().n_records, 4_000);
    produce(&broker, WORDS, 6_000..N);
    let daemon = deployment.start();
    wait_decided(&deployment, N);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    assert_once(&published, PARTITIONS, N);
    Oracle::new(WORDS, true).check_all(&published);
    verify(&deployment, published.windows.len());
}

/// Windows that are together larger than the disk they may take: partitions are paused, and no window is closed early.
#[test]
fn a_full_spool_pauses_partitions_and_changes_no_window() {
    const N: u64 = 36_000;
    const WORDS: u64 = 40;
    const PARTITIONS: u64 = 12;
    const MAX_BYTES: f64 = (56 << 20) as f64;
    let broker = Broker::with_topic("spooled-budget", PARTITIONS as i32);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster does not keep so much");
        return;
    }
    // A window takes some 5 MB of disk, the twelve of them more than the 28 MiB beyond which one goes on alone.
    let extra = "window.max_documents = 1500\nwindow.max_bytes = \"10MiB\"\nspool.max_bytes = \"56MiB\"\n\
                 memory.budget = \"64MiB\"\ndocuments.max_bytes = \"1MiB\"";
    let deployment = deployment(&broker, extra);
    let daemon = deployment.start_without_end();
    // Two thirds of a window in each: none can be decided, and all together are too much.
    produce_filled(&broker, WORDS, 6_000, 0..12_000);
    let paused = || (daemon.metric("winnowd_spool_paused_partitions") == 11.0).then_some(());
    wait_for("all partitions but one to be paused", paused);
    produce_filled(&broker, WORDS, 6_000, 12_000..N);
    let mut most_bytes = 0.0f64;
    wait_for("all documents", || {
        most_bytes = most_bytes.max(daemon.metric("winnowd_spool_bytes"));
        (deployment.totals().n_records as u64 >= N).then_some(())
    });
    wait_for("all partitions to go on", || (daemon.metric("winnowd_spool_paused_partitions") == 0.0).then_some(()));
    assert_eq!(daemon.metric("winnowd_spool_max_bytes"), MAX_BYTES);
    assert_eq!(daemon.metric("winnowd_windows_closed_total{reason=\"spool\"}"), 0.0, "{}", deployment.log());
    assert_eq!(daemon.metric("winnowd_session_restarts_total"), 0.0);
    assert_eq!(daemon.get("/healthz").0, 200);
    let log = deployment.log();
    assert!(most_bytes <= MAX_BYTES, "{most_bytes} bytes\n{log}");
    assert!(log.contains("alone is read until its window is decided"), "{log}");
    println!("at most {:.0} MiB of 56 on disk", most_bytes / (1 << 20) as f64);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    assert_once(&published, PARTITIONS, N);
    assert!(published.windows.iter().all(|window| window.closed_by == CloseReason::Documents));
    Oracle { partitions: PARTITIONS, ..Oracle::new(WORDS, false) }.check_all(&published);
}

/// A window of several hundred megabytes under a budget of 128 MiB, on a real Kafka. Its documents come back one after the other.
#[test]
fn a_window_much_larger_than_the_memory() {
    const WORDS: u64 = 40;
    const BUDGET_MIB: u64 = 128;
    /// What the process itself may take.
    const BESIDE_MIB: u64 = 130;
    let n: u64 = if std::env::var_os("WINNOWD_TEST_STORM").is_some() { 500_000 } else { 200_000 };
    let broker = Broker::with_topic("spooled-large", 1);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster does not keep so much");
        return;
    }
    produce_filled(&broker, WORDS, 600, 0..n);
    let extra = format!(
        "memory.budget = \"{BUDGET_MIB}MiB\"\nwindow.max_documents = {n}\nwindow.max_bytes = \"4GiB\"\nwindow.max_age = \"1d\"\n\
         selection.fraction = 0.5\nshard.max_rows = 1000000"
    );
    let deployment = deployment(&broker, &extra);
    let daemon = deployment.start();
    let began = std::time::Instant::now();
    // As long as anything may take, and more for many documents: a hang is found, a busy machine is none.
    let deadline = DEADLINE + Duration::from_secs(n / 1_000);
    let mut most_spooled = 0.0f64;
    while (deployment.totals().n_records as u64) < n {
        most_spooled = most_spooled.max(daemon.metric("winnowd_spool_bytes"));
        assert!(began.elapsed() < deadline, "{}", deployment.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let (took, peak) = (began.elapsed(), daemon.peak_memory() >> 20);
    assert_eq!(daemon.metric("winnowd_windows_closed_total{reason=\"documents\"}"), 1.0);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    assert_once(&published, 1, n);
    let [window] = &published.windows[..] else { panic!("one window") };
    assert_eq!((window.closed_by, window.n_selected), (CloseReason::Documents, n / 2));
    println!(
        "a window of {n} documents, {} MiB of payload, {:.0} MiB on disk: peak resident size {peak} MiB with a budget of \
         {BUDGET_MIB} MiB, {:.0} documents/s",
        window.payload_bytes >> 20,
        most_spooled / (1 << 20) as f64,
        n as f64 / took.as_secs_f64()
    );
    assert!(peak < BUDGET_MIB + BESIDE_MIB, "{peak} MiB with a budget of {BUDGET_MIB} MiB");
}
