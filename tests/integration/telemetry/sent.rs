//! What arrives at a collector, and what a log line tells.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use tonic::{Code, Request};

use super::http::{scrape, watched};
use crate::support::{
    kms_endpoint::KeyState,
    otlp_sink::{OtlpSink, Point, attributes},
    pki,
    platform::{Platform, create, list, reason, resolve},
    redis_server::Options,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A call within a trace of its caller's.
fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    request
}

/// Waits for what a condition finds.
async fn eventually<T>(what: &str, find: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn collected<'a>(url: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "300"),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=9"),
    ]
}

fn of_trace(sink: &OtlpSink, name: &str) -> Option<Span> {
    let trace = hex::decode(TRACE).unwrap();
    sink.spans().into_iter().find(|span| span.name == name && span.trace_id == trace)
}

fn find(points: &[Point], metric: &str, wanted: &[(&str, &str)]) -> Option<f64> {
    let fits = |point: &&Point| {
        point.metric == metric
            && wanted
                .iter()
                .all(|(key, value)| point.attributes.get(*key).is_some_and(|told| told == value))
    };
    points.iter().find(fits).map(|point| point.value)
}

#[tokio::test]
async fn spans_and_metrics_of_a_resolve_arrive() {
    let platform = Platform::start_with(Options::default()).await;
    let sink = OtlpSink::start().await;
    let url = sink.url();
    let (replica, admin) = watched(&platform, &collected(&url), &[]).await;
    let mut platform_client = platform.client(&replica, "platform").await;
    let secret = create("ws-of-nobody", "NAME_OF_NOTHING", "value");
    platform_client.create_secret(secret).await.unwrap();
    let mut executor = platform.client(&replica, "executor").await;
    let wanted = || resolve("ws-of-nobody", &["NAME_OF_NOTHING"]);
    executor.resolve_secrets(traced(wanted())).await.unwrap();
    executor.resolve_secrets(wanted()).await.unwrap();
    let missing = executor.resolve_secrets(resolve("ws-of-nobody", &["ABSENT"])).await;
    assert_eq!(reason(&missing.err().unwrap()).1, "SECRETS_UNRESOLVED");
    let denied = executor.list_secrets(list("ws-of-nobody")).await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);

    // The call is a child of its caller's span, and its parts are its children.
    let method = "workflowsecrets.v1.SecretsService/ResolveSecrets";
    let call = eventually("span of the call", || of_trace(&sink, method)).await;
    assert_eq!(hex::encode(&call.parent_span_id), PARENT);
    assert_eq!(call.kind, SpanKind::Server as i32);
    let told = attributes(&call.attributes);
    assert_eq!(told["rpc.system.name"], "grpc");
    assert_eq!(told["rpc.method"], method);
    assert_eq!(told["rpc.response.status_code"], "OK");
    for (part, kind) in [("store read", SpanKind::Client), ("open", SpanKind::Internal)] {
        let span = eventually(part, || of_trace(&sink, part)).await;
        assert_eq!(span.parent_span_id, call.span_id, "{part}");
        assert_eq!(span.kind, kind as i32, "{part}");
        assert!(span.start_time_unix_nano >= call.start_time_unix_nano, "{part}");
        assert!(span.end_time_unix_nano <= call.end_time_unix_nano, "{part}");
    }
    // A write makes a data key, in the trace of its call.
    let by_name = |name: &str| sink.spans().into_iter().find(|span| span.name == name);
    let create = "workflowsecrets.v1.SecretsService/CreateSecret";
    let create = eventually("span of the create", || by_name(create)).await;
    for part in ["kms generate", "kms decrypt", "seal", "store commit"] {
        let trace = || {
            let spans = sink.spans();
            spans.into_iter().find(|s| s.name == part && s.trace_id == create.trace_id)
        };
        eventually(part, trace).await;
    }

    let tenant = |kept: &tonic::metadata::MetadataMap| kept.get("x-tenant").cloned();
    assert!(sink.metadata().iter().all(|kept| tenant(kept).is_some_and(|t| t == "blue")));
    let calls = |outcome: &str| {
        let attributes = [("action", "resolve"), ("outcome", outcome)];
        find(&sink.points(), "workflow_secrets.calls", &attributes)
    };
    eventually("resolves", || calls("ok").filter(|count| *count == 2.0)).await;
    let points = eventually("unresolved", || {
        calls("SECRETS_UNRESOLVED").filter(|count| *count == 1.0).map(|_| sink.points())
    })
    .await;
    let rpc = |status: &str| {
        let attributes = [("rpc.method", method), ("rpc.response.status_code", status)];
        find(&points, "rpc.server.call.duration", &attributes)
    };
    assert_eq!((rpc("OK"), rpc("FAILED_PRECONDITION")), (Some(2.0), Some(1.0)));
    let hits = find(&points, "workflow_secrets.data_key.lookups", &[("result", "hit")]);
    assert!(hits.is_some_and(|hits| hits >= 1.0), "{hits:?}");
    let decrypts = [("operation", "decrypt"), ("outcome", "ok")];
    let decrypts = find(&points, "workflow_secrets.kms.call.duration", &decrypts);
    assert!(decrypts.is_some_and(|count| count >= 1.0), "{decrypts:?}");
    let reads = [("operation", "read"), ("outcome", "ok")];
    let reads = find(&points, "workflow_secrets.store.call.duration", &reads);
    assert!(reads.is_some_and(|count| count >= 3.0), "{reads:?}");
    let resource = sink.resource();
    assert_eq!(resource["service.name"], "workflow-secrets");
    assert_eq!(resource["service.version"], "9");
    assert_eq!(resource["deployment.environment.name"], "test");
    assert!(resource.contains_key("service.instance.id"));

    // The same instruments, at `/metrics`.
    let shown = scrape(admin).await;
    let series = "workflow_secrets_calls_total{action=\"resolve\",outcome=\"ok\"}";
    assert_eq!(shown["workflow_secrets_calls_total"].samples[series], 2.0);

    // No name of anything is told, nor a value.
    let all = [sink.kept(), format!("{shown:?}").into_bytes()].concat();
    let all = String::from_utf8_lossy(&all);
    for secret in ["ws-of-nobody", "NAME_OF_NOTHING", "ABSENT", "spiffe:", "run-1"] {
        assert!(!all.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_failed_call_has_an_error_and_its_log_line_has_its_trace() {
    let platform = Platform::start_with(Options::default()).await;
    let sink = OtlpSink::start().await;
    let url = sink.url();
    let (replica, _) = watched(&platform, &collected(&url), &[]).await;
    platform.kms.set_state(&platform.kms_key, KeyState::Disabled);
    let mut writer = platform.client(&replica, "platform").await;
    let refused = writer.create_secret(traced(create("ws", "KEY", "value"))).await;
    assert_eq!(reason(&refused.unwrap_err()).1, "KMS_KEY_UNUSABLE");
    let line = eventually("log line", || {
        let log = replica.stderr();
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        let mut lines = lines.filter(|line: &serde_json::Value| line["level"] == "ERROR");
        lines.find(|line| line["fields"]["reason"] == "KMS_KEY_UNUSABLE")
    })
    .await;
    assert_eq!(line["span"]["trace_id"], TRACE, "{line}");
    assert_eq!(line["span"]["name"], "call", "{line}");
    let method = "workflowsecrets.v1.SecretsService/CreateSecret";
    assert_eq!(line["span"]["rpc.method"], method, "{line}");
    let kms = eventually("KMS span", || of_trace(&sink, "kms generate")).await;
    assert_eq!(attributes(&kms.attributes)["error.type"], "key_unusable");
    assert_eq!(kms.status.unwrap().code, 2);
    // The caller's key is at fault, and not this server.
    let call = eventually("call span", || of_trace(&sink, method)).await;
    assert_eq!(attributes(&call.attributes)["rpc.response.status_code"], "FAILED_PRECONDITION");
    assert_eq!(call.status.unwrap_or_default().code, 0);
}

#[tokio::test]
async fn without_a_collector_log_lines_still_have_the_callers_trace() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    platform.kms.set_state(&platform.kms_key, KeyState::Disabled);
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(traced(create("ws", "KEY", "value"))).await.unwrap_err();
    eventually("trace id", || replica.stderr().contains(TRACE).then_some(())).await;
}

#[tokio::test]
async fn a_collector_behind_tls_is_verified() {
    let platform = Platform::start_with(Options::default()).await;
    let pki::Identity { cert, key } = platform.ca.server();
    let identity = tonic::transport::Identity::from_pem(cert, key);
    let sink =
        OtlpSink::start_tls(tonic::transport::ServerTlsConfig::new().identity(identity)).await;
    let url = format!("https://localhost:{}", sink.port());
    let ca = platform.file("ca.crt");
    let trusted = ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.to_str().unwrap());
    let endpoint =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("OTEL_METRIC_EXPORT_INTERVAL", "200")];
    // Without the CA, the system's are asked, which know nothing of this one.
    let stranger = platform.launch_in(&endpoint, &[]);
    stranger.ready(&platform).await;
    eventually("error", || stranger.stderr().contains("opentelemetry").then_some(())).await;
    assert!(sink.kept().is_empty());
    let replica = platform.launch_in(&[&endpoint[..], &[trusted]].concat(), &[]);
    replica.ready(&platform).await;
    eventually("metrics", || (!sink.points().is_empty()).then_some(())).await;
}
