//! `winnowd select --selector coverage --against selected`, as a user runs it: against the definition, document by document.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/files.rs"]
mod support;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use serde_json::{Value, json};
use support::{SELECTED, Sandbox, lines, numbers, strings};
use winnowd::features::Scratch;
use winnowd::record::TopicPartition;
use winnowd::score::{DecayedCounts, ImportanceWeight, Model, NgramCounts};
use winnowd::select::Noise;

const STRATA: usize = 6;
const COUNT: u64 = 200;
const TEMPERATURE: f64 = 0.05;

/// In sixteenths, so that what is computed from it in any way is exact. It has nothing to do with the text.
fn loss(id: &str) -> f64 {
    let hash = id.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    let uniform = (hash >> 11) as f64 / (1u64 << 53) as f64;
    (-(1.0 - uniform).ln() * 64.0).round() / 16.0
}

/// The raw documents with a loss, but for every 50th.
fn with_losses() -> Sandbox {
    let sandbox = Sandbox::new();
    let mut rows = lines(&sandbox.path("raw.jsonl"));
    for (i, row) in rows.iter_mut().enumerate() {
        if i % 50 != 49 {
            row["loss"] = loss(row["id"].as_str().unwrap()).into();
        }
    }
    let jsonl: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(sandbox.path("raw.jsonl"), jsonl).unwrap();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --featuriser fast --out model.wnw");
    sandbox
}

/// How windows follow one another, and what is seen of them.
#[derive(Clone, Copy)]
struct Way {
    window: usize,
    rounds: u64,
    lag: usize,
    is_shuffled: bool,
}

struct Doc {
    id: String,
    text: String,
    number: i64,
    n_ngrams: f64,
    loss: f64,
    pool: usize,
}

/// What was drawn: of a document its key and chance; and of those in windows their window, stratum, and what was to be chosen
/// from how many in the last round that they were in, with its threshold.
#[derive(Default)]
struct Drawn {
    picks: BTreeMap<String, (f64, f64)>,
    competed: HashMap<String, (usize, usize, u64, u64, Option<f64>)>,
    cut: HashSet<String>,
}

/// Of a stratum in a round: how many were chosen, what competed with its key, and the highest key that was left.
type Turn = (u64, HashMap<String, f64>, Option<f64>);

/// Strata are taken away one by one, the smallest first.
fn water_level(sizes: &[u64], mut total: u64) -> Vec<u64> {
    let (mut budgets, mut open) = (vec![0; sizes.len()], (0..sizes.len()).collect::<Vec<_>>());
    while let Some(&smallest) = open.iter().min_by_key(|&&j| (sizes[j], j)) {
        budgets[smallest] = sizes[smallest].min(total / open.len() as u64);
        total -= budgets[smallest];
        open.retain(|&j| j != smallest);
    }
    budgets
}

