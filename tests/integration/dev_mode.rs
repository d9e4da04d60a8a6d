//! `dev` and `probe`.

use std::{
    fs::{self, File, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tonic::transport::Endpoint;
use tonic_health::pb::health_check_response::ServingStatus;
use workflow_secrets::grpc::proto::secrets_service_client::SecretsServiceClient;

use super::support::{
    platform::{Client, Platform, SERVICE, create, free_address, resolve, value},
    program::{command, ended, run, terminate},
    redis_server::Options,
    tools::grpcurl,
};

/// A running `dev`; killed when dropped.
pub(crate) struct Dev {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Dev {
    /// On a free port, with its data in `dir` and its output next to it.
    pub(crate) async fn start(dir: &Path) -> Self {
        let address = free_address();
        let create = |name: &str| File::create(dir.with_extension(name)).unwrap();
        let child = command("dev")
            .args(["--listen", &address.to_string(), "--data-dir", dir.to_str().unwrap()])
            .stdout(create("stdout"))
            .stderr(create("stderr"))
            .spawn()
            .unwrap();
        let dev = Self { address, child };
        let start = Instant::now();
        while probe(&[&format!("http://{address}")]).await != 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "dev does not start");
        }
        dev
    }

    pub(crate) async fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        SecretsServiceClient::new(endpoint.connect().await.unwrap())
    }

    async fn check_value(&self, name: &str, expected: &str) {
        let answer = self.client().await.resolve_secrets(resolve("demo", &[name])).await.unwrap();
        assert_eq!(value(&answer.into_inner(), name), expected);
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Exit code of `probe --address` and further arguments.
async fn probe(arguments: &[&str]) -> i32 {
    run(command("probe").arg("--address").args(arguments)).await.code.unwrap()
}

#[tokio::test]
async fn dev_keeps_its_data_across_restarts_and_crashes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut dev = Dev::start(&data).await;
    let mut client = dev.client().await;
    client.create_secret(create("demo", "FIRST", "one")).await.unwrap();
    drop(client);
    terminate(&dev.child);
    let status = ended(&mut dev.child, Duration::from_secs(10)).await;
    assert_eq!(status.unwrap().code(), Some(0));

    let mut dev = Dev::start(&data).await;
    dev.check_value("FIRST", "one").await;
    let mut client = dev.client().await;
    for i in 0..20 {
        client.create_secret(create("demo", &format!("K{i}"), &format!("v{i}"))).await.unwrap();
    }
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();

    let dev = Dev::start(&data).await;
    dev.check_value("FIRST", "one").await;
    for i in 0..20 {
        dev.check_value(&format!("K{i}"), &format!("v{i}")).await;
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("kek")), 0o600);
    assert_eq!(mode(&data.join("audit.jsonl")), 0o600);
}

#[tokio::test]
async fn dev_prints_lines_to_paste() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let _dev = Dev::start(&data).await;
    let greeting = fs::read_to_string(data.with_extension("stdout")).unwrap();
    let (_, lines) = greeting.split_once("Try:\n").unwrap();
    // A second time, as after a restart, the value is merely stored anew.
    for version in ["1", "2"] {
        let mut answers = vec![];
        for line in lines.lines() {
            let words = line.strip_prefix("grpcurl ").expect(line);
            let [flags, message, call] = words.split('\'').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            let call = call.split_whitespace();
            let arguments: Vec<_> = flags.split_whitespace().chain([message]).chain(call).collect();
            let ended = grpcurl(&arguments, "").await;
            assert_eq!(ended.code, Some(0), "{line}: {}", ended.stderr);
            answers.push(serde_json::from_str::<Value>(&ended.stdout).unwrap());
        }
        let [stored, listed, resolved] = &answers[..] else { panic!("{lines}") };
        assert_eq!((&stored["name"], &stored["version"]), (&json!("API_KEY"), &json!(version)));
        assert_eq!(listed, &json!({"secrets": [stored]}));
        let uid = &stored["uid"];
        let secret = json!({"name": "API_KEY", "value": "k_51H8", "version": version, "uid": uid});
        assert_eq!(resolved, &json!({"secrets": {"key": secret}}));
    }
}

#[tokio::test]
async fn dev_refuses_other_addresses_than_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7443", "[::ffff:0.0.0.0]:0"] {
        let mut command = command("dev");
        let outcome = run(command.args(["--listen", address]).arg("--data-dir").arg(&data)).await;
        assert_eq!(outcome.code, Some(64), "{address}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("loopback only"), "{}", outcome.stderr);
    }
    assert!(!data.exists());
}

#[tokio::test]
async fn dev_does_not_share_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let dev = Dev::start(&data).await;
    dev.client().await.create_secret(create("demo", "KEY", "value")).await.unwrap();
    let mut second = command("dev");
    second.args(["--listen", &free_address().to_string()]).arg("--data-dir").arg(&data);
    let outcome = run(&mut second).await;
    assert_eq!(outcome.code, Some(69), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("in use by another process"), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "");
    dev.check_value("KEY", "value").await;
}

#[tokio::test]
async fn dev_refuses_a_key_that_others_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    drop(Dev::start(&data).await);
    fs::set_permissions(data.join("kek"), Permissions::from_mode(0o644)).unwrap();
    let mut again = command("dev");
    again.args(["--listen", &free_address().to_string()]).arg("--data-dir").arg(&data);
    let outcome = run(&mut again).await;
    assert_eq!(outcome.code, Some(69), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("local key"), "{}", outcome.stderr);
}

#[tokio::test]
async fn probe_tells_by_its_exit_code() {
    let mut platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let url = format!("https://{}", replica.address);
    let ca = platform.file("ca.crt").to_str().unwrap().to_owned();
    let (wrong_ca, nobody) = (platform.file("platform.crt"), free_address());
    let wrong_ca = wrong_ca.to_str().unwrap();
    assert_eq!(probe(&[&url, "--ca", &ca]).await, 0);
    assert_eq!(probe(&[&url, "--ca", &ca, "--service", SERVICE]).await, 0);
    assert_eq!(probe(&[&url, "--ca", &ca, "--server-name", "localhost"]).await, 0);

    assert_eq!(probe(&[&url, "--ca", &ca, "--server-name", "example.com"]).await, 1);
    assert_eq!(probe(&[&url, "--ca", wrong_ca]).await, 1);
    assert_eq!(probe(&[&url, "--ca", &ca, "--service", "unknown"]).await, 1);
    assert_eq!(probe(&[&format!("https://{nobody}"), "--ca", &ca]).await, 1);
    assert_eq!(probe(&[&format!("http://{}", replica.address), "--timeout", "1s"]).await, 1);
    platform.redis.kill9();
    replica.until_health(&platform, SERVICE, ServingStatus::NotServing).await;
    assert_eq!(probe(&[&url, "--ca", &ca, "--service", SERVICE]).await, 1);
    assert_eq!(probe(&[&url, "--ca", &ca]).await, 0);

    assert_eq!(probe(&[&url]).await, 64);
    assert_eq!(probe(&[&url, "--ca", "/no/such/file"]).await, 64);
    assert_eq!(probe(&["ftp://localhost"]).await, 64);
    assert_eq!(probe(&[&url, "--timeout", "soon"]).await, 64);
    assert_eq!(probe(&[&url, "--no-such-flag"]).await, 64);
}
