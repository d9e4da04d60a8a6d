//! Floor 5: logs to stderr; traces and metrics to an OpenTelemetry collector;
//! metrics for who asks.

mod export;
mod lines;

use std::{io, sync::mpsc, thread, time::Duration};

use opentelemetry::{
    metrics::MeterProvider as _,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    metrics::SdkMeterProvider, propagation::TraceContextPropagator, trace::SdkTracerProvider,
};
use prometheus::{Registry, TextEncoder};
use tracing::{Level, field, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    util::{SubscriberInitExt as _, TryInitError},
};

use crate::metrics::Metrics;

/// Name of the service, and of what it measures.
const SERVICE: &str = "workflow-secrets";

/// Name of the span of a call: the one that log lines tell of.
const CALL: &str = "call";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How a collector is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// In the clear.
    Plain,
    /// Over TLS, verified by these CAs in PEM; `None`: those of the system.
    Tls(Option<Vec<u8>>),
}

/// Where traces and metrics are sent; `None`: nowhere.
///
/// Endpoints, headers, timeouts, intervals, sampler and resource are read by the
/// OpenTelemetry SDK from its standard variables, which `config` has checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtlpConfig {
    /// Spans.
    pub traces: Option<Transport>,
    /// Metrics.
    pub metrics: Option<Transport>,
}

/// What is logged, traced and measured.
pub struct TelemetryConfig {
    /// Directives such as `info,workflow_secrets=debug`.
    pub filter: EnvFilter,
    /// How lines look.
    pub format: LogFormat,
    /// What is sent to a collector.
    pub otlp: OtlpConfig,
    /// Whether metrics can be asked for.
    pub scraped: bool,
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter refuses its settings.
    #[error("OTLP exporter: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The exporter for Prometheus refuses to start.
    #[error("metrics: {0}")]
    Scrape(#[from] opentelemetry_sdk::error::OTelSdkError),
    /// A subscriber is set already.
    #[error(transparent)]
    Subscriber(#[from] TryInitError),
}

/// The telemetry of this process.
pub struct Telemetry {
    /// The instruments.
    pub metrics: Metrics,
    /// What they show; there, if metrics can be asked for.
    pub scrape: Option<Scrape>,
    traces: Option<SdkTracerProvider>,
    meters: SdkMeterProvider,
}

impl Telemetry {
    /// Sends what is left. Blocks until it is sent or `within` is over.
    pub fn shutdown(self, within: Duration) {
        // The metrics' own end knows no limit: it goes on by itself.
        let (done, metrics) = mpsc::channel();
        let meters = self.meters;
        thread::spawn(move || done.send(meters.shutdown_with_timeout(within)));
        let start = std::time::Instant::now();
        if let Some(Err(error)) = self.traces.map(|traces| traces.shutdown_with_timeout(within)) {
            tracing::warn!(%error, "spans lost");
        }
        match metrics.recv_timeout(within.saturating_sub(start.elapsed())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "metrics of the last moments lost"),
            Err(error) => tracing::warn!(%error, "metrics of the last moments lost"),
        }
    }
}

/// Metrics as Prometheus reads them.
#[derive(Clone)]
pub struct Scrape(Registry);

impl Scrape {
    /// The metrics now, as text in the exposition format 0.0.4.
    ///
    /// # Errors
    /// Never seen; the text says what is wrong.
    pub fn text(&self) -> Result<String, String> {
        TextEncoder::new().encode_to_string(&self.0.gather()).map_err(|error| error.to_string())
    }
}

/// Sets up logs, traces and metrics of this process. Needs a Tokio runtime.
///
/// Whatever the filter says, foreign crates are heard at INFO and above only:
/// at DEBUG and TRACE some print requests, and a request may hold a value or
/// a data key. This service's own events and spans never hold either.
///
/// Collectors are reached in the background: one that is down or slow costs
/// spans and metrics, and never holds up a call.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(config: TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let TelemetryConfig { filter, format, otlp, scraped } = config;
    // Without a hint, each event and span of HTTP/2 at TRACE would be looked at.
    let most = filter.max_level_hint().unwrap_or(LevelFilter::TRACE);
    let foreign = filter_fn(|event| {
        let own = event.target().split("::").next() == Some("workflow_secrets");
        own || *event.level() <= Level::INFO
    });
    // The parts of a call are for traces: lines tell its method and trace.
    let calls = filter_fn(|span| !span.is_span() || span.name() == CALL);
    let told = filter.and(foreign.with_max_level_hint(most)).and(calls.with_max_level_hint(most));
    let layer = fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Json => layer.json().with_span_list(false).fmt_fields(lines::CallFields).boxed(),
        LogFormat::Text => layer.with_ansi(false).boxed(),
    };
    let resource = export::resource();
    let traces = otlp.traces.map(|to| export::traces(to, resource.clone())).transpose()?;
    let scrape = scraped.then(|| Scrape(Registry::new()));
    let meters = export::meters(otlp.metrics, scrape.as_ref().map(|s| &s.0), resource)?;
    let spans = traces.as_ref().map(|provider| {
        // No events: log lines tell the trace themselves, and one of level ERROR
        // would make any span an error.
        let own = filter_fn(|it| it.is_span() && it.target().starts_with("workflow_secrets"));
        let own = own.with_max_level_hint(LevelFilter::DEBUG);
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(own)
    });
    tracing_subscriber::registry().with(spans).with(lines.with_filter(told)).try_init()?;
    let metrics = Metrics::new(&meters.meter(SERVICE));
    Ok(Telemetry { metrics, scrape, traces, meters })
}

/// The span of one call, a child of the caller's if it sent a `traceparent`.
/// Log lines of the call tell its trace by `trace_id`.
pub fn call_span(method: &str, headers: &http::HeaderMap) -> tracing::Span {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    let told = parent.span().span_context().clone();
    let trace_id = told.is_valid().then(|| field::display(told.trace_id()));
    let span = tracing::info_span!(
        CALL,
        "otel.name" = method,
        "otel.kind" = "server",
        "otel.status_code" = field::Empty,
        "rpc.system.name" = "grpc",
        "rpc.method" = method,
        "rpc.response.status_code" = field::Empty,
        "error.type" = field::Empty,
        trace_id,
    );
    // Refused only where no OpenTelemetry layer is set up: nothing to link.
    let _ = span.set_parent(parent);
    if !told.is_valid() {
        let begun = span.context().span().span_context().clone();
        if begun.is_valid() {
            span.record("trace_id", field::display(begun.trace_id()));
        }
    }
    span
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
