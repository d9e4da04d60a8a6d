//! Floor 5: logs to stderr, traces to an OpenTelemetry collector.

use std::{io, time::Duration};

use opentelemetry::{propagation::TextMapPropagator as _, trace::TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::Level;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    util::{SubscriberInitExt as _, TryInitError},
};

/// Name of the service in traces.
const SERVICE: &str = "workflow-secrets";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What is logged and traced.
pub struct TelemetryConfig {
    /// Directives such as `info,workflow_secrets=debug`.
    pub filter: EnvFilter,
    /// How lines look.
    pub format: LogFormat,
    /// OTLP over gRPC, such as `http://127.0.0.1:4317`.
    pub otlp_endpoint: Option<String>,
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter refuses its settings.
    #[error("OTLP exporter: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// A subscriber is set already.
    #[error(transparent)]
    Subscriber(#[from] TryInitError),
}

/// Flushes spans when the process ends.
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Sends what is left. Blocks until it is sent or `within` is over.
    pub fn shutdown(self, within: Duration) {
        let sent = self.0.map(|provider| provider.shutdown_with_timeout(within));
        if let Some(Err(error)) = sent {
            tracing::warn!(%error, "spans lost");
        }
    }
}

/// Sets up logs and traces of this process.
///
/// Whatever the filter says, foreign crates are heard at INFO and above only:
/// at DEBUG and TRACE some print requests, and a request may hold a value or
/// a data key. This service's own events and spans never hold either.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(config: TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let foreign = filter_fn(|event| {
        let own = event.target().split("::").next() == Some("workflow_secrets");
        own || *event.level() <= Level::INFO
    });
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match config.format {
        LogFormat::Json => lines.json().boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    let provider = match config.otlp_endpoint {
        Some(endpoint) => {
            let exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .build()?;
            let resource = Resource::builder().with_service_name(SERVICE).build();
            Some(
                SdkTracerProvider::builder()
                    .with_batch_exporter(exporter)
                    .with_resource(resource)
                    .build(),
            )
        }
        None => None,
    };
    let spans = provider.as_ref().map(|provider| {
        let own = filter_fn(|span| span.target().starts_with("workflow_secrets"));
        tracing_opentelemetry::layer().with_tracer(provider.tracer(SERVICE)).with_filter(own)
    });
    tracing_subscriber::registry()
        .with(spans)
        .with(lines.with_filter(config.filter.and(foreign)))
        .try_init()?;
    Ok(Telemetry(provider))
}

/// The span of one call, a child of the caller's if it sent a `traceparent`.
pub fn call_span(request: &http::Request<()>) -> tracing::Span {
    // A caller may put anything into a path; names of services are harmless.
    let path = request.uri().path();
    let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.'));
    let rpc = if plain && path.len() <= 100 { path } else { "unknown" };
    let span = tracing::info_span!("call", rpc);
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // Refused only where no OpenTelemetry layer is set up: nothing to link.
    let _ = span.set_parent(parent);
    span
}

struct Headers<'a>(&'a http::HeaderMap);

impl opentelemetry::propagation::Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
