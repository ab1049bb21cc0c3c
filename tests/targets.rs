//! The daemon with several targets and with shares of sources: what stands in shards and manifests, decided again to the last
//! bit; killed while it works; two workers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use support::*;
use winnowd::catalog::{Access, CatalogReader, CountsCatalog, CountsKind, SqlCatalog};
use winnowd::features::{Featuriser, Scratch};
use winnowd::manifest::ShardManifest;
use winnowd::score::{DecayedCounts, ImportanceWeight, Model, NgramCounts, Side, Target};
use winnowd::window::CloseReason;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: u64 = 4;
const TARGETS: [&str; 2] = ["code", "math"];
const PRIOR_NGRAMS: u64 = 20_000;

/// A fifth of the documents are code, as many mathematics, and the rest neither.
fn text(n: u64) -> String {
    const CODE: [&str; 8] = ["kernel", "thread", "mutex", "page", "fault", "cache", "signal", "futex"];
    const MATH: [&str; 8] = ["lemma", "proof", "group", "field", "prime", "kernel", "limit", "sum"];
    const OTHER: [&str; 8] = ["king", "thou", "night", "sword", "love", "crown", "ghost", "sum"];
    let mut random = Random::new(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x7A36);
    let words = match random.below(5) {
        0 => CODE,
        1 => MATH,
        _ => OTHER,
    };
    (0..24).map(|_| words[random.below(8) as usize]).collect::<Vec<_>>().join(" ")
}

/// Of ten documents in a partition four are from the web and two from books.
fn source(n: u64) -> &'static str {
    match n / PARTITIONS % 10 {
        0..=3 => "web",
        4..=5 => "books",
        6..=8 => "mail",
        _ => "news",
    }
}

fn count(texts: impl Iterator<Item = String>) -> NgramCounts {
    let featuriser = Featuriser::default();
    let (mut counts, mut scratch) = (NgramCounts::zero(featuriser.buckets as usize), Scratch::default());
    texts.for_each(|text| {
        counts.add_text(&text, &featuriser, &mut scratch);
    });
    counts
}

fn model() -> Model {
    let is = |n: &u64, word: &str| text(*n).split(' ').any(|w| w == word);
    let of = |word: &'static str| count((1_000_000..1_004_000).filter(|n| is(n, word)).map(text));
    let target =
        |(name, word): (&str, &'static str)| Target { name: name.into(), proportion: 0.5, side: Side::of(of(word)) };
    let targets = [(TARGETS[0], "mutex"), (TARGETS[1], "lemma")].map(target).to_vec();
    let raw = Side::of(count((2_000_000..2_004_000).map(text)));
    let one = Model::of_one_target(Featuriser::default(), targets[0].side.clone(), raw).unwrap();
    Model { targets, ..one }.validated().unwrap()
}

fn produce(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer();
    for n in numbers {
        let hard = n * n % 101;
        let payload = serde_json::json!({ "id": n.to_string(), "text": text(n), "source": source(n), "hard": hard });
        let payload = payload.to_string();
        producer.send((n % PARTITIONS) as i32, Some(payload.as_bytes()));
    }
    producer.flush();
}

fn deployment(broker: &Broker, extra: &str, postgres: Option<&url::Url>) -> Deployment {
    let extra =
        format!("shard.max_rows = 100\nselection.length_normalise = true\nselection.temperature = 0.3\n{extra}");
    let deployment = Deployment::with(broker, &extra, postgres, None);
    std::fs::write(deployment.folder.path().join("model.wnw"), model().to_bytes()).unwrap();
    deployment
}

fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("all documents", || (deployment.totals().n_records as u64 >= n).then_some(()));
}

fn shards(deployment: &Deployment) -> Vec<ShardManifest> {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        let shards = catalog.shards("test").await.unwrap();
        shards.into_iter().map(|(_, shard)| shard).collect()
    })
}

fn assert_once(published: &Published, n: u64) {
    published.assert_exactly_once(&(0..PARTITIONS as i32).map(|p| (p, (n / PARTITIONS) as i64)).collect());
}

