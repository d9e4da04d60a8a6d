//! SIGTERM: calls under way finish, and nobody holds the process up.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::net::TcpStream;
use tonic::{Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::support::{
    kms_endpoint::Fault,
    pki,
    platform::{Platform, Replica, SERVICE, create, resolve, value},
    redis_server::{Options, until},
};

/// For a busy machine, on top of what is promised.
const MARGIN: Duration = Duration::from_secs(3);

async fn watch(channel: &Channel, name: &str) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest { service: name.to_owned() };
    let mut watch = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await, Some(ServingStatus::Serving));
    watch
}

/// `None`: the stream has ended in order.
async fn next(watch: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let message = tokio::time::timeout(MARGIN, watch.message()).await.expect("no message");
    message.unwrap().map(|message| message.status())
}

/// A secret that `replica` has not seen: its data key is not cached.
async fn cold_secret(platform: &Platform) {
    let other = platform.replica().await;
    let mut writer = platform.client(&other, "platform").await;
    writer.create_secret(create("cold", "KEY", "value")).await.unwrap();
}

async fn until_refused(replica: &Replica) {
    let start = Instant::now();
    loop {
        match TcpStream::connect(replica.address).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return,
            _ => assert!(start.elapsed() < MARGIN, "connections are still taken"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn calls_under_way_finish_and_health_says_what_happens() {
    let platform = Platform::start_with(Options::default()).await;
    cold_secret(&platform).await;
    let mut replica = platform.replica().await;
    let channel = platform.channel(&replica, None).await;
    let (mut live, mut ready) = (watch(&channel, "").await, watch(&channel, SERVICE).await);
    let mut executor = platform.client(&replica, "executor").await;
    // The KMS is given up after 1 s and asked again.
    platform.kms.fault_times(1, Fault::Hang);
    let decrypts = platform.kms.decrypts();
    let slow =
        tokio::spawn(async move { executor.resolve_secrets(resolve("cold", &["KEY"])).await });
    until(|| platform.kms.decrypts() > decrypts).await;

    replica.terminate();
    for watch in [&mut live, &mut ready] {
        assert_eq!(next(watch).await, Some(ServingStatus::NotServing));
        assert_eq!(next(watch).await, None);
    }
    until_refused(&replica).await;
    assert!(!slow.is_finished(), "the call was not slow enough");
    let answer = slow.await.unwrap().unwrap().into_inner();
    assert_eq!(value(&answer, "KEY"), "value");
    assert_eq!(replica.ended(MARGIN).await.code(), Some(0), "{}", replica.stderr());
    assert_eq!(replica.audit().last().unwrap()["outcome"], "ok");
}

#[tokio::test]
async fn nobody_holds_it_up_beyond_the_grace_period() {
    let platform = Platform::start_with(Options::default()).await;
    let mut replica = platform.replica_with(&["--shutdown-grace", "2s"]).await;
    let _silent = TcpStream::connect(replica.address).await.unwrap();
    let config = pki::client_config(&platform.ca, None);
    let _no_preface = pki::connect(replica.address, config).await.unwrap();
    let _idle = platform.client(&replica, "executor").await;
    replica.terminate();
    let status = replica.ended(Duration::from_secs(2) + MARGIN).await;
    assert_eq!(status.code(), Some(0), "{}", replica.stderr());
}

#[tokio::test]
async fn a_dead_collector_does_not_hold_it_up() {
    let platform = Platform::start_with(Options::default()).await;
    // Takes connections and never answers.
    let collector = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
    ];
    let mut replica = platform.launch_in(&variables, &["--shutdown-grace", "1s"]);
    replica.ready(&platform).await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    let start = Instant::now();
    replica.terminate();
    assert_eq!(replica.ended(MARGIN).await.code(), Some(0), "{}", replica.stderr());
    // Left to itself, the exporter takes 5 s.
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test]
async fn idle_clients_do_not_use_the_grace_period_up() {
    let platform = Platform::start_with(Options::default()).await;
    let mut replica = platform.replica_with(&["--shutdown-grace", "1m"]).await;
    let _silent = TcpStream::connect(replica.address).await.unwrap();
    let _idle = platform.client(&replica, "executor").await;
    replica.terminate();
    assert_eq!(replica.ended(MARGIN).await.code(), Some(0), "{}", replica.stderr());
}

#[tokio::test]
async fn the_drain_delay_lets_load_balancers_notice() {
    let platform = Platform::start_with(Options::default()).await;
    let mut replica = platform.replica_with(&["--drain-delay", "3s"]).await;
    let channel = platform.channel(&replica, None).await;
    let mut ready = watch(&channel, SERVICE).await;
    let start = Instant::now();
    replica.terminate();
    assert_eq!(next(&mut ready).await, Some(ServingStatus::NotServing));
    // New connections and calls are served as before.
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    for name in ["", SERVICE] {
        let health = replica.health(&platform, name).await;
        assert_eq!(health, Some(ServingStatus::NotServing), "{name:?}");
    }
    assert_eq!(next(&mut ready).await, None);
    assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    until_refused(&replica).await;
    assert_eq!(replica.ended(MARGIN).await.code(), Some(0), "{}", replica.stderr());
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let platform = Platform::start_with(Options::default()).await;
    let flags = ["--shutdown-grace", "2m", "--drain-delay", "1m"];
    let mut replica = platform.replica_with(&flags).await;
    replica.terminate();
    until(|| replica.stderr().contains("shutting down")).await;
    replica.terminate();
    assert_eq!(replica.ended(MARGIN).await.code(), Some(70), "{}", replica.stderr());
}
