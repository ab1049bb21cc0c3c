//! What operators are told: why something cannot be reached, and traces of what the daemon does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

/// A TLS server with a certificate that nobody has signed but itself, by OpenSSL's own program.
struct UntrustedServer {
    child: Child,
    address: String,
}

impl UntrustedServer {
    /// `None` where the program is not installed.
    fn start(folder: &std::path::Path) -> Option<Self> {
        let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout"]);
        let made = make.arg(&key).arg("-out").arg(&certificate).stderr(Stdio::null()).status().ok()?;
        assert!(made.success(), "openssl req");
        let mut serve = Command::new("openssl");
        serve.args(["s_server", "-accept", "127.0.0.1:0", "-key"]).arg(&key).arg("-cert").arg(&certificate);
        let mut child = serve.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let lines = BufReader::new(child.stdout.as_mut()?).lines().map_while(Result::ok);
        let address = lines.filter_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned)).next()?;
        Some(UntrustedServer { child, address })
    }
}

impl Drop for UntrustedServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn check_says_that_a_certificate_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = UntrustedServer::start(folder.path()) else {
        println!("openssl is not installed: no TLS server to refuse");
        return;
    };
    let model = folder.path().join("model.wnw");
    std::fs::write(&model, model_bytes()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_winnowd"))
        .args(["check", "--connect", "--config", "/dev/null"])
        .current_dir(&folder)
        .env("WINNOWD_MODEL__PATH", &model)
        .env("WINNOWD_KAFKA__BOOTSTRAP", &server.address)
        .env("WINNOWD_KAFKA__SECURITY_PROTOCOL", "ssl")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{said}");
    let of_kafka = said.lines().find(|line| line.contains("kafka      FAILED")).unwrap_or_default();
    assert!(of_kafka.contains("certificate verify failed"), "{said}");
    assert!(of_kafka.contains(&server.address) && !of_kafka.contains("[thrd:"), "{said}");
}

fn produce(broker: &Broker, n: u64) {
    let producer = broker.producer();
    (0..n).for_each(|i| producer.send((i % broker.partitions as u64) as i32, Some(&document(i))));
    producer.flush();
}

fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("documents to be decided", || (deployment.totals().n_records as u64 >= n).then_some(()));
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Asks for weights as a trainer does that traces its steps.
fn ask_for_weights(daemon: &DaemonProcess, step: u64) -> u16 {
    let headers = format!("Content-Type: application/json\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n");
    let body = format!(r#"{{"run_id":"run","step":{step},"losses":[{{"id":"a","loss":1}},{{"id":"b","loss":2}}]}}"#);
    http(&daemon.http, "POST /v1/weights", &headers, body.as_bytes()).unwrap().0
}

fn tracing_to(endpoint: &str) -> String {
    format!(
        "tracing.endpoint = \"{endpoint}\"\ntracing.interval = \"50ms\"\nwindow.max_documents = 100\nlog.format = \"json\""
    )
}

/// Of every line of the log as JSON: the message and the whole.
fn said(deployment: &Deployment) -> Vec<(String, serde_json::Value)> {
    let lines = deployment.log();
    let parse = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        (value["fields"]["message"].as_str().unwrap_or_default().to_owned(), value)
    };
    lines.lines().map(parse).collect()
}