/// The definition: cut-off, strata and budgets of everything, then one window and one document after the other.
fn oracle(sandbox: &Sandbox, way: Way) -> Drawn {
    let model = Model::from_bytes(&std::fs::read(sandbox.path("model.wnw")).unwrap()).unwrap();
    let fitted = ImportanceWeight::of_targets(&model).remove(0);
    let mut scratch = Scratch::default();
    let mut documents = Vec::new();
    for (number, row) in (0..).zip(lines(&sandbox.path("raw.jsonl"))) {
        let text = row["text"].as_str().unwrap().to_owned();
        let n_tokens = fitted.score(&text, &mut scratch).n_tokens;
        let Some(loss) = row["loss"].as_f64().filter(|_| n_tokens >= 100) else { continue };
        let (id, pool) = (row["id"].as_str().unwrap().to_owned(), usize::from(row["source"] == "sotu"));
        documents.push(Doc { id, text, number, n_ngrams: 2.0 * f64::from(n_tokens) - 1.0, loss, pool });
    }
    let mut drawn = Drawn::default();
    // Of equal losses the later one goes.
    let mut hardest: Vec<usize> = (0..documents.len()).collect();
    hardest.sort_by(|&a, &b| documents[b].loss.total_cmp(&documents[a].loss).then(b.cmp(&a)));
    drawn.cut = hardest[..documents.len() / 10].iter().map(|&i| documents[i].id.clone()).collect();
    documents.retain(|doc| !drawn.cut.contains(&doc.id));

    // Of each pool: its strata, and of each of them its budget, its documents and where it rounds.
    let mut stratum_of = HashMap::new();
    let (mut budgets, mut sizes, mut phases) = (Vec::new(), Vec::new(), Vec::new());
    for (pool, budget) in [(0, COUNT * 3 / 4), (1, COUNT / 4)] {
        let losses = documents.iter().filter(|doc| doc.pool == pool).map(|doc| doc.loss);
        let (low, high) = losses.fold((f64::MAX, f64::MIN), |(low, high), l| (low.min(l), high.max(l)));
        let mut of_strata = vec![0; STRATA];
        for doc in documents.iter().filter(|doc| doc.pool == pool) {
            let stratum = (((doc.loss - low) * STRATA as f64 / (high - low)) as usize).min(STRATA - 1);
            stratum_of.insert(doc.id.clone(), stratum);
            of_strata[stratum] += 1;
        }
        budgets.push(water_level(&of_strata, budget));
        let n = budgets[pool].iter().filter(|budget| **budget > 0).count();
        let place = |stratum: usize| budgets[pool][..stratum].iter().filter(|budget| **budget > 0).count();
        phases.push((0..STRATA).map(|j| (place(j) as f64 + 0.5) / n as f64).collect::<Vec<_>>());
        sizes.push(of_strata);
    }
    if way.is_shuffled {
        let order = Noise::new(0, &TopicPartition::new("order of files", 0));
        documents.sort_by(|a, b| order.sampling(a.number).total_cmp(&order.sampling(b.number)));
    }

    let (target, raw) = (model.target_probabilities(), model.raw.counts.probabilities());
    let noise = Noise::new(0, &TopicPartition::new("files", 0));
    let mut seen = DecayedCounts::prior(model.featuriser, &raw, 20_000);
    let mut unseen = VecDeque::new();
    // Documents of each stratum in the windows before, and how many were selected of it.
    let (mut before, mut taken) = (vec![vec![0; STRATA]; 2], vec![vec![0; STRATA]; 2]);
    // Those of windows in which any of it was selected, and of the picks their strata.
    let (mut chosen_from, mut cells_of_picks) = (vec![vec![0; STRATA]; 2], Vec::new());
    for (window, documents) in documents.chunks(way.window).enumerate() {
        let in_cell = |doc: &&Doc, cell: (usize, usize)| (doc.pool, stratum_of[&doc.id]) == cell;
        let mut left: Vec<&Doc> = documents.iter().collect();
        let mut turns: HashMap<(usize, usize), Vec<Turn>> = HashMap::new();
        let mut keys_of_picks = Vec::new();
        for round in 1..=way.rounds {
            let denominator = [(0.25, &raw), (0.75, &seen.probabilities())];
            let weight = ImportanceWeight::against(model.featuriser, &target, &denominator, model.smoothing);
            let mut counts = NgramCounts::zero(model.featuriser.buckets as usize);
            for cell in (0..2).flat_map(|pool| (0..STRATA).map(move |stratum| (pool, stratum))) {
                let (pool, stratum) = cell;
                let n = documents.iter().filter(|doc| in_cell(doc, cell)).count() as u64;
                let mut competing: Vec<_> = left.iter().copied().filter(|doc| in_cell(doc, cell)).collect();
                let mut total = |doc: &Doc| weight.score(&doc.text, &mut scratch).log_importance_weight / doc.n_ngrams;
                let scaled: HashMap<String, f64> =
                    competing.iter().map(|doc| (doc.id.clone(), total(doc) / TEMPERATURE)).collect();
                let key = |doc: &Doc| scaled[&doc.id] + noise.gumbel(doc.number);
                competing.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.number.cmp(&b.number)));
                let past = before[pool][stratum] as f64 + n as f64 * round as f64 / way.rounds as f64;
                let due = budgets[pool][stratum] as f64 * past / (sizes[pool][stratum] as f64).max(1.0);
                // What is exact stays exact in doubles but for the last bits.
                let due = (due + phases[pool][stratum] + 1e-9).floor() as u64;
                let due = if budgets[pool][stratum] == 0 { 0 } else { due };
                let count = due - taken[pool][stratum];
                taken[pool][stratum] = due;
                let threshold = if count > 0 { competing.get(count as usize).map(|doc| key(doc)) } else { None };
                for doc in &competing {
                    let told = (window, stratum, competing.len() as u64, count, threshold);
                    drawn.competed.insert(doc.id.clone(), told);
                }
                for doc in competing.into_iter().take(count as usize) {
                    counts.add_text(&doc.text, &model.featuriser, &mut scratch);
                    keys_of_picks.push((cell, doc.id.clone(), key(doc)));
                    left.retain(|other| other.number != doc.number);
                }
                turns.entry(cell).or_default().push((count, scaled, threshold));
            }
            unseen.push_back(counts);
            if unseen.len() > way.lag {
                seen.add(&unseen.pop_front().unwrap(), Some(30_000));
            }
            // Later rounds weigh those that were selected as well: a chance is that of the best turn.
            for (_, id, _) in &keys_of_picks {
                let Some(doc) = documents.iter().find(|doc| doc.id == *id) else { continue };
                let scaled = weight.score(&doc.text, &mut scratch).log_importance_weight / doc.n_ngrams / TEMPERATURE;
                let of_cell = turns.get_mut(&(doc.pool, stratum_of[id])).unwrap();
                of_cell.last_mut().unwrap().1.insert(id.clone(), scaled);
            }
        }
        for (cell, id, key) in keys_of_picks {
            let chances = turns[&cell].iter().filter(|(count, ..)| *count > 0).map(|(_, scaled, threshold)| {
                threshold.map_or(1.0, |threshold| -(-(scaled[&id] - threshold).exp()).exp_m1())
            });
            let chance = chances.fold(0.0, f64::max);
            cells_of_picks.push((id.clone(), cell));
            drawn.picks.insert(id, (key, chance));
        }
        for ((pool, stratum), rounds) in turns {
            if rounds.iter().any(|(count, ..)| *count > 0) {
                let of_cell = documents.iter().filter(|doc| in_cell(doc, (pool, stratum)));
                chosen_from[pool][stratum] += of_cell.count();
            }
        }
        documents.iter().for_each(|doc| before[doc.pool][stratum_of[&doc.id]] += 1);
    }
    assert_eq!(taken, budgets);
    // The chance to stand in such a window.
    for (id, (pool, stratum)) in cells_of_picks {
        drawn.picks.get_mut(&id).unwrap().1 *= chosen_from[pool][stratum] as f64 / before[pool][stratum] as f64;
    }
    drawn
}