/// Produces `numbers` in three waves, each once the one before is decided and all `workers` have seen what was selected for it, so that
/// there are windows that were opened at three versions, however fast they are decided and however few shards they share.
fn produce_in_waves(
    broker: &Broker,
    deployment: &Deployment,
    workers: &[DaemonProcess],
    numbers: std::ops::Range<u64>,
) {
    let n = (numbers.end - numbers.start) / 3 / PARTITIONS * PARTITIONS;
    let ends = [numbers.start + n, numbers.start + 2 * n, numbers.end];
    let starts = [numbers.start, ends[0], ends[1]];
    for (start, end) in starts.into_iter().zip(ends) {
        produce(broker, start..end);
        wait_decided(deployment, end);
        wait_for("all workers to weigh against the newest version", || {
            let newest = newest_version(deployment);
            workers.iter().all(|worker| worker.metric("winnowd_selected_version") == newest).then_some(())
        });
    }
}

fn newest_version(deployment: &Deployment) -> f64 {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        let newest = catalog.newest_counts("test", CountsKind::Selected).await.unwrap().unwrap().version;
        catalog.close().await;
        newest as f64
    })
}

/// All windows are decided again, and are the same.
fn verify(deployment: &Deployment, n_windows: usize) {
    let output = deployment.winnowd(&["replay", "--verify"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("{n_windows} windows are the same to the last bit, 0 differ, 0 cannot")), "{said}");
}

const QUOTAS: &str = "selection.sources.web = 0.5\nselection.sources.books = 0.2";

