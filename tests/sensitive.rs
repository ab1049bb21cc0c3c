//! The daemon with documents that are drawn by sensitivity: every window is what the definition says, document by document, whatever
//! dies, and decided again; weights that make sums exact; explanations; losses that trainers report.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use support::*;
use winnowd::record::TopicPartition;
use winnowd::select::{
    CentreSettings, Centres, ClusterAddition, ClusterMeans, ClusterVersion, LossSource, Noise, SamplePoint, with_floor,
};
use winnowd::window::{PointSource, WindowSummary};

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: u64 = 2;
const SEED: u64 = 7;
const CENTRES: usize = 12;
const FLOOR: f64 = 0.2;
const DIMENSIONS: usize = 6;
/// Of clusters of the stream, in documents.
const HALF_LIFE: u64 = 2_000;

const SENSITIVITY: &str = "selection.selector = \"sensitivity\"\nselection.embedding_field = \"e\"\nselection.centres = 12\n\
                           selection.floor = 0.2\ndocuments.loss_field = \"nll\"\nselection.fraction = 0.1\n\
                           window.max_documents = 500\nshard.max_rows = 200";

/// Around one of five places, in eighths, so that 16 bits are enough; some have none, some another number of them.
fn embedding(n: u64) -> Option<Vec<f32>> {
    let mut random = Random::new(n ^ 0xE3B);
    let dims = if n % 17 == 3 { DIMENSIONS - 1 } else { DIMENSIONS };
    let number = |d: usize| (random.below(17) as f32 - 8.0) / 8.0 + if d as u64 == n % 5 { 6.0 } else { 0.0 };
    let embedding = (0..dims).map(number).collect();
    (n % 13 != 5).then_some(embedding)
}

/// Two in three are known.
fn loss(n: u64) -> Option<f64> {
    let loss = 1.0 + (n % 5) as f64 + Random::new(n ^ 0x1055).below(64) as f64 / 64.0;
    (n % 3 != 1).then_some(loss)
}

/// A number of 16 bits of an eighth up to ±8, by the definition of such.
fn half(x: f32) -> u16 {
    if x == 0.0 {
        return 0;
    }
    let (sign, exponent) = (u16::from(x < 0.0) << 15, x.abs().log2().floor() as i32);
    let fraction = ((x.abs() / (exponent as f32).exp2() - 1.0) * 1024.0) as u16;
    sign | ((exponent + 15) as u16) << 10 | fraction
}

/// As a list, or as a string of its bytes.
fn payload(n: u64) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(&document(n)).unwrap();
    document["nll"] = json!(loss(n));
    document["e"] = match embedding(n) {
        None if n.is_multiple_of(2) => json!("no embedding"),
        None => return document.to_string().into_bytes(),
        Some(numbers) if n.is_multiple_of(2) => json!(numbers),
        Some(numbers) => {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| half(*x).to_le_bytes()).collect();
            json!(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
    };
    document.to_string().into_bytes()
}

fn produce(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer();
    numbers.for_each(|n| producer.send((n % PARTITIONS) as i32, Some(&payload(n))));
    producer.flush();
}

fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("all documents", || (deployment.totals().n_records as u64 >= n).then_some(()));
}

/// It is written after the transaction.
fn wait_for_manifest(deployment: &Deployment) {
    let manifest = deployment.folder.path().join("out/manifest.jsonl");
    let n_lines = || std::fs::read_to_string(&manifest).map_or(0, |manifest| manifest.lines().count());
    wait_for("the manifest", || (n_lines() as i64 == deployment.totals().n_shards).then_some(()));
}

