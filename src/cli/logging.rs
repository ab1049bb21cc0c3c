//! What the daemon says on standard error, and the spans that it makes where somebody takes them.

use std::fmt;
use std::io::IsTerminal;

use tracing::field::Field;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, format, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogConfig;
use crate::telemetry::{LOGBOOK, Traces, current_ids};

/// What events of this program carry beside their message, which says it as well. For machines: in JSON only.
const STRUCTURED: [&str; 9] =
    ["shard", "window", "topic", "partition", "offset", "owner_epoch", "step", "attempt", "outcome"];

/// To be called once, before anything is said.
pub(super) fn init(log: LogConfig, traces: Option<&Traces>) {
    let level = LevelFilter::from(log.level);
    // They tell of each retry and of each connection, and not of what: whatever fails for good is told of where it was asked for.
    let of_library = |most: LevelFilter| if level <= LevelFilter::INFO { level.min(most) } else { level };
    let levels = Targets::new()
        .with_default(level)
        .with_target("object_store", of_library(LevelFilter::WARN))
        .with_target("sqlx", of_library(LevelFilter::ERROR));
    let logbook = (&LOGBOOK).with_filter(levels.clone()).with_filter(events());
    let is_terminal = std::io::stderr().is_terminal();
    let written = layer().with_writer(std::io::stderr);
    let written = if log.json {
        let format = format().with_target(false).json().with_current_span(false).with_span_list(false);
        let fields = format::JsonFields::new();
        written.event_format(WithIds(format)).fmt_fields(fields).with_filter(levels).with_filter(events()).boxed()
    } else {
        let format = format().with_target(false).with_ansi(is_terminal);
        written
            .event_format(format)
            .fmt_fields(debug_fn(plain))
            .with_ansi(is_terminal)
            .with_filter(levels)
            .with_filter(events())
            .boxed()
    };
    let spans = traces.map(|traces| {
        let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer());
        let layer = layer.with_location(false).with_threads(false).with_target(false).with_tracked_inactivity(false);
        layer.with_context_activation(false).with_filter(ours())
    });
    tracing_subscriber::registry().with(spans).with(written).with(logbook).init();
}

/// Spans are for the collector: without one nobody makes them.
fn events() -> FilterFn {
    filter_fn(|metadata| metadata.is_event())
}

/// Spans of this program, and what it says within them.
fn ours() -> FilterFn {
    filter_fn(|metadata| *metadata.level() <= Level::INFO && metadata.target().starts_with("winnowd"))
}

/// The message, and the fields of libraries.
fn plain(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        name if STRUCTURED.contains(&name) => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    }
}

/// JSON with the ids of the trace and the span in which it was said, if it was in one.
struct WithIds<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithIds<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some((trace, span)) = current_ids() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        match line.trim_end().strip_suffix('}') {
            Some(open) => writeln!(writer, "{open},\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"}}"),
            None => writer.write_str(&line),
        }
    }
}