fn picks(sandbox: &Sandbox, out: &str) -> BTreeMap<String, (f64, f64)> {
    let file = sandbox.path(out).join(SELECTED);
    let numbers = numbers(&file, "selection_key").into_iter().zip(numbers(&file, "inclusion_probability"));
    strings(&file, "id").into_iter().zip(numbers).collect()
}

#[test]
fn strata_against_what_was_selected_are_what_the_definition_says_on_any_number_of_threads() {
    let sandbox = with_losses();
    let ways = [
        Way { window: 150, rounds: 1, lag: 0, is_shuffled: true },
        Way { window: 90, rounds: 1, lag: 2, is_shuffled: false },
        Way { window: 300, rounds: 3, lag: 0, is_shuffled: true },
    ];
    for (i, way) in ways.into_iter().enumerate() {
        let Way { window, rounds, lag, is_shuffled } = way;
        let order = if is_shuffled { "shuffled" } else { "files" };
        let options = format!(
            "select --input raw.jsonl --model model.wnw --selector coverage --importance loss --strata {STRATA} --clip 0 --cutoff 0.1 \
             --count {COUNT} --source-proportion sotu=0.25 --length-normalise --temperature {TEMPERATURE} --against selected \
             --selected-share 0.75 --selected-prior 20000 --selected-half-life 30000 --window {window} --rounds {rounds} \
             --lag {lag} --order {order} --decisions"
        );
        for threads in 1..=3 {
            sandbox.succeed(&format!("{options} --threads {threads} --out {i}-{threads}"));
        }
        let expected = oracle(&sandbox, way);
        let found = picks(&sandbox, &format!("{i}-1"));
        assert_eq!(found.len() as u64, COUNT);
        assert_eq!(found, expected.picks, "window {window}, rounds {rounds}, lag {lag}, {order}");
        let decisions = std::fs::read(sandbox.path(&format!("{i}-1/decisions.jsonl"))).unwrap();
        for threads in 2..=3 {
            assert_eq!(picks(&sandbox, &format!("{i}-{threads}")), found, "{threads} threads");
            let others = std::fs::read(sandbox.path(&format!("{i}-{threads}/decisions.jsonl"))).unwrap();
            assert!(others == decisions, "decisions on {threads} threads");
        }
        decisions_are(&sandbox, &format!("{i}-1"), &expected);
    }
}

