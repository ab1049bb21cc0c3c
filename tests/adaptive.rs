//! The daemon with counts that follow the stream, or the selection, killed while it works: `KAFKA_BOOTSTRAP`, or else the
//! in-process cluster in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use support::*;
use winnowd::catalog::{Access, CatalogReader, CountsCatalog, CountsKind, CountsLine, CountsVersion, SqlCatalog};
use winnowd::features::{Featuriser, NgramHash, Scratch};
use winnowd::manifest::ShardManifest;
use winnowd::score::{DecayedCounts, ImportanceWeight, Model, ModelId, NgramCounts, Side, kl_divergence};

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: u64 = 4;
const HALF_LIFE_NGRAMS: u64 = 40_000;
const PRIOR_NGRAMS: u64 = 20_000;

/// The text of a document, whose mix of words is another one from `switch` on.
fn text(n: u64, switch: u64) -> String {
    const OLD: [&str; 8] = ["select", "table", "index", "king", "thou", "query", "night", "vacuum"];
    const NEW: [&str; 8] = ["query", "kernel", "thread", "mutex", "select", "page", "fault", "cache"];
    let words = if n < switch { OLD } else { NEW };
    let mut random = Random::new(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    (0..24).map(|_| words[random.below(8) as usize]).collect::<Vec<_>>().join(" ")
}

/// What the catalog says of the versions of the counts of a kind.
struct Versions {
    lines: Vec<CountsLine>,
    kept: HashMap<i64, DecayedCounts>,
    newest: CountsVersion,
    shards: BTreeMap<String, ShardManifest>,
}

fn read_versions(deployment: &Deployment, kind: CountsKind) -> Versions {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        let lines = catalog.counts_lines("test", kind).await.unwrap();
        let mut kept = HashMap::new();
        for line in &lines {
            let version = catalog.counts("test", kind, line.version).await.unwrap();
            assert_eq!(version.is_some(), line.is_kept);
            kept.extend(version.map(|mut v| (v.version, v.counts.remove("").unwrap())));
        }
        let newest = catalog.newest_counts("test", kind).await.unwrap().unwrap();
        let shards = catalog.shards("test").await.unwrap();
        let shards = shards.into_iter().map(|(_, shard)| (shard.shard.clone(), shard)).collect();
        Versions { lines, kept, newest, shards }
    })
}

