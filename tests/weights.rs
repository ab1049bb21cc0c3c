//! Weights for the samples of a step: asked for over HTTP, and over a pair of topics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};
use support::*;
use winnowd::score::{LossWeight, LossWeightSettings, TemperatureSchedule};

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const JSON: &str = "Content-Type: application/json\r\n";

fn post(daemon: &DaemonProcess, body: &str) -> (u16, Value) {
    let (status, body) = http(&daemon.http, "POST /v1/weights", JSON, body.as_bytes()).unwrap();
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

/// What the paper's mathematics says of the same losses.
fn expected(settings: LossWeightSettings, losses: &[f64], step: u64) -> Vec<f64> {
    LossWeight::new(settings).unwrap().weights(losses, step).unwrap()
}

fn weights_of(answer: &Value) -> Vec<f64> {
    answer["weights"].as_array().unwrap().iter().map(|sample| sample["weight"].as_f64().unwrap()).collect()
}

/// The defaults, but for a burn-in of ten steps.
const BURN_IN: &str = "loss_weight.burn_in_steps = 10";

fn settings() -> LossWeightSettings {
    let temperature = TemperatureSchedule { burn_in_steps: 10, ..TemperatureSchedule::default() };
    LossWeightSettings { temperature, ..LossWeightSettings::default() }
}

#[test]
fn a_step_is_answered_once_and_for_all_over_http() {
    let broker = Broker::with_topic("http", 1);
    let extra =
        format!("{BURN_IN}\nloss_weight.remembered_steps = 3\nlosses.max_bytes = \"4KiB\"\nlosses.max_samples = 20");
    let daemon = Deployment::new(&broker, &extra).start();
    let losses = [2.3, 0.7, 3.1, 2.9, 1.25];
    let rows = |step: u64, losses: &[f64]| {
        let rows: Vec<_> = losses.iter().enumerate().map(|(i, l)| json!({"id": format!("d{i}"), "loss": l})).collect();
        json!({ "run_id": "run", "step": step, "losses": rows }).to_string()
    };

    let (status, first) = post(&daemon, &rows(12, &losses));
    assert_eq!((status, &first["step"], &first["strategy"]), (200, &json!(12), &json!("lin_upper")), "{first}");
    let weights = weights_of(&first);
    assert_eq!(weights, expected(settings(), &losses, 12));
    assert_eq!(
        (&first["temperature"], &first["n_samples"], &first["weights"][4]["id"]),
        (&json!(1.0), &json!(5), &json!("d4"))
    );
    let size = 1.0 / weights.iter().map(|w| w * w).sum::<f64>();
    assert!((first["effective_sample_size"].as_f64().unwrap() - size).abs() < 1e-9, "{first}");

    // The same losses, the same answer; other losses, none.
    assert_eq!(post(&daemon, &rows(12, &losses)), (200, first.clone()));
    let columns = json!({ "loss_sum": losses.map(|l| l * 4.0), "tokens": vec![4; 5], "doc_ids": ["d0", "d1", "d2", "d3", "d4"],
        "step": 13, "run_id": "run" });
    let (status, of_columns) = post(&daemon, &columns.to_string());
    assert_eq!((status, &of_columns["weights"]), (200, &first["weights"]));
    let (status, refused) = post(&daemon, &rows(12, &losses[..4]));
    assert_eq!((status, &refused["error"]), (409, &json!("step 12 of run `run` has been answered for other losses")));
    let (status, in_burn_in) = post(&daemon, &rows(9, &losses));
    assert_eq!((status, &in_burn_in["temperature"], weights_of(&in_burn_in)), (200, &Value::Null, vec![0.2; 5]));

    // 9, 12 and 13 are remembered: with the next one the oldest is forgotten, and can be another step.
    assert_eq!(post(&daemon, &rows(14, &losses)).0, 200);
    let (status, again) = post(&daemon, &rows(12, &losses[..4]));
    assert_eq!((status, weights_of(&again)), (200, expected(settings(), &losses[..4], 12)));

    let refusals = [
        ("{", 400, "EOF while parsing"),
        (r#"{"run_id":"run","losses":[]}"#, 400, "no field `step`"),
        (r#"{"run_id":"run","step":1,"world_size":2,"losses":[]}"#, 400, "send the losses of all ranks in one request"),
        (
            r#"{"run_id":"run","step":20,"losses":[{"id":"a","loss":NaN},{"id":"b","loss":1}]}"#,
            422,
            "1 of 2 losses are bad (loss_weight.non_finite = error): number 0 (`a`) is not_finite",
        ),
        (&rows(20, &[1.0; 21]), 413, "field `losses` has 21 entries, allowed are 20"),
        (&format!("{}{}", rows(20, &losses), " ".repeat(5000)), 413, "larger than losses.max_bytes (4096 bytes)"),
    ];
    for (body, status, problem) in refusals {
        let (found, answer) = post(&daemon, body);
        assert_eq!(found, status, "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(problem), "{body}: {answer}");
    }
    // What was refused can be sent again, mended.
    assert_eq!(post(&daemon, &rows(20, &losses)).0, 200);
    let plain = http(&daemon.http, "POST /v1/weights", "Content-Type: text/plain\r\n", b"{}").unwrap();
    assert_eq!(plain.0, 415, "{}", plain.1);
    assert_eq!(daemon.get("/v1/weights").0, 405);

    let outcome = |outcome: &str| daemon.metric(&format!("winnowd_weights_requests_total{{outcome=\"{outcome}\"}}"));
    let outcomes = ["answered", "repeated", "conflict", "bad", "not_weighed", "too_large"].map(outcome);
    assert_eq!(outcomes, [6.0, 1.0, 1.0, 4.0, 1.0, 2.0]);
    assert_eq!(daemon.metric("winnowd_weighed_batches_total{by=\"http\",why=\"complete\"}"), 6.0);
    assert_eq!(
        daemon.metric("winnowd_sample_weight{point=\"max\"}"),
        5.0 * weights.iter().copied().fold(0.0, f64::max)
    );
    let last: Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    assert_eq!((&last["last_batch"]["step"], &last["last_batch"]["by"]), (&json!(20), &json!("http")));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn what_reveals_or_changes_something_takes_the_token() {
    const TOKEN: &str = "correct-horse-battery-staple";
    let broker = Broker::with_topic("token", 1);
    let deployment = Deployment::new(&broker, "");
    let body = br#"{"run_id":"r","step":1,"losses":[]}"#;
    let ask = |daemon: &DaemonProcess, token: &str| {
        let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let status = http(&daemon.http, "GET /status", &authorization, b"").unwrap().0;
        let weights = http(&daemon.http, "POST /v1/weights", &format!("{JSON}{authorization}"), body).unwrap().0;
        assert_eq!((daemon.get("/metrics").0, daemon.get("/healthz").0), (200, 200));
        (status, weights)
    };
    let daemon = deployment.start_with(&[("WINNOWD_HTTP__TOKEN", TOKEN)]).unwrap();
    assert_eq!(ask(&daemon, ""), (401, 401));
    assert_eq!(ask(&daemon, "correct-horse-battery-stapler"), (401, 401));
    assert_eq!(ask(&daemon, TOKEN), (200, 200));
    let (_, status) = http(&daemon.http, "GET /status", &format!("Authorization: Bearer {TOKEN}\r\n"), b"").unwrap();
    assert_eq!(daemon.stop(), Some(0));
    assert!(!deployment.log().contains(TOKEN) && !status.contains(TOKEN));

    // Without one: open here, closed to others.
    let daemon = deployment.start();
    assert_eq!(ask(&daemon, ""), (200, 200));
    assert_eq!(daemon.stop(), Some(0));
    let daemon = deployment.start_with(&[("WINNOWD_HTTP__LISTEN", "0.0.0.0:0")]).unwrap();
    assert_eq!(ask(&daemon, ""), (403, 403));
    assert_eq!(ask(&daemon, TOKEN), (403, 403));
    assert_eq!(daemon.stop(), Some(0));
    assert!(deployment.log().contains("/status and /v1/weights are closed"), "{}", deployment.log());
}

/// The example of the README, as it stands there but for the port.
#[test]
fn the_example_works_as_pasted() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("skipped: there is no curl");
        return;
    }
    let readme = include_str!("../README.md");
    let example = readme.split("```sh\n").find(|block| block.starts_with("curl ") && block.contains("/v1/weights"));
    let example = example.expect("an example").split("```").next().unwrap();
    let broker = Broker::with_topic("example", 1);
    let daemon = Deployment::new(&broker, "").start();
    let pasted = example.replace("127.0.0.1:9464", &daemon.http);
    assert_ne!(pasted, example);
    let output = Command::new("sh").args(["-c", &pasted]).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shown = readme.split(example).nth(1).unwrap().split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(answer, serde_json::from_str::<Value>(shown).unwrap());
    assert_eq!(daemon.stop(), Some(0));
}

/// The loss of a sample follows from where it is.
fn loss(run: u64, step: u64, rank: u64, sample: u64) -> f64 {
    let mixed = (run * 7_919 + step * 104_729 + rank * 1_299_709 + sample * 15_485_863) % 10_007;
    1.0 + mixed as f64 / 2_500.0
}

const RANKS: u64 = 4;
const SAMPLES: u64 = 8;

/// Ranks speak differently.
fn report(run: u64, step: u64, rank: u64) -> Vec<u8> {
    let ids: Vec<_> = (0..SAMPLES).map(|sample| format!("{run}-{step}-{rank}-{sample}")).collect();
    let losses = (0..SAMPLES).map(|sample| loss(run, step, rank, sample));
    let mut report = json!({ "run_id": format!("run-{run}"), "step": step, "rank": rank, "world_size": RANKS });
    if rank.is_multiple_of(2) {
        report["losses"] = ids.iter().zip(losses).map(|(id, loss)| json!({ "id": id, "loss": loss })).collect();
    } else {
        report["doc_ids"] = json!(ids);
        report["loss_sum"] = losses.map(|loss| loss * 1024.0).collect();
        report["tokens"] = json!(vec![1024; SAMPLES as usize]);
    }
    report.to_string().into_bytes()
}

/// What an answer must say when these ranks have come.
fn assert_answer(answer: &Value, run: u64, step: u64, ranks: &[u64]) {
    let losses: Vec<f64> =
        ranks.iter().flat_map(|&rank| (0..SAMPLES).map(move |sample| loss(run, step, rank, sample))).collect();
    assert_eq!(weights_of(answer), expected(settings(), &losses, step), "{answer}");
    let missing: Vec<u64> = (0..RANKS).filter(|rank| !ranks.contains(rank)).collect();
    assert_eq!((&answer["world_size"], &answer["missing_ranks"]), (&json!(RANKS), &json!(missing)));
    let last = format!("{run}-{step}-{}-{}", ranks.last().unwrap(), SAMPLES - 1);
    assert_eq!(answer["weights"][losses.len() - 1]["id"], json!(last));
}

struct Topics {
    losses: String,
    weights: String,
}

impl Topics {
    fn of(broker: &Broker) -> Self {
        Topics { losses: broker.other_topic("losses", 2), weights: broker.other_topic("weights", 1) }
    }

    fn toml(&self, deadline: &str) -> String {
        let Topics { losses, weights } = self;
        format!(
            "{BURN_IN}\nlosses.topic = \"{losses}\"\nlosses.weights_topic = \"{weights}\"\nlosses.deadline = \"{deadline}\""
        )
    }
}

/// Every answer in the topic, by (run, step), in the order in which it came.
struct Answers {
    reader: TestReader,
    found: BTreeMap<(u64, u64), Vec<Value>>,
}

impl Answers {
    fn read(&mut self) -> Option<()> {
        let record = self.reader.next()?;
        let answer: Value = serde_json::from_slice(&record.payload.unwrap()).unwrap();
        let run_id = answer["run_id"].as_str().unwrap();
        assert_eq!(record.key.unwrap(), run_id.as_bytes());
        let run = run_id.strip_prefix("run-").unwrap().parse().unwrap();
        self.found.entry((run, answer["step"].as_u64().unwrap())).or_default().push(answer);
        Some(())
    }

    fn wait_for(&mut self, n_steps: usize) {
        wait_for("the answers", || {
            self.read();
            (self.found.len() >= n_steps).then_some(())
        });
    }
}

fn kept(daemon: &DaemonProcess) -> f64 {
    daemon.metric("winnowd_loss_reports_total{outcome=\"kept\"}")
}

/// Of a shuffled list.
fn shuffled<T>(mut items: Vec<T>, random: &mut Random) -> Vec<T> {
    for i in (1..items.len()).rev() {
        items.swap(i, random.below(i as u64 + 1) as usize);
    }
    items
}

#[test]
fn reports_of_ranks_in_any_order_are_answered_through_a_kill() {
    let seed = random_seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let broker = Broker::with_topic("ranks", 1);
    let topics = Topics::of(&broker);
    let deployment = Deployment::new(&broker, &topics.toml("10m"));
    let (runs, steps) = (3u64, if broker.is_real() { 40u64 } else { 12 });
    let all = (0..runs).flat_map(|run| (0..steps).flat_map(move |step| (0..RANKS).map(move |rank| (run, step, rank))));
    let mut all = shuffled(all.collect(), &mut random);
    // Producers that try again send twice.
    let repeated: Vec<_> = all.iter().copied().filter(|_| random.below(8) == 0).collect();
    all.extend(repeated);
    let producer = broker.producer_to(&topics.losses);
    // All of a run stand in one partition.
    let send = |reports: &[(u64, u64, u64)]| {
        for &(run, step, rank) in reports {
            producer.send((run % 2) as i32, Some(&report(run, step, rank)));
        }
        producer.flush();
    };
    let half = all.len() / 2;
    send(&all[..half]);
    let daemon = deployment.start();
    let distinct: std::collections::BTreeSet<_> = all[..half].iter().collect();
    wait_for("the first half", || (kept(&daemon) >= distinct.len() as f64).then_some(()));
    daemon.kill_9();
    send(&all[half..]);
    let daemon = deployment.start();
    let mut answers = Answers { reader: broker.reader(&topics.weights), found: BTreeMap::new() };
    let n_steps = (runs * steps) as usize;
    answers.wait_for(n_steps);
    assert_eq!(daemon.stop(), Some(0));

    // After a polite end nothing is answered again; a further step is.
    let n_answers = |answers: &Answers| answers.found.values().map(Vec::len).sum::<usize>();
    let before = n_answers(&answers);
    let daemon = deployment.start();
    send(&[(0, steps, 0), (0, steps, 3), (0, steps, 2), (0, steps, 1)]);
    answers.wait_for(n_steps + 1);
    assert_eq!(n_answers(&answers), before + 1);
    assert_eq!(daemon.stop(), Some(0));
    for ((run, step), answers) in &answers.found {
        assert_answer(&answers[0], *run, *step, &[0, 1, 2, 3]);
    }
}

#[test]
fn whoever_is_missing_at_the_deadline_is_named_and_bad_reports_are_counted() {
    let broker = Broker::with_topic("missing", 1);
    let topics = Topics::of(&broker);
    let deployment = Deployment::new(&broker, &topics.toml("400ms"));
    let producer = broker.producer_to(&topics.losses);
    let send = |payload: &[u8]| {
        producer.send(0, Some(payload));
        producer.flush();
    };
    send(&report(1, 50, 2));
    send(b"no JSON");
    send(&report(1, 50, 0));
    // Another world, and another story of rank 2.
    send(br#"{"run_id":"run-1","step":50,"rank":1,"world_size":2,"losses":[]}"#);
    send(br#"{"run_id":"run-1","step":50,"rank":2,"world_size":4,"losses":[{"id":"x","loss":9}]}"#);
    let daemon = deployment.start();
    let mut answers = Answers { reader: broker.reader(&topics.weights), found: BTreeMap::new() };
    answers.wait_for(1);
    assert_answer(&answers.found[&(1, 50)][0], 1, 50, &[0, 2]);
    send(&report(1, 50, 3));
    // A loss that cannot be used: the trainer hears of it instead of waiting.
    send(br#"{"run_id":"run-1","step":51,"losses":[{"id":"x","loss":Infinity}]}"#);
    answers.wait_for(2);
    let error = answers.found[&(1, 51)][0]["error"].as_str().unwrap();
    assert!(error.contains("number 0 (`x`) is not_finite"), "{error}");
    let outcome = |outcome: &str| daemon.metric(&format!("winnowd_loss_reports_total{{outcome=\"{outcome}\"}}"));
    wait_for("the late rank", || (outcome("late") == 1.0).then_some(()));
    assert_eq!(["kept", "bad", "other_world_size", "other_losses"].map(outcome), [3.0, 1.0, 1.0, 1.0]);
    assert_eq!(daemon.metric("winnowd_bad_loss_reports_total{reason=\"malformed_json\"}"), 1.0);
    assert_eq!(daemon.metric("winnowd_missing_ranks_total"), 2.0);
    assert_eq!(daemon.metric("winnowd_weighed_batches_total{by=\"topic\",why=\"deadline\"}"), 1.0);
    let status: Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    assert_eq!((&status["last_batch"]["n_missing_ranks"], &status["last_batch"]["by"]), (&json!(2), &json!("topic")));
    assert_eq!(daemon.stop(), Some(0));
}

/// By how much the loss of document `n` is above its reference; some have only one of both.
fn excess(n: u64) -> Option<f64> {
    (n % 7 != 3).then(|| (n * 37 % 101) as f64 / 16.0 - 1.0)
}

#[test]
fn losses_of_documents_steer_the_selection_and_it_can_be_repeated() {
    let broker = Broker::with_topic("excess", 1);
    let extra = r#"
documents.loss_field = "nll"
documents.reference_loss_field = "base"
selection.selector = "top_k"
selection.loss_coefficient = 1e6
selection.loss_strategy = "kl_dro"
selection.loss_low = 0.0
selection.loss_high = 5.0
window.max_documents = 100
"#;
    let deployment = Deployment::new(&broker, extra);
    let producer = broker.producer();
    for n in 0..400 {
        let mut record: Value = serde_json::from_slice(&document(n)).unwrap();
        record["nll"] = json!(2.5 + excess(n).unwrap_or(50.0));
        record["base"] = excess(n).map_or(Value::Null, |_| json!(2.5));
        producer.send(0, Some(record.to_string().as_bytes()));
    }
    producer.send(0, Some(br#"{"text":"a text of a few words","nll":"2.5"}"#));
    producer.flush();
    let daemon = deployment.start();
    wait_for("the publication", || (deployment.totals().n_records >= 401).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, 401)]));
    assert_eq!(published.dead_letters[0].reason, "invalid_field");

    // Nothing outweighs a million nats: of each hundred the ten with the highest excess, the middle of the range without one.
    let weight = |n: u64| excess(n).map_or(2.5, |excess| excess.clamp(0.0, 5.0));
    for window in 0..4 {
        let mut weights: Vec<f64> = (window * 100..(window + 1) * 100).map(weight).collect();
        weights.sort_by(f64::total_cmp);
        let rows = published.rows.iter().filter(|row| row.offset as u64 / 100 == window);
        let mut selected: Vec<f64> = rows.map(|row| row.loss_weight.unwrap()).collect();
        selected.sort_by(f64::total_cmp);
        assert_eq!(selected, weights[90..]);
    }
    for row in &published.rows {
        let n = row.offset as u64;
        assert_eq!((row.loss, row.loss_weight), (excess(n), Some(weight(n))));
        assert_eq!(row.selection_key, row.log_importance_weight + 1e6 * weight(n));
    }
    let verified = deployment.winnowd(&["replay", "--verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
}