/// Every document is told its window, its stratum, how many of how many were to be selected there, and the threshold.
fn decisions_are(sandbox: &Sandbox, out: &str, expected: &Drawn) {
    let mut reasons = HashMap::<&str, usize>::new();
    for decision in lines(&sandbox.path(out).join("decisions.jsonl")) {
        let (id, why) = (decision["id"].as_str().unwrap(), decision["why"].as_str().unwrap());
        assert_eq!(decision["is_selected"], expected.picks.contains_key(id), "{decision}");
        let reason = match expected.competed.get(id) {
            Some((window, stratum, documents, budget, threshold)) => {
                let told = ["number", "documents", "budget"].map(|field| decision["window"][field].as_u64().unwrap());
                assert_eq!(told, [*window as u64, *documents, *budget], "{decision}");
                assert_eq!(decision["stratum"]["number"], json!(stratum), "{decision}");
                assert_eq!(decision["threshold"].as_f64(), *threshold, "{decision}");
                let key = decision["key"].as_f64().unwrap();
                assert!(threshold.is_none_or(|threshold| (key > threshold) == (decision["is_selected"] == true)));
                if decision["is_selected"] == true { "selected" } else { "not selected" }
            }
            None if expected.cut.contains(id) => {
                assert!(why.contains("which were cut off"), "{why}");
                "cut"
            }
            None if why.contains("no number in field `loss`") => "without number",
            None => {
                assert!(why.contains("at least 100 are asked for"), "{why}");
                "short"
            }
        };
        *reasons.entry(reason).or_default() += 1;
    }
    assert_eq!((reasons.len(), reasons["selected"] as u64), (5, COUNT), "{reasons:?}");
    let report = sandbox.report(out);
    let turns = report["windows"]["turns"].as_array().unwrap();
    let sum = |of: fn(&Value) -> u64| turns.iter().map(of).sum::<u64>();
    assert_eq!(
        (sum(|turn| turn["budget"].as_u64().unwrap()), &report["windows"]["turns_left_out"]),
        (COUNT, &json!(0))
    );
    let of_strata = report["strata"]["pools"].as_array().unwrap().iter().enumerate().flat_map(|(pool, of)| {
        let strata = of["strata"].as_array().unwrap().clone();
        strata.into_iter().enumerate().map(move |(stratum, of)| (pool, stratum, of["budget"].as_u64().unwrap()))
    });
    for (pool, stratum, budget) in of_strata {
        let source = if pool == 0 { Value::Null } else { json!("sotu") };
        let of_cell = turns.iter().filter(|turn| turn["source"] == source && turn["stratum"] == json!(stratum));
        assert_eq!(of_cell.map(|turn| turn["budget"].as_u64().unwrap()).sum::<u64>(), budget, "{stratum} of {source}");
    }
}

