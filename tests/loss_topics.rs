//! Weights for the samples of a step over a pair of topics: ranks report, the daemon puts them together and answers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
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
    assert_eq!(weights_of(answer), expected_weights(&losses, step), "{answer}");
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

    /// What else was answered, by a daemon that has ended.
    fn read_rest(&mut self) {
        wait_for("the end of the answers", || {
            self.read();
            self.reader.is_at_end().then_some(())
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
    // After a polite end nothing is answered again; a further step is. After a crash it may be: a step that was answered stands
    // beside one that was not, and what is read again of it waits for its deadline.
    // Real Kafka only: the in-process cluster makes topics when they are written to, and takes long for every rejoin.
    let open = || Answers { reader: broker.reader(&topics.weights), found: BTreeMap::new() };
    let n_starts = if broker.is_real() { 3 } else { 0 };
    let mut polite = broker.is_real().then(open);
    for step in 0..n_starts {
        // Before the daemon begins: the in-process cluster makes a topic when somebody writes to it.
        send(&[(runs, step, 0), (runs, step, 3), (runs, step, 2), (runs, step, 1)]);
        let daemon = deployment.start();
        polite.as_mut().unwrap().wait_for(step as usize + 1);
        assert_eq!(daemon.stop(), Some(0));
    }
    if let Some(answers) = &mut polite {
        answers.read_rest();
        assert!(answers.found.values().all(|answers| answers.len() == 1), "{:?}", answers.found.keys());
    }

    let half = all.len() / 2;
    send(&all[..half]);
    let daemon = deployment.start();
    let distinct: BTreeSet<_> = all[..half].iter().collect();
    wait_for("the first half", || (kept(&daemon) >= distinct.len() as f64).then_some(()));
    daemon.kill_9();
    send(&all[half..]);
    let daemon = deployment.start();
    let mut answers = polite.unwrap_or_else(open);
    answers.wait_for((runs * steps + n_starts) as usize);
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

/// Two workers of one group: what waits in a partition that moves is read again by its new owner, and forgotten by the old one.
#[test]
fn steps_that_wait_move_with_their_partition() {
    const STEPS: u64 = 20;
    // One partition for each, of which either may move.
    let broker = Broker::with_topic("moving", 2);
    let topics = Topics { losses: broker.topic.clone(), weights: broker.other_topic("weights", 1) };
    let documents = broker.other_topic("documents", 1);
    broker.producer_to(&documents).send(0, Some(&document(0)));
    // Each has a catalog of its own: only the group is shared.
    let deployments = [0, 1].map(|_| Deployment::new(&broker, &topics.toml("10m")));
    let group = deployments[0].group(&broker);
    let start = |n: usize| {
        let id = format!("worker-{n}");
        let environment = [("KAFKA__GROUP", &group), ("KAFKA__INSTANCE_ID", &id), ("KAFKA__TOPICS", &documents)];
        let environment = environment.map(|(key, value)| (format!("WINNOWD_{key}"), value.as_str()));
        deployments[n].start_with(&environment.each_ref().map(|(key, value)| (key.as_str(), *value))).unwrap()
    };
    let producer = broker.producer();
    let send = |ranks: [u64; 2]| {
        for (run, step) in (0..2).flat_map(|run| (0..STEPS).map(move |step| (run, step))) {
            ranks.iter().for_each(|&rank| producer.send(run as i32, Some(&report(run, step, rank))));
        }
        producer.flush();
    };
    send([1, 3]);
    let first = start(0);
    wait_for("all reports", || (kept(&first) >= 4.0 * STEPS as f64).then_some(()));
    let second = start(1);
    wait_for("what has moved", || (kept(&second) >= 2.0 * STEPS as f64).then_some(()));
    send([0, 2]);
    let mut answers = Answers { reader: broker.reader(&topics.weights), found: BTreeMap::new() };
    answers.wait_for(2 * STEPS as usize);
    for ((run, step), answers) in &answers.found {
        assert_eq!(answers.len(), 1, "step {step} of run {run}");
        assert_answer(&answers[0], *run, *step, &[0, 1, 2, 3]);
    }
    let complete =
        |daemon: &DaemonProcess| daemon.metric("winnowd_weighed_batches_total{by=\"topic\",why=\"complete\"}");
    assert_eq!((complete(&first), complete(&second)), (STEPS as f64, STEPS as f64));
    assert_eq!((first.stop(), second.stop()), (Some(0), Some(0)));
}
