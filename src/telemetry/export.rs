//! Where spans and metrics go.

use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, SpanExporter, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
    trace::SdkTracerProvider,
};
use prometheus::Registry;
use uuid::Uuid;

use super::{SERVICE, TelemetryError, Transport};

/// Who sends: what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, and
/// what they leave open.
pub(super) fn resource() -> Resource {
    let told = Resource::builder().build();
    let open = |key: &'static str| told.get(&Key::from_static_str(key)).is_none();
    let unnamed = told
        .get(&Key::from_static_str("service.name"))
        .is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let ours = [
        ("service.name", unnamed, SERVICE.to_owned()),
        ("service.version", open("service.version"), env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", open("service.instance.id"), Uuid::new_v4().to_string()),
    ];
    let ours = ours.into_iter().filter(|(_, open, _)| *open);
    Resource::builder().with_attributes(ours.map(|(key, _, text)| KeyValue::new(key, text))).build()
}

/// Spans go out in batches, from a thread of its own. Those that do not fit its
/// queue are dropped.
pub(super) fn traces(
    to: Transport,
    resource: Resource,
) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = over(SpanExporter::builder().with_tonic(), to).build()?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// Metrics are sent from a thread of its own, or read when asked for, or both.
pub(super) fn meters(
    to: Option<Transport>,
    registry: Option<&Registry>,
    resource: Resource,
) -> Result<SdkMeterProvider, TelemetryError> {
    let mut meters = SdkMeterProvider::builder().with_resource(resource);
    if let Some(to) = to {
        let exporter = over(MetricExporter::builder().with_tonic(), to).build()?;
        meters = meters.with_reader(PeriodicReader::builder(exporter).build());
    }
    if let Some(registry) = registry {
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            // There is one scope, and its name is in each metric's.
            .scope_info_enabled(false);
        meters = meters.with_reader(exporter.build()?);
    }
    Ok(meters.build())
}

fn over<B: WithTonicConfig>(exporter: B, transport: Transport) -> B {
    let tls = match transport {
        Transport::Plain => return exporter,
        Transport::Tls(None) => ClientTlsConfig::new().with_enabled_roots(),
        Transport::Tls(Some(ca)) => {
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca))
        }
    };
    exporter.with_tls_config(tls)
}