#[test]
fn strata_are_those_of_the_input_whatever_was_selected() {
    let sandbox = with_losses();
    let base = "select --input raw.jsonl --model model.wnw --selector coverage --length-normalise --temperature 0.05 --count 150";
    for (i, by) in [
        "--importance loss --strata 8",
        "--importance loss --cutoff 0.5 --cutoff-field weight",
        "--importance weight --strata 5 --cutoff 0.2 --cutoff-field loss",
    ]
    .into_iter()
    .enumerate()
    {
        sandbox.succeed(&format!("{base} {by} --out raw-{i} --decisions"));
        sandbox.succeed(&format!("{base} {by} --against selected --window 100 --out selected-{i} --decisions"));
        sandbox.succeed(&format!("{base} {by} --against selected --window 100000 --out window-{i}"));
        let [raw, selected, window] = ["raw", "selected", "window"].map(|name| sandbox.report(&format!("{name}-{i}")));
        assert_eq!(raw["strata"], selected["strata"], "{by}");
        assert_ne!(picks(&sandbox, &format!("raw-{i}")), picks(&sandbox, &format!("selected-{i}")), "{by}");
        // Before anything was selected the denominator is the raw distribution, but for the last bits of its sum.
        let ids = |out: &str| picks(&sandbox, &format!("{out}-{i}")).into_keys().collect::<Vec<_>>();
        assert_eq!((ids("raw"), &window["windows"]["count"]), (ids("window"), &json!(1)), "{by}");
        let of = |out: &str| lines(&sandbox.path(&format!("{out}-{i}/decisions.jsonl")));
        for (raw, selected) in of("raw").iter().zip(of("selected")) {
            for field in ["importance", "cutoff_score", "stratum"] {
                assert_eq!(raw[field], selected[field], "{by}: {raw}");
            }
        }
    }
}

#[test]
fn targets_keep_their_shares_in_strata_against_what_was_selected() {
    let sandbox = with_losses();
    sandbox.succeed("fit --target a=target.jsonl b=raw.jsonl --raw raw.jsonl --featuriser fast --out two.wnw");
    let options = "select --input raw.jsonl --model two.wnw --selector coverage --importance loss --strata 20 --count 101 \
                   --source-proportion sotu=0.3 --temperature 50 --against selected --window 130 --rounds 2";
    sandbox.succeed(&format!("{options} --threads 1 --out one"));
    sandbox.succeed(&format!("{options} --threads 2 --out two"));
    let file = sandbox.path("one").join(SELECTED);
    let count = |column: &str, wanted: &str| strings(&file, column).iter().filter(|value| *value == wanted).count();
    assert_eq!((strings(&file, "id").len(), count("source", "sotu")), (101, 30));
    assert!((50..=51).contains(&count("target", "a")), "{}", count("target", "a"));
    assert_eq!(strings(&file, "id").into_iter().collect::<HashSet<_>>().len(), 101, "nothing twice");
    assert_eq!(picks(&sandbox, "one"), picks(&sandbox, "two"));

    // More than there is: all that was not cut off.
    let all =
        "--selector coverage --importance loss --cutoff 0.5 --count 100000 --against selected --window 70 --rounds 3";
    sandbox.succeed(&format!("select --input raw.jsonl --model model.wnw --length-normalise {all} --out all"));
    let report = sandbox.report("all");
    let candidates = report["candidates"].as_u64().unwrap();
    assert_eq!(report["selected"], json!(candidates - candidates / 2));

    for (options, problem) in [
        ("--selector coverage --importance loss --within uniform", "--within uniform draws all of a stratum alike"),
        (
            "--selector coverage --importance loss --temperature auto",
            "--temperature auto: weights against what was selected",
        ),
        ("--selector coverage --importance nothing", "no document has a number in field `nothing`"),
        ("--selector sensitivity", "--selector sensitivity looks at losses and distances, but not at weights"),
    ] {
        let said = sandbox.refuse(&format!(
            "select --input raw.jsonl --model model.wnw --count 9 --out x --against selected {options}"
        ));
        assert!(said.contains(problem), "`{said}` does not say `{problem}`");
    }
}