/// One trace tells of a publication with all its steps; claims and requests have their own; documents have none.
#[test]
fn traces_tell_what_became_of_a_publication_a_claim_and_a_request() {
    let (broker, collector) = (Broker::with_topic("traces", 2), Collector::start());
    let extra = format!(
        "{}\ntracing.headers = \"x-tenant=curation\"\ntracing.service_name = \"selector\"\n\
         tracing.attributes.\"deployment.environment.name\" = \"test\"",
        tracing_to(&collector.endpoint())
    );
    let deployment = Deployment::new(&broker, &extra);
    let daemon = deployment.start();
    produce(&broker, 2_000);
    wait_decided(&deployment, 2_000);
    assert_eq!(ask_for_weights(&daemon, 2_000), 200);
    assert_eq!(ask_for_weights(&daemon, 2_000), 200);
    wait_for("the manifest's span", || (!collector.named("manifest").is_empty()).then_some(()));
    assert_eq!(daemon.stop(), Some(0));

    // What ended last was sent before the process did.
    let spans = collector.spans();
    let manifest = std::fs::read_to_string(deployment.folder.path().join("out/manifest.jsonl")).unwrap();
    let manifest: Vec<serde_json::Value> = manifest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let publications = collector.named("publication");
    assert_eq!(publications.len(), manifest.len(), "one each");
    for publication in &publications {
        assert_eq!((publication.parent_id.as_str(), &publication.error), ("", &None));
        let of_trace: Vec<_> = spans.iter().filter(|span| span.trace_id == publication.trace_id).collect();
        let children: Vec<_> = of_trace.iter().filter(|span| span.parent_id == publication.span_id).collect();
        for step in ["write", "stage", "upload", "commit", "mirror", "manifest"] {
            assert_eq!(children.iter().filter(|span| span.name == step).count(), 1, "{step} of {of_trace:#?}");
        }
        let shard = &publication.attributes["shard"];
        let line = manifest.iter().find(|line| line["shard"] == shard.as_str()).unwrap();
        for number in ["rows", "bytes"] {
            assert_eq!(publication.attributes[number], line[number].to_string(), "{publication:?}");
        }
        let windows: Vec<_> = line["windows"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        assert_eq!(publication.attributes["window_ids"], windows.join(" "));
        assert_eq!(publication.attributes["windows"], windows.len().to_string());
    }
    let decided: u64 = publications.iter().map(|span| span.attributes["documents"].parse::<u64>().unwrap()).sum();
    assert_eq!(decided, 2_000);

    let claims = collector.named("claim");
    let claimed: Vec<_> = claims.iter().flat_map(|claim| claim.attributes["partition_ids"].split(' ')).collect();
    for partition in 0..2 {
        assert!(claimed.contains(&&*format!("{}/{partition}", broker.topic)), "{claims:?}");
    }
    let requests = collector.named("POST /v1/weights");
    let outcomes: Vec<_> = requests.iter().map(|request| request.attributes["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["answered", "repeated"]);
    for request in &requests {
        assert_eq!(
            (request.trace_id.as_str(), request.parent_id.as_str(), request.kind),
            (TRACE, PARENT, 2),
            "the trainer's"
        );
        assert_eq!(request.attributes["http.response.status_code"], "200");
        assert_eq!(request.attributes["training_step"], "2000");
    }
    assert!(spans.len() < 200, "{} spans for 2000 documents", spans.len());
    for (name, value) in
        [("service.name", "selector"), ("winnowd.pipeline", "test"), ("deployment.environment.name", "test")]
    {
        assert!(spans.iter().all(|span| span.resource[name] == value), "{name}");
    }
    assert!(spans[0].resource["service.instance.id"].starts_with("worker-0-"));
    let heads = collector.heads();
    assert!(
        heads.contains(&"x-tenant: curation".to_owned())
            && heads.contains(&"content-type: application/x-protobuf".to_owned())
    );

    // The log leads to the trace.
    let log = said(&deployment);
    let of_shards: Vec<_> = log.iter().filter(|(message, _)| message.starts_with("published ")).collect();
    assert_eq!(of_shards.len(), publications.len());
    for (_, line) in of_shards {
        let shard = line["fields"]["shard"].as_str().unwrap();
        let publication = publications.iter().find(|span| span.attributes["shard"] == shard).unwrap();
        assert_eq!(
            (&line["trace_id"], &line["span_id"]),
            (&publication.trace_id.as_str().into(), &publication.span_id.as_str().into())
        );
    }
    let started = log.iter().find(|(message, _)| message.ends_with("has started")).unwrap();
    assert_eq!(started.1.get("trace_id"), None);
}

/// What failed is marked, and what was said of it stands in the trace.
#[test]
fn a_step_that_fails_is_an_error_in_its_trace_and_the_one_that_succeeds_is_not() {
    let (broker, collector) = (Broker::with_topic("trace-errors", 1), Collector::start());
    let deployment = Deployment::new(&broker, &tracing_to(&collector.endpoint()));
    let shards = deployment.folder.path().join("out/shards");
    std::fs::create_dir_all(shards.parent().unwrap()).unwrap();
    std::fs::write(&shards, "a file where a folder is wanted").unwrap();
    let daemon = deployment.start();
    produce(&broker, 200);
    wait_for("failures", || (daemon.metric("winnowd_publish_failures_total{step=\"upload\"}") >= 2.0).then_some(()));
    assert_eq!(daemon.metric("winnowd_ready_check{check=\"store\"}"), 0.0);
    assert_eq!(daemon.metric("winnowd_ready"), 0.0);
    assert_eq!(daemon.get("/readyz").0, 503);
    std::fs::remove_file(&shards).unwrap();
    wait_decided(&deployment, 200);
    wait_for("readiness", || (daemon.metric("winnowd_ready") == 1.0).then_some(()));
    assert_eq!(daemon.get("/readyz").0, 200);
    assert_eq!(daemon.stop(), Some(0));
    let failed: Vec<_> = collector.named("upload").into_iter().filter(|span| span.error.is_some()).collect();
    assert!(failed.len() >= 2, "{failed:?}");
    assert!(failed[0].error.as_ref().unwrap().contains("shards"), "{failed:?}");
    let publications = collector.named("publication");
    let publication = publications.iter().find(|span| span.trace_id == failed[0].trace_id).unwrap();
    assert_eq!(publication.error, None, "it was published in the end");
    let retries = publication.events.iter().filter(|event| event.contains("trying again in")).count();
    assert!(retries >= 2, "{:?}", publication.events);
    let good = collector
        .named("upload")
        .into_iter()
        .filter(|span| span.trace_id == publication.trace_id && span.error.is_none());
    assert_eq!(good.count(), 1);
}

fn warnings(deployment: &Deployment, what: &str) -> usize {
    said(deployment).iter().filter(|(message, line)| message.contains(what) && line["level"] == "WARN").count()
}

/// Nobody listens at the address: documents are decided as ever, spans are counted, and one line says why.
#[test]
fn a_collector_that_is_down_delays_nothing() {
    let broker = Broker::with_topic("no-collector", 2);
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let deployment = Deployment::new(&broker, &tracing_to(&format!("http://{unused}")));
    let daemon = deployment.start();
    produce(&broker, 2_000);
    wait_decided(&deployment, 2_000);
    let refused = || daemon.metric("winnowd_trace_spans_total{outcome=\"refused\"}");
    wait_for("a batch to be given up", || (refused() > 0.0).then_some(()));
    let first = refused();
    assert_eq!(ask_for_weights(&daemon, 1), 200);
    wait_for("another one", || (refused() > first).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(warnings(&deployment, "does not take spans"), 1, "{}", deployment.log());
    assert!(deployment.log().contains("onnection refused"), "{}", deployment.log());
}

/// It takes the connection and never answers: a bounded queue fills, what does not fit is counted, and the end is not held up.
#[test]
fn a_collector_that_hangs_delays_nothing_and_is_used_again_when_it_answers() {
    let (broker, collector) = (Broker::with_topic("hanging-collector", 2), Collector::that_hangs());
    let extra = format!(
        "{}\ntracing.timeout = \"1m\"\ntracing.queue_spans = 8\ntracing.batch_spans = 4\nshutdown.grace = \"2s\"",
        tracing_to(&collector.endpoint())
    );
    let deployment = Deployment::new(&broker, &extra);
    let daemon = deployment.start();
    produce(&broker, 2_000);
    wait_decided(&deployment, 2_000);
    let spans = |outcome: &str| daemon.metric(&format!("winnowd_trace_spans_total{{outcome=\"{outcome}\"}}"));
    (0..50).for_each(|step| assert_eq!(ask_for_weights(&daemon, step), 200));
    // Four are under way, eight wait.
    wait_for("a full queue", || (spans("queue_full") >= 38.0).then_some(()));
    assert_eq!(spans("exported"), 0.0);
    collector.heal();
    wait_for("the spans that waited", || (spans("exported") >= 8.0).then_some(()));
    assert_eq!(daemon.stop(), Some(0));

    let hanging = Collector::that_hangs();
    let toml = std::fs::read_to_string(&deployment.config).unwrap();
    std::fs::write(&deployment.config, toml.replace(&collector.endpoint(), &hanging.endpoint())).unwrap();
    let daemon = deployment.start();
    assert_eq!(ask_for_weights(&daemon, 1), 200);
    wait_for("the collector to be asked", || (!hanging.heads().is_empty()).then_some(()));
    assert_eq!(daemon.stop(), Some(0), "the last spans are given up");
    assert!(deployment.log().contains("did not take the last spans"), "{}", deployment.log());
}

/// Without a collector there are no spans, and no ids in the log; what is about a shard or a partition says so in fields.
#[test]
fn without_a_collector_nothing_is_traced() {
    let broker = Broker::with_topic("untraced", 1);
    let deployment = Deployment::new(&broker, "window.max_documents = 100\nlog.format = \"json\"");
    let daemon = deployment.start();
    // As many as drift is told of.
    produce(&broker, 500);
    wait_decided(&deployment, 500);
    assert_eq!(ask_for_weights(&daemon, 1), 200);
    for outcome in ["exported", "queue_full", "refused"] {
        assert_eq!(daemon.metric(&format!("winnowd_trace_spans_total{{outcome=\"{outcome}\"}}")), 0.0);
    }
    assert!(daemon.metric("winnowd_window_raw_drift_nats").is_finite());
    assert!(daemon.metric("process_resident_memory_bytes") > 1e6);
    assert_eq!(daemon.stop(), Some(0));
    let log = said(&deployment);
    assert!(log.iter().all(|(_, line)| line.get("trace_id").is_none() && line.get("span").is_none()), "{log:?}");
    let taken = log.iter().find(|(message, _)| message.contains("taken over at offset 0")).unwrap();
    assert_eq!(
        (&taken.1["fields"]["topic"], &taken.1["fields"]["partition"]),
        (&broker.topic.as_str().into(), &0.into())
    );
}