/// Every window of 200 documents selects ten documents from the web, four from books and six others, 70 % of them for the first
/// target, and shards say for which, by which weights.
#[test]
fn targets_choose_in_turn_within_the_shares_of_sources() {
    const N: u64 = 8_000;
    let broker = Broker::with_topic("targets", PARTITIONS as i32);
    let proportions = "selection.proportions.code = 0.7\nselection.proportions.math = 0.3";
    let deployment = deployment(&broker, &format!("window.max_documents = 200\n{QUOTAS}\n{proportions}"), None);
    let check = deployment.winnowd(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(
        said.contains("50.0 % of source web") && said.contains("target code: ") && said.contains("70.0 %"),
        "{said}"
    );
    let daemon = deployment.start();
    produce(&broker, 0..N);
    wait_decided(&deployment, N);
    let status: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    let published = deployment.published();
    assert_once(&published, N);

    // Exactly, in every window.
    for window in &published.windows {
        assert_eq!((window.closed_by, window.n_selected), (CloseReason::Documents, 20));
        let of = |keep: &dyn Fn(&winnowd::window::TurnSummary) -> bool| {
            window.turns.iter().filter(|turn| keep(turn)).map(|turn| turn.n_selected).sum::<u64>()
        };
        let of_source = |source: Option<&str>| of(&|turn| turn.source.as_deref() == source);
        assert_eq!([Some("web"), Some("books"), None].map(of_source), [10, 4, 6], "{window:?}");
        let for_code = of(&|turn| turn.target.as_deref() == Some("code"));
        assert!((13..=15).contains(&for_code), "7, 2.8 and 4.2 documents are {for_code}");
        let rows = published.rows.iter().filter(|row| row.window == window.id());
        let rows_for_code = rows.filter(|row| row.target.as_deref() == Some("code")).count() as u64;
        let in_summary = window.targets.iter().map(|target| target.diagnostics.n_selected).collect::<Vec<_>>();
        assert_eq!(([rows_for_code, 20 - rows_for_code], for_code), ([in_summary[0], in_summary[1]], rows_for_code));
    }
    let by_source =
        |source: &str| published.rows.iter().filter(|row| self::source(row.id.parse().unwrap()) == source).count();
    assert_eq!((by_source("web"), by_source("books"), published.rows.len()), (400, 160, 800));
    let n_code = published.rows.iter().filter(|row| row.target.as_deref() == Some("code")).count();
    assert!(n_code.abs_diff(560) < 30, "{n_code} of 800 for the target that shall have 70 %");

    // By the weights that files get: to the last bit.
    let weights = ImportanceWeight::of_targets(&model());
    for row in &published.rows {
        let text = text(row.id.parse().unwrap());
        let of = |weight: &ImportanceWeight| weight.score(&text, &mut Scratch::default()).log_importance_weight;
        let expected: Vec<(String, f64)> =
            TARGETS.iter().map(|t| (*t).to_owned()).zip(weights.iter().map(of)).collect();
        assert_eq!(row.log_importance_weights, expected);
        let chosen_for = expected.iter().find(|(name, _)| Some(name) == row.target.as_ref()).unwrap();
        assert_eq!(row.log_importance_weight, chosen_for.1);
        assert_eq!(row.sample_weight, row.inclusion_probability.recip());
    }

    // What was in force is recorded.
    for shard in shards(&deployment) {
        let quotas = &shard.selector.quotas;
        assert_eq!(quotas.sources, BTreeMap::from([("books".to_owned(), 0.2), ("web".to_owned(), 0.5)]));
        assert_eq!(quotas.proportions, BTreeMap::from([("code".to_owned(), 0.7), ("math".to_owned(), 0.3)]));
    }
    let targets = status["targets"].as_array().unwrap();
    assert_eq!(targets.iter().map(|t| t["target"].as_str().unwrap()).collect::<Vec<_>>(), TARGETS);
    assert!(
        targets.iter().all(|t| t["kl_reduction"].as_f64().unwrap() > 0.0 && t["lacking"][0]["nats"].as_f64().is_some()),
        "{status}"
    );
    assert_eq!(daemon.metric("winnowd_by_target_selected_documents_total{target=\"code\"}") as usize, n_code);
    assert!(daemon.metric("winnowd_by_target_window_effective_sample_ratio{target=\"math\"}") > 0.0);
    for (source, share) in [("web", 0.5), ("books", 0.2)] {
        let shown = |of: &str| daemon.metric(&format!("winnowd_source_share_ratio{{of=\"{of}\",source=\"{source}\"}}"));
        assert_eq!((shown("wanted"), shown("selected")), (share, share));
    }
    let window = published.windows[0].id();
    let shown = deployment.winnowd(&["replay", "--window", &window, "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let first = published.rows.iter().find(|row| row.window == window).unwrap();
    let in_json = shown["selected"].as_array().unwrap().iter().find(|row| row["id"] == first.id.as_str()).unwrap();
    assert_eq!(in_json["target"].as_str(), first.target.as_deref());
    let shown = deployment.winnowd(&["replay", "--window", &window]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for expected in ["7 of 80 candidates of source web for code, highest key left ", "all other sources for math"] {
        assert!(shown.contains(expected), "`{expected}` is not in:\n{shown}");
    }
    let listed = deployment.winnowd(&["shards"]);
    let listed = String::from_utf8_lossy(&listed.stdout);
    assert!(listed.contains(&format!("{n_code} for code, {} for math", 800 - n_code)), "{listed}");
    assert_eq!(daemon.stop(), Some(0));
    verify(&deployment, published.windows.len());

    // Other proportions from now on: each shard is decided again by its own.
    let config = std::fs::read_to_string(&deployment.config).unwrap();
    let even = config
        .replace("code = 0.7", "code = 0.25")
        .replace("math = 0.3", "math = 0.75")
        .replace("web = 0.5", "mail = 0.8");
    std::fs::write(&deployment.config, even).unwrap();
    let daemon = deployment.start();
    produce(&broker, N..N + 800);
    wait_decided(&deployment, N + 800);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    let last = published.windows.iter().filter(|window| window.interval.from >= (N / PARTITIONS) as i64);
    let mail: u64 = last
        .flat_map(|window| &window.turns)
        .filter(|turn| turn.source.as_deref() == Some("mail"))
        .map(|turn| turn.n_selected)
        .sum();
    assert_eq!(mail, 64, "16 of each of four windows");
    verify(&deployment, published.windows.len());
}

/// Of ten times ten documents in a partition forty are German and twenty of number 17, whatever their source; the rest has no share: in
/// other languages, or in none.
fn language(n: u64) -> serde_json::Value {
    match n / PARTITIONS / 10 % 10 {
        0..=3 => "de".into(),
        4 | 5 => 17.into(),
        6 => serde_json::Value::Null,
        7 => serde_json::json!(["de"]),
        8 => true.into(),
        _ => "fr".into(),
    }
}

/// Every window of 200 documents selects ten in German, four of number 17 and six others, then by strata as well; explained and decided
/// again; and by sources, when the configuration says so.
#[test]
fn values_of_another_field_have_shares() {
    const N: u64 = 1_600;
    let broker = Broker::with_topic("targets-field", PARTITIONS as i32);
    let quotas = "selection.quota_field = \"language\"\nselection.sources = { de = 0.5, 17 = 0.2 }";
    let deployment = deployment(&broker, &format!("window.max_documents = 200\n{quotas}"), None);
    let check = deployment.winnowd(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("50.0 % of language de") && said.contains("20.0 % of language 17"), "{said}");
    let produce = |numbers: std::ops::Range<u64>| {
        let producer = broker.producer();
        for n in numbers {
            let document = serde_json::json!({
                "id": n.to_string(), "text": text(n), "source": source(n), "language": language(n), "hard": n * n % 101,
            });
            producer.send((n % PARTITIONS) as i32, Some(document.to_string().as_bytes()));
        }
        producer.flush();
    };
    let pool = |n: u64| match language(n) {
        serde_json::Value::String(word) if word == "de" => Some("de"),
        serde_json::Value::Number(_) => Some("17"),
        _ => None,
    };
    let selected_of = |published: &Published, window: &winnowd::window::WindowSummary| {
        let rows: Vec<_> = published.rows.iter().filter(|row| row.window == window.id()).collect();
        let of = |value: Option<&str>| rows.iter().filter(|row| pool(row.id.parse().unwrap()) == value).count() as u64;
        [Some("de"), Some("17"), None].map(of)
    };
    let daemon = deployment.start();
    produce(0..N);
    wait_decided(&deployment, N);
    let status: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    assert!(status["shares"].get("de").is_none(), "they are not of sources: {status}");
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    assert_once(&published, N);
    for window in &published.windows {
        assert_eq!((window.closed_by, window.n_selected), (CloseReason::Documents, 20));
        assert_eq!(selected_of(&published, window), [10, 4, 6], "{window:?}");
        let named = |value: Option<&str>| {
            let turns = window.turns.iter().filter(|turn| turn.source.as_deref() == value);
            turns.fold((0, 0), |(n, of), turn| (n + turn.n_selected, of.max(turn.n_candidates)))
        };
        assert_eq!([Some("de"), Some("17"), None].map(named), [(10, 80), (4, 40), (6, 80)]);
    }
    assert!(shards(&deployment).iter().all(|shard| shard.selector.quotas.field.as_deref() == Some("language")));
    let window = published.windows[0].id();
    let shown = deployment.winnowd(&["replay", "--window", &window]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for expected in ["of 80 candidates of language de for code", "all other values of language for math"] {
        assert!(shown.contains(expected), "`{expected}` is not in:\n{shown}");
    }
    verify(&deployment, published.windows.len());
    let winnowd::window::WindowSummary { at, interval, .. } = &published.windows[0];
    for (offset, value) in [(0, Some("de")), (40, Some("17")), (60, None), (90, None)] {
        let offset = interval.from + offset;
        assert_eq!(pool(offset as u64 * PARTITIONS + at.partition as u64), value);
        let position = format!("{}:{offset}", at.partition);
        let explained = deployment.winnowd(&["explain", "--json", "--position", &position]);
        let said = String::from_utf8_lossy(&explained.stdout);
        let explanation: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        assert_eq!(
            explanation["document"]["quota"],
            serde_json::json!({ "field": "language", "value": value }),
            "{said}"
        );
        let turns = explanation["competition"]["turns"].as_array().unwrap();
        assert!(turns.len() == 2 && turns.iter().all(|turn| turn["source"].as_str() == value), "{said}");
        if let Some(value) = value {
            assert!(explanation["why"].as_str().unwrap().contains(&format!("of language {value}")), "{said}");
        }
    }

    // From now on with strata, and then by sources; each shard is decided again by its own.
    let config = std::fs::read_to_string(&deployment.config).unwrap();
    let by_source = config.replace(quotas, "selection.sources = { web = 0.5 }");
    for (config, from) in [(config + STRATA, N), (by_source, 2 * N)] {
        std::fs::write(&deployment.config, config).unwrap();
        let daemon = deployment.start();
        produce(from..from + N);
        wait_decided(&deployment, from + N);
        assert_eq!(daemon.stop(), Some(0));
    }
    let published = deployment.published();
    for window in &published.windows {
        let n_web = published.rows.iter().filter(|row| row.window == window.id());
        let n_web = n_web.filter(|row| source(row.id.parse().unwrap()) == "web").count();
        match &window.coverage {
            Some(coverage) => {
                let pools: Vec<_> = coverage.pools.iter().map(|pool| pool.source.as_deref()).collect();
                assert_eq!(pools, [None, Some("17"), Some("de")]);
                assert_eq!(selected_of(&published, window), [10, 4, 6], "{window:?}");
            }
            None if window.interval.from >= (2 * N / PARTITIONS) as i64 => assert_eq!(n_web, 10, "{window:?}"),
            None => {}
        }
    }
    assert_eq!(published.windows.iter().filter(|window| window.coverage.is_some()).count() as u64, N / 200);
    verify(&deployment, published.windows.len());
}

/// Names of targets are only known with the model.
#[test]
fn proportions_of_unknown_targets_are_refused() {
    let broker = Broker::with_topic("unknown", 1);
    let deployment = deployment(&broker, "selection.proportions.codes = 0.7\nselection.proportions.math = 0.3", None);
    for command in [&["check"][..], &["run"]] {
        let output = deployment.winnowd(command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(
            said.contains(
                "`selection.proportions.codes` = `0.7`: no target of the model has this name; it has `code`, `math`"
            ),
            "{said}"
        );
    }
}

const AGAINST: &str = "model.against = \"selected\"\nmodel.selected_share = 0.75\nmodel.selected_prior_ngrams = 20000\n\
                       model.selected_half_life_ngrams = 50000";
const SHARE: f64 = 0.75;
const HALF_LIFE_NGRAMS: u64 = 50_000;

/// Every version is the one before, for each target decayed, plus the n-grams of what that target selected in one publication;
/// every document was weighed, for each target, against the version that its window names, to the last bit.
fn check_versions(deployment: &Deployment, published: &Published) {
    let model = model();
    let featuriser = model.featuriser;
    let (lines, kept) = block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        let lines = catalog.counts_lines("test", CountsKind::Selected).await.unwrap();
        let mut kept = BTreeMap::new();
        for line in &lines {
            let version = catalog.counts("test", CountsKind::Selected, line.version).await.unwrap().unwrap();
            kept.insert(version.version, version.counts);
        }
        (lines, kept)
    });
    let windows: HashMap<String, Vec<String>> =
        shards(deployment).into_iter().map(|s| (s.shard, s.windows.iter().map(|w| w.id()).collect())).collect();
    let raw = model.raw.counts.probabilities();
    let prior = DecayedCounts::prior(featuriser, &raw, PRIOR_NGRAMS);
    let mut seen = BTreeSet::new();
    for (number, target) in TARGETS.iter().enumerate() {
        let mut state = prior.clone();
        let of_target: Vec<_> = lines.iter().filter(|line| line.target == *target).collect();
        assert_eq!((of_target[0].version, &of_target[0].shard), (0, &None));
        for (i, line) in of_target.iter().enumerate().skip(1) {
            let shard = line.shard.as_ref().unwrap();
            assert!(seen.insert((number, shard.clone())), "shard {shard} was added twice for {target}");
            let ids: BTreeSet<&String> = windows[shard].iter().collect();
            let rows = published.rows.iter().filter(|row| ids.contains(&row.window));
            let rows = rows.filter(|row| row.target.as_deref() == Some(*target));
            let added = count(rows.map(|row| text(row.id.parse().unwrap())));
            state.add(&added, Some(HALF_LIFE_NGRAMS));
            assert_eq!((line.version, line.n_ngrams as u64), (i as i64, added.total()));
            assert_eq!(kept[&line.version][*target], state, "version {i} of {target}");
        }
    }
    assert_eq!(seen.len(), TARGETS.len() * windows.len(), "every publication made a version, once");
    assert_eq!(lines.len(), TARGETS.len() * (windows.len() + 1));

    let weight = |version: i64, number: usize| {
        let target = model.targets[number].side.counts.probabilities();
        let selected = kept[&version][TARGETS[number]].probabilities();
        let denominator = [(1.0 - SHARE, &raw), (SHARE, &selected)];
        ImportanceWeight::against(featuriser, &target, &denominator, model.smoothing)
    };
    let weights: HashMap<i64, [ImportanceWeight; 2]> =
        kept.keys().map(|version| (*version, [weight(*version, 0), weight(*version, 1)])).collect();
    let named: HashMap<String, i64> =
        published.windows.iter().map(|w| (w.id(), w.against_selected.unwrap().version)).collect();
    assert!(named.values().collect::<BTreeSet<_>>().len() >= 3, "windows of few versions: {named:?}");
    let mut scratch = Scratch::default();
    for row in &published.rows {
        let text = text(row.id.parse().unwrap());
        let of = |weight: &ImportanceWeight, scratch: &mut Scratch| weight.score(&text, scratch).log_importance_weight;
        let expected = weights[&named[&row.window]].each_ref().map(|weight| of(weight, &mut scratch));
        let found: Vec<f64> = row.log_importance_weights.iter().map(|(_, weight)| *weight).collect();
        assert_eq!(found, expected, "document {} of {}", row.id, row.window);
    }
}

/// Killed while it works: what each target selected is added exactly once, and is what it is weighed against.
#[test]
fn what_each_target_selected_is_weighed_against_and_counted_once() {
    const N: u64 = 12_000;
    let broker = Broker::with_topic("targets-selected", PARTITIONS as i32);
    let kills = if broker.is_real() { 8 } else { 1 };
    let deployment = deployment(&broker, &format!("window.max_documents = 200\n{QUOTAS}\n{AGAINST}"), None);
    let seed = random_seed();
    println!("{kills} kills, WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let chunk = N / (kills + 1) / PARTITIONS * PARTITIONS;
    for kill in 0..kills {
        let daemon = deployment.start_without_end();
        produce(&broker, kill * chunk..(kill + 1) * chunk);
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
    let daemons = [deployment.start()];
    produce_in_waves(&broker, &deployment, &daemons, kills * chunk..N);
    daemons.into_iter().for_each(|daemon| assert_eq!(daemon.stop(), Some(0)));
    let published = deployment.published();
    assert_once(&published, N);
    check_versions(&deployment, &published);
    verify(&deployment, published.windows.len());
}

const STRATA: &str =
    "selection.selector = \"coverage\"\nselection.importance = \"hard\"\nselection.strata = 5\nselection.cutoff = 0.1";

/// Sources, strata and targets together, each target against what it has selected: killed while documents wait on disk.
#[test]
fn strata_of_every_source_are_shared_by_targets_against_what_each_has_selected() {
    const N: u64 = 12_000;
    let broker = Broker::with_topic("targets-strata", PARTITIONS as i32);
    let kills = if broker.is_real() { 4 } else { 1 };
    let proportions = "selection.proportions.code = 0.7\nselection.proportions.math = 0.3";
    let extra = format!("window.max_documents = 200\n{QUOTAS}\n{AGAINST}\n{STRATA}\n{proportions}");
    let deployment = deployment(&broker, &extra, None);
    let check = deployment.winnowd(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("without the 0.1 of highest hard, over 5 strata of hard, by weight inside"), "{said}");
    let chunk = N / (kills + 1) / PARTITIONS * PARTITIONS;
    for kill in 0..kills {
        let daemon = deployment.start_without_end();
        produce(&broker, kill * chunk..(kill + 1) * chunk);
        let has_read = || (daemon.metric("winnowd_consumed_records_total") > 0.0).then_some(());
        wait_for("the daemon to read", has_read);
        daemon.kill_9();
    }
    let daemons = [deployment.start()];
    produce_in_waves(&broker, &deployment, &daemons, kills * chunk..N);
    daemons.into_iter().for_each(|daemon| assert_eq!(daemon.stop(), Some(0)));
    let published = deployment.published();
    assert_once(&published, N);
    for window in published.windows.iter().filter(|window| window.closed_by == CloseReason::Documents) {
        let pools = &window.coverage.as_ref().unwrap().pools;
        assert_eq!(
            pools.iter().map(|pool| pool.source.as_deref()).collect::<Vec<_>>(),
            [None, Some("books"), Some("web")]
        );
        let selected = pools.iter().map(|pool| pool.strata.iter().map(|stratum| stratum.n_selected).sum::<u64>());
        assert_eq!(selected.collect::<Vec<_>>(), [6, 4, 10], "{window:?}");
        // Five strata with as many documents each as are wanted of them: two of each stratum of the web.
        assert!(pools[2].strata.iter().all(|stratum| stratum.n_documents < 2 || stratum.n_selected >= 2), "{pools:?}");
        let rows = published.rows.iter().filter(|row| row.window == window.id());
        let for_code = rows.filter(|row| row.target.as_deref() == Some("code")).count();
        assert!((13..=15).contains(&for_code), "7, 2.8 and 4.2 documents are {for_code}");
    }
    check_versions(&deployment, &published);
    verify(&deployment, published.windows.len());
}

/// Where several targets choose, each by its weights, there must be weights to choose by.
#[test]
fn strata_that_several_targets_cannot_share_are_refused() {
    let broker = Broker::with_topic("targets-uniform", 1);
    for (settings, expected) in [
        (
            STRATA.to_owned() + "\nselection.within = \"uniform\"",
            "selection.within = uniform: several targets choose by their weights",
        ),
        (
            STRATA.replace("\"hard\"", "\"weight\""),
            "a document has one `weight` for each of several targets; name a field",
        ),
    ] {
        let deployment = deployment(&broker, &settings, None);
        for command in [&["check"][..], &["run"]] {
            let output = deployment.winnowd(command);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(64) && said.contains(expected), "{said}");
        }
    }
}

/// Two workers on one catalog: both weigh against what both have selected, and every window is what one would have decided.
#[test]
fn two_workers_select_for_several_targets() {
    const N: u64 = 12_000;
    let Some(database) = Database::create() else { return };
    let broker = Broker::with_topic("targets-fleet", PARTITIONS as i32);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster cannot balance a group of several members");
        return;
    }
    let extra = format!("window.max_documents = 200\n{QUOTAS}\n{AGAINST}");
    let deployment = deployment(&broker, &extra, Some(&database.url));
    let mut workers = Vec::from(["worker-0", "worker-1"].map(|name| deployment.start_worker(name)));
    let shared = || workers.iter().all(|worker| worker.metric("winnowd_assigned_partitions") == 2.0).then_some(());
    wait_for("both to have partitions", shared);
    produce(&broker, 0..N / 2);
    wait_for("some publications", || (deployment.totals().n_shards >= 3).then_some(()));
    // One goes without a word in the middle of it, and comes back.
    workers.remove(1).kill_9();
    workers.push(deployment.start_worker("worker-1"));
    produce_in_waves(&broker, &deployment, &workers, N / 2..N);
    workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), Some(0)));
    let published = deployment.published();
    assert_once(&published, N);
    for window in published.windows.iter().filter(|window| window.closed_by == CloseReason::Documents) {
        let of_source = |source: Option<&str>| -> u64 {
            let turns = window.turns.iter().filter(|turn| turn.source.as_deref() == source);
            turns.map(|turn| turn.n_selected).sum()
        };
        assert_eq!([Some("web"), Some("books"), None].map(of_source), [10, 4, 6], "{window:?}");
    }
    check_versions(&deployment, &published);
    verify(&deployment, published.windows.len());
}
