//! Weights for the samples of a step, asked for over HTTP; and losses of documents in a selection.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::*;
use winnowd::record::{Decoder, DocumentRef};
use winnowd::source::files::for_each_document;

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
    assert_eq!(weights, expected_weights(&losses, 12));
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
    assert_eq!((status, weights_of(&again)), (200, expected_weights(&losses[..4], 12)));

    let refusals = [
        ("{", 400, "EOF while parsing"),
        (r#"{"run_id":"run","losses":[]}"#, 400, "no field `step`"),
        (r#"{"run_id":"run","step":1,"world_size":2,"losses":[]}"#, 400, "send the losses of all ranks in one request"),
        (
            r#"{"run_id":"run","step":20,"losses":[{"id":"a","loss":NaN},{"id":"b","loss":1}]}"#,
            422,
            "1 of 2 losses are bad (loss_weight.non_finite = error): number 0 (`a`) is not_finite",
        ),
        (
            r#"{"run_id":"run","step":20,"losses":[{"id":"a","loss":1},{"id":"b","loss":-1e-9}]}"#,
            422,
            "number 1 (`b`) is negative",
        ),
        (r#"{"run_id":"run","step":20,"losses":[{"id":"a","loss":-Infinity}]}"#, 422, "number 0 (`a`) is not_finite"),
        (r#"{"run_id":"run","step":20,"losses":[{"id":"a","loss":1,"n_tokens":16777217}]}"#, 422, "is invalid_tokens"),
        (r#"{"run_id":"run","step":20,"losses":[{"id":"a","loss":1,"n_tokens":0}]}"#, 422, "is no_tokens"),
        (r#"{"run_id":"run","step":20,"losses":[{"id":"a","loss":null},{"loss":1}]}"#, 422, "2 of 2 losses are bad"),
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
    assert_eq!(outcomes, [6.0, 1.0, 1.0, 4.0, 6.0, 2.0]);
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
        assert_eq!(http(&daemon.http, "GET /status/history", &authorization, b"").unwrap().0, status);
        // The page holds nothing; what it asks for does.
        assert_eq!((daemon.get("/").0, daemon.get("/page/page.js").0), (200, 200));
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

/// A page of somebody else, whose server has its own name lead to this machine, asks by that name.
#[test]
fn a_name_that_was_led_here_is_answered_nothing() {
    const TOKEN: &str = "correct-horse-battery-staple";
    let broker = Broker::with_topic("rebinding", 1);
    let deployment = Deployment::new(&broker, "");
    let daemon = deployment.start();
    let port = daemon.http.rsplit_once(':').unwrap().1.to_owned();
    let body = br#"{"run_id":"r","step":1,"losses":[]}"#;
    let guarded = ["GET /", "GET /page/page.js", "GET /status", "GET /status/history", "POST /v1/weights"];
    let ask = |daemon: &DaemonProcess, host: &str, request: &str, headers: &str| {
        let body = if request.starts_with("POST") { &body[..] } else { b"" };
        http_by_name(&daemon.http, host, request, &format!("{JSON}{headers}"), body).unwrap()
    };
    for request in guarded {
        for host in
            ["evil.example".to_owned(), format!("evil.example:{port}"), format!("localhost.evil.example:{port}")]
        {
            let (code, said) = ask(&daemon, &host, request, "");
            assert_eq!(code, 421, "{request} of {host}: {said}");
            assert!(said.contains(&format!("Host is `{host}`: expected localhost")), "{said}");
        }
        for host in
            ["localhost".to_owned(), format!("127.0.0.1:{port}"), format!("[::1]:{port}"), "LOCALHOST:1".to_owned()]
        {
            assert_eq!(ask(&daemon, &host, request, "").0, 200, "{request} of {host}");
        }
    }
    // What was refused weighed nothing.
    assert_eq!(daemon.metric("winnowd_weights_requests_total{outcome=\"answered\"}"), 1.0);
    for open in ["GET /metrics", "GET /healthz"] {
        assert_eq!(ask(&daemon, "evil.example", open, "").0, 200, "{open}");
    }
    assert_ne!(ask(&daemon, "evil.example", "GET /readyz", "").0, 421);
    assert_eq!(daemon.stop(), Some(0));
    // Whoever knows the token may call this machine as he likes.
    let daemon = deployment.start_with(&[("WINNOWD_HTTP__TOKEN", TOKEN)]).unwrap();
    for request in guarded {
        let authorization = format!("Authorization: Bearer {TOKEN}\r\n");
        assert_eq!(ask(&daemon, "winnowd.example", request, &authorization).0, 200, "{request}");
    }
    assert_eq!(ask(&daemon, "winnowd.example", "GET /status", "").0, 401);
    assert_eq!(daemon.stop(), Some(0));
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

/// What `tests/step_trainer.py` has printed, or why it ended.
fn train(python: &Path, folder: &Path, address: &str, token: &str, more: &[&str]) -> Result<(Value, String), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/step_trainer.py");
    let trace = folder.join("trace.jsonl");
    let mut command = Command::new(python);
    command
        .arg(script)
        .arg(folder.join("documents.jsonl"))
        .args(["--weights", &format!("http://{address}/v1/weights")]);
    command.arg("--trace").arg(&trace).args(more).env("WINNOWD_HTTP__TOKEN", token);
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok((serde_json::from_slice(&output.stdout).unwrap(), std::fs::read_to_string(trace).unwrap()))
}

/// A real model, real losses, gradients by the weights that it is given; and these are what another program makes of the losses.
#[test]
fn a_training_loop_is_weighed_as_the_mathematics_says() {
    const TOKEN: &str = "correct-horse-battery-staple";
    const STEPS: f64 = 100.0;
    let Some(python) = python("numpy") else { return };
    let broker = Broker::with_topic("steps", 1);
    let extra = format!(
        "{BURN_IN}\nloss_weight.temperature_half_life_steps = 20\nloss_weight.temperature_floor = 0.1\nloss_weight.cap = 1.5"
    );
    let deployment = Deployment::new(&broker, &extra);
    let folder = deployment.folder.path();
    let mut documents = String::new();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/demo/sample.jsonl.zst");
    let write = |document: &DocumentRef<'_>, _| {
        documents += &format!("{}\n", json!({ "id": document.id(), "text": document.text }));
    };
    for_each_document(&sample, &Decoder::for_files(), write).unwrap();
    std::fs::write(folder.join("documents.jsonl"), documents).unwrap();

    let with_token = [("WINNOWD_HTTP__TOKEN", TOKEN)];
    let daemon = deployment.start_with(&with_token).unwrap();
    let train = |daemon: &DaemonProcess, token: &str, more: &[&str]| train(&python, folder, &daemon.http, token, more);
    let (learnt, trace) = train(&daemon, TOKEN, &[]).unwrap();
    let number = |name: &str| learnt[name].as_f64().unwrap();
    println!("{learnt}");
    assert_eq!((number("steps"), trace.lines().count() as f64), (STEPS, STEPS));
    assert!(
        number("last_loss") < number("first_loss") - 1.0 && number("held_out_after") < number("held_out_before") - 1.0
    );

    let settings = json!({ "strategy": "lin_upper", "range": { "quantiles": { "tail": 0.01 } }, "cap": 1.5, "non_finite": "error",
        "temperature": { "burn_in_steps": 10, "initial": 1.0, "decay": { "half_life_steps": 20, "floor": 0.1 } } });
    std::fs::write(folder.join("settings.json"), settings.to_string()).unwrap();
    let check = |trace: &str| {
        std::fs::write(folder.join("checked.jsonl"), trace).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/check_steps.py");
        let files = ["settings.json", "checked.jsonl"].map(|name| folder.join(name));
        Command::new(&python).arg(script).args(files).output().unwrap()
    };
    let checked = check(&trace);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    println!("{checked}");
    assert!(checked["weights"] == json!(3_200) && checked["largest_ratio"].as_f64() > Some(100.0), "{checked}");
    // It finds a weight that is not its own.
    let last = trace.lines().last().unwrap();
    let weight = serde_json::from_str::<Value>(last).unwrap()["answer"]["weights"][7]["weight"].to_string();
    let wrong = trace.replace(&weight, &(weight.parse::<f64>().unwrap() + 1e-9).to_string());
    assert!(wrong != trace && !check(&wrong).status.success());

    // The trainer begins again, and so does the daemon: the same steps, the same answers. Another run under its name is refused.
    let outcome = |daemon: &DaemonProcess, outcome: &str| {
        daemon.metric(&format!("winnowd_weights_requests_total{{outcome=\"{outcome}\"}}"))
    };
    assert_eq!(train(&daemon, TOKEN, &[]).unwrap(), (learnt.clone(), trace.clone()));
    assert_eq!([outcome(&daemon, "answered"), outcome(&daemon, "repeated")], [STEPS, STEPS]);
    let other = train(&daemon, TOKEN, &["--seed", "1"]).unwrap_err();
    assert!(other.starts_with("step 0: 409 ") && other.contains("answered for other losses"), "{other}");
    assert_eq!(daemon.stop(), Some(0));
    let daemon = deployment.start_with(&with_token).unwrap();
    assert_eq!(train(&daemon, TOKEN, &[]).unwrap(), (learnt, trace));
    assert_eq!([outcome(&daemon, "answered"), outcome(&daemon, "repeated")], [STEPS, 0.0]);

    for token in ["", "correct-horse-battery-stapler"] {
        let refused = train(&daemon, token, &[]).unwrap_err();
        assert!(refused.starts_with("step 0: 401 "), "{refused}");
    }
    assert_eq!(daemon.stop(), Some(0));
    let daemon = deployment.start_with(&[("WINNOWD_HTTP__LISTEN", "0.0.0.0:0")]).unwrap();
    let refused = train(&daemon, TOKEN, &[]).unwrap_err();
    assert!(refused.starts_with("step 0: 403 "), "{refused}");
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
