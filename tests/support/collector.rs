//! A collector of OpenTelemetry: takes spans by OTLP over HTTP and decodes them, or is of no use.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;

use super::listener::{Listener, end};

/// A span as it came.
#[derive(Debug, Clone)]
pub struct CollectedSpan {
    pub name: String,
    pub trace_id: String,
    pub span_id: String,
    /// Empty of a root.
    pub parent_id: String,
    pub kind: i32,
    pub attributes: BTreeMap<String, String>,
    pub events: Vec<String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    pub resource: BTreeMap<String, String>,
}

pub struct Collector {
    listener: Listener,
    taken: Arc<Taken>,
}

#[derive(Default)]
struct Taken {
    spans: Mutex<Vec<CollectedSpan>>,
    /// Lines of the requests' heads, in lower case.
    heads: Mutex<Vec<String>>,
    hangs: AtomicBool,
}

impl Collector {
    pub fn start() -> Self {
        Collector::serving(Taken::default())
    }

    /// Reads what it is sent, and never answers.
    pub fn that_hangs() -> Self {
        Collector::serving(Taken { hangs: AtomicBool::new(true), ..Taken::default() })
    }

    fn serving(taken: Taken) -> Self {
        let taken = Arc::new(taken);
        let of_listener = taken.clone();
        let listener = Listener::start(move |client| {
            while of_listener.serve(&client).is_some() {}
            end(&client);
        });
        Collector { listener, taken }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.listener.address())
    }

    pub fn spans(&self) -> Vec<CollectedSpan> {
        self.taken.spans.lock().expect("whole").clone()
    }

    /// Of this name, so far.
    pub fn named(&self, name: &str) -> Vec<CollectedSpan> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    pub fn heads(&self) -> Vec<String> {
        self.taken.heads.lock().expect("whole").clone()
    }

    /// From now on it answers, also whoever waits.
    pub fn heal(&self) {
        self.taken.hangs.store(false, Ordering::SeqCst);
    }
}

impl Taken {
    /// One request. `None` at the end of the connection.
    fn serve(&self, mut client: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(client);
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(n) = line.strip_prefix("content-length: ") {
                length = n.parse().expect("a number");
            }
            head.push(line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        self.heads.lock().expect("whole").extend(head);
        while self.hangs.load(Ordering::SeqCst) {
            // Until whoever waits has had enough.
            client.set_read_timeout(Some(std::time::Duration::from_millis(50))).ok()?;
            if let Ok(0) = client.peek(&mut [0]) {
                return None;
            }
        }
        let request = ExportTraceServiceRequest::decode(&body[..]).expect("OTLP");
        self.spans.lock().expect("whole").extend(spans_of(request));
        client.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n").ok()
    }
}

fn spans_of(request: ExportTraceServiceRequest) -> Vec<CollectedSpan> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let of_resource = |spans: opentelemetry_proto::tonic::trace::v1::ResourceSpans| {
        let resource = named(&spans.resource.unwrap_or_default().attributes);
        let all = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
        all.map(move |span| {
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
            let status = span.status.unwrap_or_default();
            CollectedSpan {
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent_id: hex(&span.parent_span_id),
                kind: span.kind,
                attributes: named(&span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
                error: (status.code == StatusCode::Error as i32).then_some(status.message),
                resource: resource.clone(),
                name: span.name,
            }
        })
        .collect::<Vec<_>>()
    };
    request.resource_spans.into_iter().flat_map(of_resource).collect()
}

fn named(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(n) => n.to_string(),
        Value::BoolValue(b) => b.to_string(),
        Value::DoubleValue(x) => x.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |pair: &KeyValue| Some((pair.key.clone(), text(pair.value.as_ref()?.value.as_ref()?)));
    attributes.iter().filter_map(pair).collect()
}
