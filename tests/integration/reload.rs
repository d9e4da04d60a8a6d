//! Files that change under a running replica.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tonic::Code;

use super::support::{
    pki,
    platform::{Platform, Replica, assert_refused, create, reason, resolve, spiffe_id},
    redis_server::{Options, until},
};

/// Files are looked at every 2 s; the rest is for a busy machine.
const NOTICED: Duration = Duration::from_secs(10);

/// Puts a file in place as editors and deployments do.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::metadata(path).unwrap().permissions()).unwrap();
    fs::rename(new, path).unwrap();
}

/// Waits for an error to be logged about these files.
async fn until_refused(replica: &Replica, what: &str, times: usize) {
    let refusals = || {
        let lines = replica.stderr();
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap());
        let refused = |line: &serde_json::Value| {
            line["level"] == "ERROR"
                && line["fields"]["what"] == what
                && line["fields"]["message"] == "changed files refused; the last good stay"
        };
        lines.filter(refused).count()
    };
    until(|| refusals() >= times).await;
}

#[tokio::test]
async fn a_changed_policy_counts_and_a_broken_one_does_not() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    let mut executor = platform.client(&replica, "executor").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();

    let file = platform.file("policy.toml");
    let granted = fs::read_to_string(&file).unwrap();
    let without = granted.replace(&spiffe_id("executor"), &spiffe_id("somebody-else"));
    replace(&file, &without);
    let start = Instant::now();
    loop {
        match executor.resolve_secrets(resolve("ws", &["KEY"])).await {
            Ok(_) => assert!(start.elapsed() < NOTICED, "the grant is still there"),
            Err(status) => {
                assert_eq!(reason(&status), (Code::PermissionDenied, "NOT_GRANTED".to_owned()));
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Refused whole: the good grants in it do not count either.
    replace(&file, &granted.replacen("\"operator\"", "\"king\"", 1));
    until_refused(&replica, "policy", 1).await;
    let denied = executor.resolve_secrets(resolve("ws", &["KEY"])).await;
    assert_refused(denied, Code::PermissionDenied, "NOT_GRANTED");
    fs::remove_file(&file).unwrap();
    until_refused(&replica, "policy", 2).await;
    writer.create_secret(create("ws", "OTHER", "value")).await.unwrap();

    fs::write(&file, &granted).unwrap();
    let start = Instant::now();
    while let Err(status) = executor.resolve_secrets(resolve("ws", &["KEY"])).await {
        assert!(start.elapsed() < NOTICED, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The certificate that a new connection is shown.
async fn shown(platform: &Platform, replica: &Replica) -> CertificateDer<'static> {
    let config = pki::client_config(&platform.ca, None);
    let stream = pki::connect(replica.address, config).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test]
async fn new_connections_are_shown_the_new_certificate() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut early = platform.client(&replica, "platform").await;
    early.create_secret(create("ws", "KEY", "value")).await.unwrap();
    let old = shown(&platform, &replica).await;

    let next = platform.ca.server();
    let certificate = CertificateDer::from_pem_slice(next.cert.as_bytes()).unwrap();
    assert_ne!(certificate, old);
    // Only half of the change: certificate and key do not fit.
    replace(&platform.file("tls.crt"), &next.cert);
    until_refused(&replica, "TLS files", 1).await;
    assert_eq!(shown(&platform, &replica).await, old);
    replace(&platform.file("tls.key"), &next.key);
    let start = Instant::now();
    while shown(&platform, &replica).await != certificate {
        assert!(start.elapsed() < NOTICED);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    early.create_secret(create("ws", "EARLY", "value")).await.unwrap();
    let mut late = platform.client(&replica, "executor").await;
    late.resolve_secrets(resolve("ws", &["KEY", "EARLY"])).await.unwrap();
}
