//! Where spans are sent.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Secret;
use super::reader::Reader;

const MINUTE: Duration = Duration::from_secs(60);

/// A collector of OpenTelemetry, by OTLP over HTTP.
#[derive(Debug, Clone)]
pub struct TracingConfig {
    pub endpoint: url::Url,
    /// Share of traces that begin here; who brings a trace decides himself.
    pub sample_ratio: f64,
    pub headers: Vec<(String, Secret)>,
    /// Of one request.
    pub timeout: Duration,
    /// Until what has come is sent, unless a batch is full before.
    pub interval: Duration,
    pub queue_spans: usize,
    pub batch_spans: usize,
    pub service_name: String,
    pub attributes: BTreeMap<String, String>,
}

/// `None` without an endpoint.
pub(super) fn tracing(r: &mut Reader) -> Option<TracingConfig> {
    let endpoint = r.optional("tracing.endpoint").and_then(|value| {
        let refused = |problem| {
            // What stands before an @ may be a password.
            r.error("tracing.endpoint", if value.contains('@') { "***" } else { value.as_str() }, problem);
        };
        endpoint(&value).map_err(refused).ok()
    });
    let sample_ratio = r.parse("tracing.sample_ratio", 1.0, |value| {
        let ratio = value.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.ok_or("expected a number from 0 to 1".to_owned())
    });
    let given = r.optional("tracing.headers").unwrap_or_default();
    let headers = headers(&given).unwrap_or_else(|problem| {
        r.error("tracing.headers", "***", problem);
        Vec::new()
    });
    let queue_spans = r.integer("tracing.queue_spans", 1..=1_000_000) as usize;
    let batch_spans = r.integer("tracing.batch_spans", 1..=10_000) as usize;
    if batch_spans > queue_spans {
        let problem = format!("must be at most tracing.queue_spans ({queue_spans})");
        r.error("tracing.batch_spans", &batch_spans.to_string(), problem);
    }
    let service_name = r.string("tracing.service_name");
    if service_name.is_empty() {
        r.error("tracing.service_name", "", "must be set");
    }
    let timeout = r.duration("tracing.timeout", Duration::from_millis(10)..=MINUTE);
    let interval = r.duration("tracing.interval", Duration::from_millis(10)..=MINUTE);
    let attributes = r.map("tracing.attributes");
    endpoint.map(|endpoint| TracingConfig {
        endpoint,
        sample_ratio,
        headers,
        timeout,
        interval,
        queue_spans,
        batch_spans,
        service_name,
        attributes,
    })
}

/// An address without a path gets the one that all collectors have.
fn endpoint(value: &str) -> Result<url::Url, String> {
    let mut url = url::Url::parse(value).map_err(|e| format!("{e}; expected http://HOST:4318 or https://…"))?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
        return Err("expected http://HOST:4318 or https://…".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("names a user: put what is secret into tracing.headers".to_owned());
    }
    if url.path() == "/" {
        url.set_path("/v1/traces");
    }
    Ok(url)
}

/// `NAME=VALUE`, comma-separated. Tells no value.
fn headers(given: &str) -> Result<Vec<(String, Secret)>, String> {
    let mut headers = Vec::new();
    for header in given.split(',').map(str::trim).filter(|header| !header.is_empty()) {
        let Some((name, value)) = header.split_once('=') else {
            return Err("expected NAME=VALUE, comma-separated".to_owned());
        };
        let (name, value) = (name.trim(), value.trim());
        if name.parse::<reqwest::header::HeaderName>().is_err() {
            return Err(format!("`{name}` is no name of a header"));
        }
        if value.parse::<reqwest::header::HeaderValue>().is_err() {
            return Err(format!("the value of `{name}` is none of a header"));
        }
        headers.push((name.to_owned(), Secret::new(value)));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn nothing_is_sent_unless_somebody_says_where() {
        assert!(Config::from_toml("", []).expect("the defaults").tracing.is_none());
        let toml = "[tracing]\nendpoint = \"http://collector:4318\"\nheaders = \"a=b, authorization=Basic x=y\"\n\
                    [tracing.attributes]\n\"deployment.environment.name\" = \"test\"";
        let tracing = Config::from_toml(toml, []).expect("valid").tracing.expect("an endpoint");
        assert_eq!(tracing.endpoint.as_str(), "http://collector:4318/v1/traces");
        let headers: Vec<_> = tracing.headers.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect();
        assert_eq!(headers, [("a", "b"), ("authorization", "Basic x=y")]);
        assert_eq!(tracing.attributes["deployment.environment.name"], "test");
        assert!(!format!("{tracing:?}").contains("Basic"), "{tracing:?}");
        let with_path = Config::from_toml("tracing.endpoint = \"https://c/otlp/v1/traces\"", []).expect("valid");
        assert_eq!(with_path.tracing.expect("an endpoint").endpoint.path(), "/otlp/v1/traces");
    }

    #[test]
    fn every_mistake_is_named_and_no_secret_is() {
        let toml = "[tracing]\nendpoint = \"collector:4318\"\nsample_ratio = 1.5\nheaders = \"hunter2\"\nqueue_spans = 10\n\
                    batch_spans = 20\nservice_name = \"\"\ntimeout = \"1h\"";
        let said = Config::from_toml(toml, []).expect_err("mistakes").to_string();
        for part in [
            "`tracing.endpoint` = `collector:4318`",
            "`tracing.sample_ratio` = `1.5`: expected a number from 0 to 1",
            "`tracing.headers` = `***`: expected NAME=VALUE",
            "`tracing.batch_spans` = `20`: must be at most tracing.queue_spans (10)",
            "`tracing.service_name`",
            "`tracing.timeout` = `1h`",
        ] {
            assert!(said.contains(part), "`{part}` is not in:\n{said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
        let user = Config::from_toml("tracing.endpoint = \"http://u:hunter2@c\"", []).expect_err("a user").to_string();
        assert!(user.contains("names a user") && !user.contains("hunter2"), "{user}");
    }
}