/// Every version is the one before, decayed, plus the n-grams of the windows of one publication: no window is missing or
/// counted twice, however often the daemon died, and what it used is what it stored.
#[test]
fn versions_are_the_sums_of_published_windows_and_windows_are_scored_with_the_version_they_name() {
    let broker = Broker::with_topic("adaptive", PARTITIONS as i32);
    // So many that in no partition whole windows hold what is there at a kill.
    let (kills, n_documents) = if broker.is_real() { (12, 60_000) } else { (3, 12_400) };
    let switch = n_documents / 2;
    let extra = format!(
        "model.raw = \"adaptive\"\nmodel.raw_half_life_ngrams = {HALF_LIFE_NGRAMS}\n\
         model.raw_prior_ngrams = {PRIOR_NGRAMS}\nwindow.max_documents = 150\nshard.max_rows = 700\n\
         selection.fraction = 1.0"
    );
    let deployment = Deployment::new(&broker, &extra);
    let seed = random_seed();
    println!("{kills} kills, WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let producer = broker.producer();
    let produce = |numbers: std::ops::Range<u64>| {
        for n in numbers {
            let payload = serde_json::json!({ "id": n.to_string(), "text": text(n, switch) }).to_string();
            producer.send((n % PARTITIONS) as i32, Some(payload.as_bytes()));
        }
        producer.flush();
    };
    let chunk = n_documents / (kills + 1);
    for kill in 0..kills {
        let daemon = deployment.start_without_end();
        produce(kill * chunk..(kill + 1) * chunk);
        // The moment of the fault is the input of this test, not a way to wait. Every other kill finds the daemon reading.
        if kill % 2 == 0 {
            let has_read = || (daemon.metric("winnowd_consumed_records_total") > 0.0).then_some(());
            wait_for("the daemon to read", has_read);
        }
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        daemon.kill_9();
        let decided = deployment.totals().n_records as u64;
        assert!(decided < (kill + 1) * chunk, "the kill met the daemon at work: {decided} documents are decided");
    }
    produce(kills * chunk..n_documents);
    let daemon = deployment.start();
    wait_for("all documents", || (deployment.totals().n_records as u64 >= n_documents).then_some(()));
    let versions = read_versions(&deployment, CountsKind::Raw);
    let newest = versions.newest.version;
    wait_for("the newest version", || (daemon.metric("winnowd_raw_version") as i64 == newest).then_some(()));
    assert!(daemon.metric("winnowd_raw_drift_nats") > 0.1);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    let produced = (0..PARTITIONS as i32).map(|p| (p, (n_documents / PARTITIONS) as i64)).collect();
    published.assert_exactly_once(&produced);

    let model = Model::from_bytes(&model_bytes()).unwrap();
    let featuriser: Featuriser = model.featuriser;
    let mut scratch = Scratch::default();
    let mut count = |numbers: &mut dyn Iterator<Item = u64>| {
        let mut counts = NgramCounts::zero(featuriser.buckets as usize);
        numbers.for_each(|n| {
            counts.add_text(&text(n, switch), &featuriser, &mut scratch);
        });
        counts
    };
    // Recompute every version from what its publication's windows cover.
    let mut state = DecayedCounts::prior(featuriser, &model.raw.counts.probabilities(), PRIOR_NGRAMS);
    let mut shards_seen = BTreeSet::new();
    let mut at_switch = None;
    assert_eq!((versions.lines[0].version, &versions.lines[0].shard), (0, &None));
    for (i, line) in versions.lines.iter().enumerate().skip(1) {
        let shard = line.shard.as_ref().unwrap();
        assert!(shards_seen.insert(shard), "shard {shard} was added twice");
        let windows = &versions.shards[shard].windows;
        let numbers = windows.iter().flat_map(|w| {
            (w.interval.from..w.interval.to).map(|offset| offset as u64 * PARTITIONS + w.at.partition as u64)
        });
        let numbers: Vec<u64> = numbers.collect();
        if numbers.iter().any(|n| *n >= switch) {
            at_switch.get_or_insert_with(|| state.clone());
        }
        let added = count(&mut numbers.into_iter());
        state.add(&added, Some(HALF_LIFE_NGRAMS));
        assert_eq!((line.version, line.n_ngrams), (i as i64, added.total() as i64));
        assert_eq!(versions.kept[&line.version], state, "version {i}");
    }
    assert_eq!(shards_seen.len(), versions.shards.len(), "every publication made a version");
    assert_eq!((newest, &versions.newest.counts[""]), (versions.lines.len() as i64 - 1, &state));
    assert!(newest >= 5, "{newest} versions are too few to show anything");

    // Every document was weighed against the version that its window names, to the last bit.
    let target = model.target_probabilities();
    let by_version: HashMap<i64, ImportanceWeight> = versions
        .kept
        .iter()
        .map(|(version, counts)| {
            (*version, ImportanceWeight::new(featuriser, &target, &counts.probabilities(), model.smoothing))
        })
        .collect();
    let pinned: HashMap<String, i64> = published.windows.iter().map(|w| (w.id(), w.raw_version.unwrap())).collect();
    assert!(pinned.values().collect::<BTreeSet<_>>().len() >= 3, "windows of few versions: {pinned:?}");
    for row in &published.rows {
        let weight = &by_version[&pinned[&row.window]];
        let score = weight.score(&text(row.id.parse().unwrap(), switch), &mut Scratch::default());
        assert_eq!(row.log_importance_weight, score.log_importance_weight, "document {} of {}", row.id, row.window);
    }

    // The stream has moved on, and the distribution with it: what is left of the old mix has halved with every half-life.
    let fresh = count(&mut (switch..n_documents)).probabilities();
    let divergence = |state: &DecayedCounts| kl_divergence(&fresh, &state.probabilities(), model.smoothing);
    let (before, after) = (divergence(&at_switch.unwrap()), divergence(&state));
    let half_lives = (n_documents - switch) as f64 * 47.0 / HALF_LIFE_NGRAMS as f64;
    println!("{newest} versions; divergence from a fresh fit {before:.4}, {half_lives:.1} half-lives later {after:.4}");
    // Some 57,000 remembered n-grams of fewer than a hundred kinds are 0.001 nats away from a fresh fit by chance.
    let bound = before * 0.5f64.powf(half_lives) + 0.005;
    assert!(after < bound, "{before} nats became {after} in {half_lives} half-lives");
}

/// A model is rolled out and taken back, twice, with another hash of n-grams in as many buckets: its counts go on where they were, as if
/// the other one had never been there, and no document is weighed with the counts of the other one.
#[test]
fn models_that_take_turns_go_on_with_counts_of_their_own() {
    const N_OF_A_TURN: u64 = 800;
    let broker = Broker::with_topic("turns", PARTITIONS as i32);
    let extra = format!(
        "model.raw = \"adaptive\"\nmodel.raw_half_life_ngrams = {HALF_LIFE_NGRAMS}\n\
         model.raw_prior_ngrams = {PRIOR_NGRAMS}\nmodel.against = \"selected\"\nmodel.selected_share = 0.5\n\
         window.max_documents = 100\nshard.max_rows = 100\nselection.fraction = 1.0"
    );
    let deployment = Deployment::new(&broker, &extra);
    let producer = broker.producer();
    let fast = Featuriser { hash: NgramHash::Fast, ..Featuriser::default() };
    let count = |featuriser: &Featuriser, numbers: &mut dyn Iterator<Item = u64>| {
        let (mut counts, mut scratch) = (NgramCounts::zero(featuriser.buckets as usize), Scratch::default());
        numbers.for_each(|n| {
            counts.add_text(&text(n, u64::MAX), featuriser, &mut scratch);
        });
        counts
    };
    let side = |numbers: std::ops::Range<u64>| Side::of(count(&fast, &mut { numbers }));
    let fast_model = Model::of_one_target(fast, side(1_000_000..1_000_050), side(2_000_000..2_001_000)).unwrap();
    let models = [Model::from_bytes(&model_bytes()).unwrap(), fast_model];
    for turn in 0..4 {
        let numbers = turn * N_OF_A_TURN..(turn + 1) * N_OF_A_TURN;
        for n in numbers.clone() {
            let payload = serde_json::json!({ "id": n.to_string(), "text": text(n, u64::MAX) }).to_string();
            producer.send((n % PARTITIONS) as i32, Some(payload.as_bytes()));
        }
        producer.flush();
        let bytes = models[turn as usize % 2].to_bytes();
        std::fs::write(deployment.folder.path().join("model.wnw"), bytes).unwrap();
        let daemon = deployment.start();
        wait_for("all documents", || (deployment.totals().n_records as u64 >= numbers.end).then_some(()));
        assert_eq!(daemon.stop(), Some(0));
    }
    let by_id: HashMap<String, &Model> =
        models.iter().map(|model| (ModelId::of(&model.to_bytes()).to_string(), model)).collect();

    let raw = read_versions(&deployment, CountsKind::Raw);
    let mut states: HashMap<NgramHash, DecayedCounts> = HashMap::new();
    let mut turns = Vec::new();
    for line in &raw.lines {
        let Some(shard) = &line.shard else {
            let begun = raw.kept[&line.version].clone();
            assert!(states.insert(begun.featuriser().hash, begun).is_none(), "version {} begins anew", line.version);
            continue;
        };
        let ShardManifest { model, windows, .. } = &raw.shards[shard];
        let featuriser = by_id[&model.to_string()].featuriser;
        let numbers = windows.iter().flat_map(|w| {
            (w.interval.from..w.interval.to).map(|offset| offset as u64 * PARTITIONS + w.at.partition as u64)
        });
        let state = states.get_mut(&featuriser.hash).unwrap();
        state.add(&count(&featuriser, &mut { numbers }), Some(HALF_LIFE_NGRAMS));
        assert_eq!(&raw.kept[&line.version], state, "version {}", line.version);
        turns.push(featuriser);
    }
    turns.dedup();
    assert_eq!((states.len(), turns.len()), (2, 4), "each began once, and went on after the other");

    let selected = read_versions(&deployment, CountsKind::Selected);
    assert_eq!(selected.lines.iter().filter(|line| line.shard.is_none()).count(), 2);
    for shard in raw.shards.values() {
        let featuriser = &by_id[&shard.model.to_string()].featuriser;
        for window in &shard.windows {
            let of_raw = &raw.kept[&window.raw_version.unwrap()];
            let of_selected = &selected.kept[&window.against_selected.unwrap().version];
            assert_eq!((of_raw.featuriser(), of_selected.featuriser()), (featuriser, featuriser));
        }
    }
    let verified = deployment.winnowd(&["replay", "--verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
}

/// A stream of which a fifth is one half of the target, a twentieth the other, and the rest neither.
fn text_of_modes(n: u64) -> String {
    const COMMON: [&str; 8] = ["select", "table", "index", "query", "vacuum", "join", "where", "from"];
    const RARE: [&str; 8] = ["kernel", "thread", "mutex", "page", "fault", "cache", "signal", "futex"];
    const OTHER: [&str; 8] = ["king", "thou", "night", "sword", "love", "crown", "ghost", "hast"];
    let mut random = Random::new(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED);
    let words = match random.below(100) {
        0..=4 => RARE,
        5..=24 => COMMON,
        _ => OTHER,
    };
    (0..24).map(|_| words[random.below(8) as usize]).collect::<Vec<_>>().join(" ")
}

/// What was selected is added exactly once, and is what the windows of later publications are weighed against.
#[test]
fn what_was_selected_is_weighed_against_and_counted_once() {
    const N_DOCUMENTS: u64 = 12_000;
    let broker = Broker::with_topic("corrected", PARTITIONS as i32);
    let kills = if broker.is_real() { 6 } else { 1 };
    let producer = broker.producer();
    let produce = |numbers: std::ops::Range<u64>| {
        for n in numbers {
            let payload = serde_json::json!({ "id": n.to_string(), "text": text_of_modes(n) }).to_string();
            producer.send((n % PARTITIONS) as i32, Some(payload.as_bytes()));
        }
        producer.flush();
    };
    let seed = random_seed();
    println!("{kills} kills, WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let featuriser = Featuriser::default();
    let count = |numbers: &mut dyn Iterator<Item = u64>| {
        let (mut counts, mut scratch) = (NgramCounts::zero(featuriser.buckets as usize), Scratch::default());
        numbers.for_each(|n| {
            counts.add_text(&text_of_modes(n), &featuriser, &mut scratch);
        });
        counts
    };
    let is = |n: u64, word: &str| text_of_modes(n).split(' ').any(|w| w == word || w == "futex" && word == "mutex");
    let (common, rare): (Vec<u64>, Vec<u64>) =
        (1_000_000..1_020_000).filter(|n| is(*n, "select") || is(*n, "mutex")).partition(|n| is(*n, "select"));
    // Both halves of the target have the same share of it.
    let half = rare.len().min(common.len());
    let target = count(&mut common[..half].iter().chain(&rare[..half]).copied());
    let raw = count(&mut (2_000_000..2_010_000));
    let model = Model::of_one_target(featuriser, Side::of(target), Side::of(raw)).unwrap();

    let mut run = |against: &str, chunks: u64| {
        let extra = format!(
            "{against}\nwindow.max_documents = 200\nshard.max_rows = 100\nselection.fraction = 0.05\n\
             selection.length_normalise = true\nselection.temperature = 0.05"
        );
        let deployment = Deployment::new(&broker, &extra);
        std::fs::write(deployment.folder.path().join("model.wnw"), model.to_bytes()).unwrap();
        // None: everything is there already.
        for chunk in 0..chunks {
            let daemon = deployment.start();
            produce(chunk * N_DOCUMENTS / (chunks + 1)..(chunk + 1) * N_DOCUMENTS / (chunks + 1));
            // The moment of the fault is the input of this test, not a way to wait.
            std::thread::sleep(Duration::from_millis(random.below(1500)));
            daemon.kill_9();
        }
        if chunks > 0 {
            produce(chunks * N_DOCUMENTS / (chunks + 1)..N_DOCUMENTS);
        }
        let daemon = deployment.start();
        wait_for("all documents", || (deployment.totals().n_records as u64 >= N_DOCUMENTS).then_some(()));
        let status: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
        let divergence = daemon.metric("winnowd_target_divergence_nats{of=\"selected\"}");
        assert!(divergence < daemon.metric("winnowd_target_divergence_nats{of=\"stream\"}"));
        assert!(status["lacking"][0]["nats"].as_f64().unwrap() > 0.0, "{status}");
        assert_eq!(daemon.stop(), Some(0));
        let published = deployment.published();
        let produced = (0..PARTITIONS as i32).map(|p| (p, (N_DOCUMENTS / PARTITIONS) as i64)).collect();
        published.assert_exactly_once(&produced);
        (deployment, published)
    };

    let against = format!(
        "model.against = \"selected\"\nmodel.selected_share = 0.75\nmodel.selected_prior_ngrams = {PRIOR_NGRAMS}"
    );
    let (deployment, published) = run(&against, kills);
    let versions = read_versions(&deployment, CountsKind::Selected);
    let mut by_window: HashMap<&str, Vec<u64>> = HashMap::new();
    for row in &published.rows {
        by_window.entry(&row.window).or_default().push(row.id.parse().unwrap());
    }
    let mut state = DecayedCounts::prior(featuriser, &model.raw.counts.probabilities(), PRIOR_NGRAMS);
    for line in versions.lines.iter().skip(1) {
        let windows = versions.shards[line.shard.as_ref().unwrap()].windows.iter();
        let mut numbers = windows.flat_map(|w| by_window.get(&*w.id()).cloned().unwrap_or_default());
        let added = count(&mut numbers);
        state.add(&added, None);
        assert_eq!(line.n_ngrams as u64, added.total());
        assert_eq!(versions.kept[&line.version], state, "version {}", line.version);
    }
    assert_eq!(versions.newest.counts[""], state);
    assert_eq!(versions.lines.len(), versions.shards.len() + 1, "every publication made a version, once");

    // log p_target − ¼ log p_raw − ¾ log p_selected, to the last bit.
    let target = model.target_probabilities();
    let (raw, mut weights) = (model.raw.counts.probabilities(), HashMap::new());
    for (version, counts) in &versions.kept {
        let denominator = [(0.25, &raw), (0.75, &counts.probabilities())];
        weights.insert(*version, ImportanceWeight::against(featuriser, &target, &denominator, model.smoothing));
    }
    let named: HashMap<String, i64> =
        published.windows.iter().map(|w| (w.id(), w.against_selected.unwrap().version)).collect();
    assert!(named.values().collect::<BTreeSet<_>>().len() >= 3, "windows of few versions: {named:?}");
    for row in &published.rows {
        let text = text_of_modes(row.id.parse().unwrap());
        let score = weights[&named[&row.window]].score(&text, &mut Scratch::default());
        assert_eq!(row.log_importance_weight, score.log_importance_weight, "document {} of {}", row.id, row.window);
    }
    let verified = deployment.winnowd(&["replay", "--verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));

    // What it is for: the selection has both halves of the target, and is nearer to it.
    let (_, plain) = run("", 0);
    let selected =
        |published: &Published| -> Vec<u64> { published.rows.iter().map(|row| row.id.parse().unwrap()).collect() };
    let divergence = |numbers: &[u64]| {
        let counts = count(&mut numbers.iter().copied());
        kl_divergence(&target, &counts.probabilities(), model.smoothing)
    };
    let (corrected, plain) = (selected(&published), selected(&plain));
    let n_rare = |numbers: &[u64]| numbers.iter().filter(|n| is(**n, "mutex") && !is(**n, "select")).count();
    println!(
        "of {} selected, {} of the rare half, {:.3} nats from the target; by DSIR {} and {:.3}",
        corrected.len(),
        n_rare(&corrected),
        divergence(&corrected),
        n_rare(&plain),
        divergence(&plain)
    );
    assert!(divergence(&corrected) < 0.5 * divergence(&plain));
}