fn said(deployment: &Deployment, arguments: &[&str]) -> String {
    let output = deployment.winnowd(arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// All windows are decided again, and are the same.
fn verify(deployment: &Deployment, n_windows: usize) {
    let said = said(deployment, &["replay", "--verify"]);
    assert!(said.contains(&format!("{n_windows} windows are the same to the last bit, 0 differ, 0 cannot")), "{said}");
}

/// Gives the centres that a window must have had, from the documents that it has looked at.
type CentresOf<'a> = &'a dyn Fn(&WindowSummary, &[SamplePoint]) -> Centres;

fn settings() -> CentreSettings {
    CentreSettings { centres: CENTRES, exponent: 2, seed: SEED }
}

/// Those that it finds itself.
fn own_centres(_: &WindowSummary, sample: &[SamplePoint]) -> Centres {
    Centres::fit(sample, &settings()).unwrap()
}

/// A window by the definition: every candidate's score and key, by offset, and what must be selected of them.
fn check(window: &WindowSummary, rows: &[&Row], centres: CentresOf<'_>) {
    let summary = window.sensitivity.as_ref().unwrap();
    let (interval, at) = (window.interval, &window.at);
    let number = |offset: i64| offset as u64 * PARTITIONS + at.partition as u64;
    let all: Vec<(i64, Vec<f32>)> = (interval.from..interval.to)
        .filter_map(|offset| embedding(number(offset)).map(|embedding| (offset, embedding)))
        .collect();
    let n = (interval.to - interval.from) as u64;
    assert_eq!(summary.n_without_embedding, n - all.len() as u64);
    let competing: Vec<_> = all.iter().filter(|(_, embedding)| embedding.len() == DIMENSIONS).collect();
    assert_eq!(summary.n_other_dimensions, (all.len() - competing.len()) as u64);
    let sample: Vec<SamplePoint> = competing
        .iter()
        .map(|(offset, point)| SamplePoint { point: point.clone(), loss: loss(number(*offset)) })
        .collect();
    let centres = centres(window, &sample);
    assert_eq!((summary.n_centres as usize, summary.scale), (centres.len(), centres.scale()));
    assert_eq!((summary.points, summary.losses), (PointSource::Embedding, LossSource::Record));
    let mut scores: Vec<f64> = sample.iter().map(|s| centres.sensitivity(&s.point).score).collect();
    let total = with_floor(&mut scores, FLOOR);
    let noise = Noise::new(SEED, &TopicPartition::new(at.topic.clone(), at.partition));
    let mut ranked: Vec<(i64, f64, f64)> = competing
        .iter()
        .zip(&scores)
        .map(|((offset, _), score)| (*offset, *score, score.ln() - noise.priority(*offset).ln()))
        .collect();
    ranked.sort_by(|a, b| b.2.total_cmp(&a.2));
    let (selected, left) = ranked.split_at(n as usize / 10);
    let [pool] = &summary.pools[..] else { panic!("one pool: {summary:?}") };
    let (sample, threshold) = (pool.sample, left[0].2);
    assert_eq!((sample.documents, sample.selected), (competing.len() as u64, n / 10));
    assert_eq!(sample.threshold, Some(threshold));
    assert!((sample.total / total - 1.0).abs() < 1e-9);
    let by_offset: BTreeMap<i64, (f64, f64)> = selected.iter().map(|row| (row.0, (row.1, row.2))).collect();
    let offsets: Vec<i64> = rows.iter().map(|row| row.offset).collect();
    assert_eq!(offsets, by_offset.keys().copied().collect::<Vec<_>>(), "{}", window.id());
    for (row, (score, key)) in rows.iter().zip(by_offset.values()) {
        let probability = (score.ln() - threshold).exp().min(1.0);
        assert_eq!(row.selection_key, *key);
        assert!((row.inclusion_probability - probability).abs() < 1e-9);
        assert!((row.sample_weight * probability / sample.ratio - 1.0).abs() < 1e-9);
    }
    // The weighted sum of the scores is that of all documents.
    let weighted: f64 = rows.iter().zip(by_offset.values()).map(|(row, (score, _))| row.sample_weight * score).sum();
    assert!((weighted / total - 1.0).abs() < 1e-9, "{weighted} for {total}");
}

fn check_all(published: &Published, centres: CentresOf<'_>) {
    let mut rows: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    published.rows.iter().for_each(|row| rows.entry(&row.window).or_default().push(row));
    rows.values_mut().for_each(|rows| rows.sort_by_key(|row| row.offset));
    for window in &published.windows {
        check(window, rows.get(window.id().as_str()).map_or(&[], Vec::as_slice), centres);
    }
}

/// Killed while documents wait for their window: every window is what the definition says, as it would have been without.
#[test]
fn windows_by_sensitivity_are_what_the_definition_says_whatever_dies() {
    let broker = Broker::with_topic("sensitive-kills", PARTITIONS as i32);
    let (n, kills) = if broker.is_real() { (20_000u64, 6) } else { (8_000, 1) };
    let deployment = Deployment::new(&broker, SENSITIVITY);
    let seed = random_seed();
    println!("{kills} kills, WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut sent = 0;
    for kill in 0..kills {
        let daemon = deployment.start_without_end();
        // Half a window more than whole ones in each partition.
        let end = 1_500 + kill * 2_000;
        produce(&broker, sent..end);
        sent = end;
        let log = deployment.log();
        assert!(log.contains("documents are drawn by their sensitivity: embeddings in `e`, 12 centres"), "{log}");
        // The moment of the fault is the input of this test, not a way to wait.
        std::thread::sleep(Duration::from_millis(random.below(1_500)));
        daemon.kill_9();
        assert!((deployment.totals().n_records as u64) < sent, "kill {kill} met the daemon at work");
    }
    produce(&broker, sent..n);
    let daemon = deployment.start();
    wait_decided(&deployment, n);
    let metric = |name: &str| daemon.metric(&format!("winnowd_documents_without_embedding_total{{reason=\"{name}\"}}"));
    assert!(metric("missing") > 0.0 && metric("dimensions") > 0.0);
    assert_eq!(daemon.metric("winnowd_window_centres"), CENTRES as f64);
    assert!((daemon.metric("winnowd_window_weight_ratio") - 1.0).abs() < 0.5);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&(0..PARTITIONS as i32).map(|p| (p, (n / PARTITIONS) as i64)).collect());
    assert_eq!(published.windows.len() as u64, n / 500);
    check_all(&published, &own_centres);
    verify(&deployment, published.windows.len());
    let shown = said(&deployment, &["replay", "--window", &published.windows[0].id()]);
    for expected in
        ["12 centres of embeddings (6 dimensions) with losses of the records", "documents without an embedding"]
    {
        assert!(shown.contains(expected), "{shown}");
    }
    explain(&deployment, &published);
    report_fault("`kill -9` while documents wait to be drawn by sensitivity", kills as usize, n, Duration::ZERO);
}

/// Clusters of the stream move with publications and only with them: every window names those that it took, whatever dies, and has the
/// documents for centres that are nearest to them.
#[test]
fn centres_of_the_stream_are_versions_that_windows_name_whatever_dies() {
    let broker = Broker::with_topic("sensitive-stream", PARTITIONS as i32);
    // Two windows fill a shard.
    let extra = SENSITIVITY.replace("shard.max_rows = 200", "shard.max_rows = 100")
        + &format!("\nselection.centres_from = \"stream\"\nselection.centres_half_life_documents = {HALF_LIFE}");
    let deployment = Deployment::new(&broker, &extra);
    let mut sent = 0;
    // Before and after the moment at which a version comes to be.
    let points = ["commit.before:1", "commit.after:2", "commit.before:2"];
    for point in points {
        let environment = [("CRASH_POINT", point), ("WINNOWD_WINDOW__IDLE_TIMEOUT", "1d")];
        let mut daemon = deployment.start_with(&environment).expect("the daemon starts");
        produce(&broker, sent..sent + 3_000);
        sent += 3_000;
        let status = wait_for(point, || daemon.child.try_wait().unwrap());
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
    }
    let daemon = deployment.start_without_end();
    // A window of each partition at a time, so that later ones open with what those before have left.
    for n in (sent + 1_000..=sent + 5_000).step_by(1_000) {
        wait_decided(&deployment, n - 1_000);
        produce(&broker, n - 1_000..n);
    }
    let n = sent + 5_000;
    wait_decided(&deployment, n);
    wait_for("a version in force", || (daemon.metric("winnowd_clusters_version") > 1.0).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&(0..PARTITIONS as i32).map(|p| (p, (n / PARTITIONS) as i64)).collect());
    let space = "field e";
    let clusters = |version| deployment.clusters(version).expect("a version that is not forgotten");
    check_all(&published, &|window, sample| {
        let means = match window.sensitivity.as_ref().unwrap().clusters_version {
            Some(version) => (*clusters(version).means).clone(),
            None => ClusterMeans::find(space.to_owned(), sample, &settings()).unwrap(),
        };
        assert!(means.is_of(space) && means.len() == CENTRES);
        Centres::near(sample, means.means(), 2).unwrap()
    });
    let versions: BTreeSet<_> =
        published.windows.iter().map(|window| window.sensitivity.as_ref().unwrap().clusters_version).collect();
    assert!(versions.contains(&None) && versions.len() > 2, "{versions:?}");
    every_version_is_the_one_before_and_the_windows_of_one_publication(&deployment, space);
    verify(&deployment, published.windows.len());
    let last = published.windows.iter().find(|window| window.sensitivity.as_ref().unwrap().clusters_version > Some(0));
    let shown = said(&deployment, &["replay", "--window", &last.unwrap().id()]);
    assert!(shown.contains("near to version") && shown.contains("of the stream's clusters"), "{shown}");
    report_fault("`kill -9` while clusters of the stream move", points.len(), n, Duration::ZERO);
}

/// To the last bit, as numbers of points are eighths and their sums exact.
fn every_version_is_the_one_before_and_the_windows_of_one_publication(deployment: &Deployment, space: &str) {
    let mut now: Option<ClusterVersion> = None;
    for shard in deployment.shards() {
        let additions = shard.windows.iter().map(|window| {
            let points: Vec<SamplePoint> = (window.interval.from..window.interval.to)
                .map(|offset| offset as u64 * PARTITIONS + window.at.partition as u64)
                .filter_map(|number| Some(SamplePoint { point: embedding(number)?, loss: loss(number) }))
                .filter(|s| s.point.len() == DIMENSIONS)
                .collect();
            let taken = window.sensitivity.as_ref().unwrap().clusters_version;
            let taken = taken.map(|version| deployment.clusters(version).expect("a version that is not forgotten"));
            let means = taken.as_ref().map_or_else(
                || ClusterMeans::find(space.to_owned(), &points, &settings()).unwrap(),
                |taken| (*taken.means).clone(),
            );
            let tally = means.tally(points.iter().map(|s| &s.point[..]));
            ClusterAddition { began: taken.map(|taken| taken.began), tally }
        });
        let sum = additions.reduce(|mut sum, addition| {
            sum.merge(addition);
            sum
        });
        let sum = sum.expect("a publication has windows");
        now = match (now, sum.began) {
            (None, _) => Some(ClusterVersion { version: 0, began: 0, means: sum.tally.begin().unwrap().into() }),
            (Some(ClusterVersion { version, means, .. }), Some(0)) => {
                let mut means = (*means).clone();
                means.add(&sum.tally, HALF_LIFE);
                Some(ClusterVersion { version: version + 1, began: 0, means: means.into() })
            }
            // It knew of none.
            (now, _) => now,
        };
        let now = now.as_ref().unwrap();
        assert_eq!(deployment.clusters(now.version).as_ref(), Some(now), "after shard {}", shard.shard);
    }
    let newest = now.expect("versions").version;
    assert!(newest > 2 && deployment.clusters(newest + 1).is_none(), "{newest}");
}

/// What is said of the documents of a window is what decided about them.
fn explain(deployment: &Deployment, published: &Published) {
    let window = &published.windows[0];
    let sample = window.sensitivity.as_ref().unwrap().pools[0].sample;
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for offset in window.interval.from..window.interval.from + 40 {
        let position = format!("{}:{offset}", window.at.partition);
        let shown = said(deployment, &["explain", "--json", "--position", &position]);
        let of: Value = serde_json::from_str(&shown).unwrap();
        let outcome = of["outcome"].as_str().unwrap();
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
        let row = published.rows.iter().find(|row| (row.partition, row.offset) == (window.at.partition, offset));
        assert_eq!(row.is_some(), outcome == "selected", "{of}");
        let score = &of["document"]["sensitivity"]["score"];
        assert_eq!(score.is_null(), outcome == "no_embedding", "{of}");
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
        if !score.is_null() {
            let key = number(&score["key"]);
            assert_eq!(key > sample.threshold.unwrap(), outcome == "selected", "{of}");
            let unmixed = number(&score["loss"]) + number(&score["scale"]) * number(&score["distance"]).powi(2);
            assert!((number(&score["unmixed"]) / unmixed - 1.0).abs() < 1e-6, "{of}");
        }
        if let Some(row) = row {
            assert_eq!(number(&score["key"]).to_bits(), row.selection_key.to_bits());
            assert_eq!(number(&of["document"]["sample_weight"]).to_bits(), row.sample_weight.to_bits());
            let text = said(deployment, &["explain", "--position", &position]);
            assert!(text.contains("centre") && text.contains("sample weight"), "{text}");
        }
    }
    assert!(
        ["selected", "below_threshold", "no_embedding"].iter().all(|name| outcomes.contains_key(*name)),
        "{outcomes:?}"
    );
}

/// Without embeddings and losses of their own: n-grams stand in, and losses are those that trainers report, once they do.
#[test]
fn without_embeddings_ngrams_stand_in_and_losses_are_learnt() {
    let broker = Broker::with_topic("sensitive-learnt", PARTITIONS as i32);
    let losses = broker.other_topic("losses", 1);
    let extra = format!(
        "selection.selector = \"sensitivity\"\nselection.centres = 8\nselection.sources.s1 = 0.5\nselection.fraction = 0.2\n\
         feedback.topic = \"{losses}\"\nfeedback.interval = \"200ms\"\nwindow.max_documents = 200"
    );
    let deployment = Deployment::new(&broker, &extra);
    let produce = |numbers: std::ops::Range<u64>| {
        let producer = broker.producer();
        numbers.for_each(|n| producer.send((n % PARTITIONS) as i32, Some(&document(n))));
        producer.flush();
    };
    let daemon = deployment.start_without_end();
    produce(0..400);
    wait_decided(&deployment, 400);
    wait_for_manifest(&deployment);
    let ids: Vec<String> = deployment.published().rows.into_iter().map(|row| row.id).collect();
    let sums: Vec<f64> = ids.iter().map(|id| 24.0 + 24.0 * f64::from(id.ends_with('1'))).collect();
    let tokens = vec![24; ids.len()];
    let report = json!({ "run_id": "r", "step": 1, "rank": 0, "world_size": 1, "doc_ids": ids, "loss_sum": sums, "tokens": tokens });
    let producer = broker.producer_to(&losses);
    producer.send(0, Some(report.to_string().as_bytes()));
    producer.flush();
    // Publications take what was learnt into force.
    let mut sent = 400;
    wait_for("windows with losses that are expected", || {
        produce(sent..sent + 400);
        sent += 400;
        wait_decided(&deployment, sent);
        wait_for_manifest(&deployment);
        let published = deployment.published();
        let is_learnt = |window: &WindowSummary| window.sensitivity.as_ref().unwrap().losses == LossSource::Expected;
        published.windows.iter().any(is_learnt).then_some(())
    });
    let log = deployment.log();
    assert!(log.contains("projected n-grams in place of embeddings, 8 centres, expected losses"), "{log}");
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    for window in &published.windows {
        let sensitivity = window.sensitivity.as_ref().unwrap();
        assert_eq!((sensitivity.points, sensitivity.dimensions), (PointSource::Projection, 128));
        assert!(sensitivity.losses == LossSource::None || window.interval.from > 0, "{sensitivity:?}");
        // Half of them are of the source with that share.
        let selected: Vec<u64> = sensitivity.pools.iter().map(|pool| pool.sample.selected).collect();
        assert_eq!(selected, [20, 20], "{sensitivity:?}");
        assert!(window.expected_loss.is_some_and(|version| version.coefficient == 0.0));
    }
    verify(&deployment, published.windows.len());
}
