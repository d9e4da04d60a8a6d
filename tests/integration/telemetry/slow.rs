//! A collector that takes everything and answers nothing.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use super::http::{scrape, watched};
use crate::support::{
    platform::{Platform, create, resolve},
    redis_server::Options,
};

#[tokio::test]
async fn a_dead_collector_slows_no_call_and_hides_no_metric() {
    let platform = Platform::start_with(Options::default()).await;
    let collector = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    // The queue is full after the first calls.
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8"),
    ];
    let (mut replica, admin) = watched(&platform, &variables, &["--shutdown-grace", "2s"]).await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    let mut executor = platform.client(&replica, "executor").await;
    let start = Instant::now();
    for _ in 0..200 {
        executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
    }
    // One that waited for the collector would take 60 s.
    assert!(start.elapsed() < Duration::from_secs(50), "{:?}", start.elapsed());
    let start = Instant::now();
    let shown = scrape(admin).await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let series = "workflow_secrets_calls_total{action=\"resolve\",outcome=\"ok\"}";
    assert_eq!(shown["workflow_secrets_calls_total"].samples[series], 200.0);
    let start = Instant::now();
    replica.terminate();
    assert_eq!(replica.ended(Duration::from_secs(30)).await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}
