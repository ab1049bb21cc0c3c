//! `documents.filter`: what it refuses is never selected, however the daemon dies, and a replay decides with the filter that is
//! recorded.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const FILTER: &str = r#"
documents.filter = "source <> 's1' AND 100 / (n % 50) > 2"
documents.filter_fields.n = "integer"
documents.columns.chars = "length(text)"
documents.columns.share = "1000 / (n % 7)"
documents.columns.upper = "upper(source)"
window.max_documents = 40
shard.max_rows = 20
"#;

/// What the filter says of `document(n)`; `None`: it fails.
fn passes(n: u64) -> Option<bool> {
    match (n % 3 == 1, n % 50) {
        (true, _) => Some(false),
        (_, 0) => None,
        (_, rest) => Some(100 / rest > 2),
    }
}

#[test]
fn what_the_filter_refuses_is_never_selected_through_kills_and_replays() {
    let broker = Broker::with_topic("filter", 2);
    let deployment = Deployment::new(&broker, FILTER);
    let n = if broker.is_real() { 3_000 } else { 600 };
    let kills = if broker.is_real() { 4 } else { 1 };
    let producer = broker.producer();
    (0..n).for_each(|i| producer.send((i % 2) as i32, Some(&document(i))));
    producer.flush();
    let wait_decided = |n: u64| {
        wait_for("the publication", || (deployment.totals().n_records >= n as i64).then_some(()));
    };
    for kill in 1..=kills {
        let daemon = deployment.start();
        wait_decided(kill * n / (kills + 1));
        daemon.kill_9();
    }
    let daemon = deployment.start();
    wait_decided(n);
    assert_eq!(daemon.stop(), Some(0));

    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, n as i64 / 2), (1, n as i64 / 2)]));
    let number = |id: &str| id.trim_start_matches('d').parse::<u64>().unwrap();
    assert!(!published.rows.is_empty());
    for row in &published.rows {
        assert_eq!(passes(number(&row.id)), Some(true), "{}", row.id);
    }
    check_columns(&deployment);
    let n_failed = (0..n).filter(|n| passes(*n).is_none()).count();
    assert_eq!(published.dead_letters.len(), n_failed);
    for letter in &published.dead_letters {
        assert_eq!(letter.reason, "filter_failed");
        assert!(letter.detail.starts_with("documents.filter, clause 2: "), "{}", letter.detail);
    }

    // Whatever the configuration says now.
    let text = std::fs::read_to_string(&deployment.config).unwrap();
    std::fs::write(
        &deployment.config,
        text.replace("source <> 's1'", "source = 's1'").replace("length(text)", "length(id)"),
    )
    .unwrap();
    let verified = deployment.winnowd(&["replay", "--verify"]);
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(said.contains(" 0 differ, 0 cannot be verified"), "{said}{}", String::from_utf8_lossy(&verified.stderr));

    let windows = deployment.winnowd(&["query", "--format", "json", "SELECT sum(n_filtered) AS n FROM windows"]);
    let n_filtered = (0..n).filter(|n| passes(*n) == Some(false)).count();
    let said = String::from_utf8_lossy(&windows.stdout);
    assert_eq!(said.trim(), format!("{{\"n\":{n_filtered}}}"), "{}", String::from_utf8_lossy(&windows.stderr));

    // Counted by clause, once where nothing is read twice.
    let fresh = Deployment::new(&broker, FILTER);
    let daemon = fresh.start();
    wait_for("the publication", || (fresh.totals().n_records as u64 == n).then_some(()));
    let (_, metrics) = daemon.get("/metrics");
    let refused = |clause: &str| {
        let series = format!("winnowd_filtered_documents_total{{clause=\"{clause}: ");
        let line = metrics.lines().find(|line| line.starts_with(&series)).unwrap_or_else(|| panic!("{metrics}"));
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    let by_source = (0..n).filter(|n| n % 3 == 1).count();
    assert_eq!(refused("1"), by_source);
    assert_eq!(refused("2"), (0..n).filter(|n| passes(*n) == Some(false)).count() - by_source);
    assert_eq!(daemon.stop(), Some(0));
}

/// What the shards hold is what the documents say, and null where a division by zero fails.
fn check_columns(deployment: &Deployment) {
    let question = "SELECT chars, share, upper, text, source, metadata FROM documents";
    let answer = deployment.winnowd(&["query", "--format", "json", question]);
    let (mut n_rows, mut n_null) = (0, 0);
    for line in String::from_utf8_lossy(&answer.stdout).lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let metadata: serde_json::Value = serde_json::from_str(row["metadata"].as_str().unwrap()).unwrap();
        let expected = match metadata["n"].as_u64().unwrap() % 7 {
            0 => None,
            rest => Some(1000 / rest),
        };
        assert_eq!(row["share"].as_u64(), expected, "{line}");
        assert_eq!(row["chars"].as_u64(), Some(row["text"].as_str().unwrap().chars().count() as u64));
        assert_eq!(row["upper"].as_str().unwrap(), row["source"].as_str().unwrap().to_uppercase());
        n_rows += 1;
        n_null += usize::from(expected.is_none());
    }
    assert!(n_null > 0 && n_rows > n_null, "{n_null} of {n_rows}: {}", String::from_utf8_lossy(&answer.stderr));
    let checked = deployment.winnowd(&["check"]);
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(said.contains("with chars: Int32 = length(text)") && said.contains("with share: Int64 = "), "{said}");
}

#[test]
fn mistakes_in_a_filter_are_told_before_anything_is_opened() {
    let broker = Broker::with_topic("filter-mistakes", 1);
    let told = |sql: &str, fields: &str| {
        let deployment = Deployment::new(&broker, &format!("documents.filter = \"{sql}\"\n{fields}"));
        let outputs = [deployment.winnowd(&["check"]), deployment.winnowd(&["run"])];
        let [checked, run] =
            outputs.map(|output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()));
        assert_eq!(checked, run);
        assert!(!deployment.folder.path().join("catalog.db").exists());
        assert_eq!(checked.0, Some(64), "{}", checked.1);
        checked.1
    };
    let text = told("lang = 'en' AND id <> ''", "");
    assert!(text.contains("`documents.filter` = `lang = 'en' AND id <> ''`: ") && text.contains("column 1"), "{text}");
    assert!(told("length(text)", "").contains("expected boolean"));
    assert!(told("random() < 0.5", "").contains("cannot be replayed"));
    let text = told("lang = 'en'", "documents.filter_fields = { lang = \"text\", loss = \"double\" }");
    assert!(text.contains("`documents.filter_fields.lang` = `text`: expected one of: string, integer, "), "{text}");
    assert!(text.contains("every document has a column `loss` already"), "{text}");
    let text = told("lang", "documents.columns = { text = \"1\", x = \"length(txt)\" }");
    assert!(text.contains("`documents.columns.text` = `1`: every shard has a column of this name"), "{text}");
    assert!(text.contains("`documents.columns.x` = `length(txt)`: ") && text.contains("column 8"), "{text}");
    assert!(text.contains("`documents.filter` = `lang`"), "all mistakes at once: {text}");
    let deployment = Deployment::new(&broker, "documents.filter_fields.lang = \"string\"");
    let output = deployment.winnowd(&["check"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("has no effect without documents.filter or documents.columns")
    );
}
