//! An OpenTelemetry collector that keeps what it is sent: the services that the
//! OTLP protos generate.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{metric::Data, number_data_point},
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Request, Response, Status,
    metadata::MetadataMap,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};

#[derive(Default)]
struct Kept {
    traces: Vec<ExportTraceServiceRequest>,
    metrics: Vec<ExportMetricsServiceRequest>,
    metadata: Vec<MetadataMap>,
}

#[derive(Clone, Default)]
struct Keep(Arc<Mutex<Kept>>);

#[tonic::async_trait]
impl TraceService for Keep {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap();
        kept.metadata.push(request.metadata().clone());
        kept.traces.push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Keep {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap();
        kept.metadata.push(request.metadata().clone());
        kept.metrics.push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Attributes as text.
pub(crate) type Attributes = BTreeMap<String, String>;

/// One series of a metric: how often, or what it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) metric: String,
    pub(crate) unit: String,
    pub(crate) attributes: Attributes,
    pub(crate) value: f64,
}

/// The collector. Ends with the value.
pub(crate) struct OtlpSink {
    keep: Keep,
    port: u16,
    _server: JoinSet<()>,
}

impl OtlpSink {
    pub(crate) async fn start() -> Self {
        Self::start_on(Server::builder()).await
    }

    /// The same over TLS.
    pub(crate) async fn start_tls(tls: ServerTlsConfig) -> Self {
        Self::start_on(Server::builder().tls_config(tls).unwrap()).await
    }

    async fn start_on(mut builder: Server) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let keep = Keep::default();
        let server = builder
            .add_service(TraceServiceServer::new(keep.clone()))
            .add_service(MetricsServiceServer::new(keep.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        let mut running = JoinSet::new();
        running.spawn(async { server.await.unwrap() });
        Self { keep, port, _server: running }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// All that came so far, as bytes.
    pub(crate) fn kept(&self) -> Vec<u8> {
        let kept = self.keep.0.lock().unwrap();
        let traces = kept.traces.iter().map(|export| export.encode_to_vec());
        let metrics = kept.metrics.iter().map(|export| export.encode_to_vec());
        traces.chain(metrics).flatten().collect()
    }

    /// The metadata of each export.
    pub(crate) fn metadata(&self) -> Vec<MetadataMap> {
        self.keep.0.lock().unwrap().metadata.clone()
    }

    /// The spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let kept = self.keep.0.lock().unwrap();
        let resources = kept.traces.iter().flat_map(|export| &export.resource_spans);
        resources
            .flat_map(|spans| &spans.scope_spans)
            .flat_map(|spans| spans.spans.clone())
            .collect()
    }

    /// Who sent the newest metrics.
    pub(crate) fn resource(&self) -> Attributes {
        let kept = self.keep.0.lock().unwrap();
        let resource = kept.metrics.last().and_then(|export| export.resource_metrics.first());
        let resource = resource.and_then(|metrics| metrics.resource.as_ref());
        resource.map(|resource| attributes(&resource.attributes)).unwrap_or_default()
    }

    /// The newest metrics.
    pub(crate) fn points(&self) -> Vec<Point> {
        let kept = self.keep.0.lock().unwrap();
        let Some(export) = kept.metrics.last() else { return vec![] };
        let scopes = export.resource_metrics.iter().flat_map(|metrics| &metrics.scope_metrics);
        let mut points = vec![];
        for metric in scopes.flat_map(|scope| &scope.metrics) {
            let numbers = match metric.data.as_ref().unwrap() {
                Data::Gauge(gauge) => &gauge.data_points,
                Data::Sum(sum) => &sum.data_points,
                Data::Histogram(histogram) => {
                    points.extend(histogram.data_points.iter().map(|point| Point {
                        metric: metric.name.clone(),
                        unit: metric.unit.clone(),
                        attributes: attributes(&point.attributes),
                        value: f64::from(u32::try_from(point.count).unwrap()),
                    }));
                    continue;
                }
                other => panic!("{other:?}"),
            };
            points.extend(numbers.iter().map(|point| Point {
                metric: metric.name.clone(),
                unit: metric.unit.clone(),
                attributes: attributes(&point.attributes),
                value: match point.value.unwrap() {
                    number_data_point::Value::AsDouble(value) => value,
                    number_data_point::Value::AsInt(value) => value as f64,
                },
            }));
        }
        points
    }
}

/// Attributes by name.
pub(crate) fn attributes(pairs: &[KeyValue]) -> Attributes {
    let text = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        other => Some(format!("{other:?}")),
    };
    pairs.iter().map(|pair| (pair.key.clone(), text(pair).unwrap_or_default())).collect()
}
