//! Certificates of the running program: exchanged under load, and refused.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{io::AsyncReadExt as _, time::timeout};
use tonic::{Code, Status};
use workflow_secrets::grpc::proto::secrets_service_client::SecretsServiceClient;

use super::support::{
    pki::{self, Ca, Identity},
    platform::{Platform, Replica, create, reason, resolve, spiffe_id},
    redis_server::Options,
    witness::Witnesses,
};

/// Files are looked at every 2 s; the rest is for a busy machine.
const NOTICED: Duration = Duration::from_secs(30);

/// A volume as Kubernetes keeps it: the files are links through `..data`, which
/// is exchanged as a whole.
struct Volume<'a>(&'a Path);

impl Volume<'_> {
    fn put(&self, version: usize, server: &Identity, client_cas: &[&Ca]) {
        let dir = self.0.join(format!("..{version}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("tls.crt"), &server.cert).unwrap();
        pki::write_key(&dir.join("tls.key"), &server.key);
        let bundle: String = client_cas.iter().map(|ca| ca.pem()).collect();
        fs::write(dir.join("ca.crt"), bundle).unwrap();
        symlink(format!("..{version}"), self.0.join("..data_tmp")).unwrap();
        fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
        match version.checked_sub(1) {
            None => {
                for name in ["tls.crt", "tls.key", "ca.crt"] {
                    symlink(Path::new("..data").join(name), self.0.join(name)).unwrap();
                }
            }
            Some(last) => fs::remove_dir_all(self.0.join(format!("..{last}"))).unwrap(),
        }
    }

    fn flags(&self) -> Vec<String> {
        [("--tls-cert", "tls.crt"), ("--tls-key", "tls.key"), ("--tls-client-ca", "ca.crt")]
            .into_iter()
            .flat_map(|(flag, name)| [flag.into(), self.0.join(name).to_str().unwrap().into()])
            .collect()
    }
}

/// Waits until new connections are shown this certificate.
async fn until_shown(replica: &Replica, client: &Arc<ClientConfig>, server: &Identity) {
    let expected = CertificateDer::from_pem_slice(server.cert.as_bytes()).unwrap();
    let shown = async {
        loop {
            let stream = pki::connect(replica.address, Arc::clone(client)).await.unwrap();
            if stream.get_ref().1.peer_certificates().unwrap()[0] == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(NOTICED, shown).await.expect("the new certificate is shown");
}

/// Whether the handshake is refused. In TLS 1.3 a client learns so only from
/// its first read.
async fn refused(replica: &Replica, config: Arc<ClientConfig>) -> bool {
    let attempt = async { pki::connect(replica.address, config).await?.read_u8().await };
    timeout(NOTICED, attempt).await.expect("neither served nor refused").is_err()
}

async fn until_refused(replica: &Replica, config: &Arc<ClientConfig>) {
    let waited = async {
        while !refused(replica, Arc::clone(config)).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(NOTICED, waited).await.expect("refused from now on");
}

async fn with_key(flags: &[String]) -> (Platform, Replica) {
    let platform = Platform::start_with(Options::default()).await;
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let replica = platform.replica_with(&flags).await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    (platform, replica)
}

#[tokio::test]
async fn no_call_is_lost_while_certificates_are_exchanged() {
    let platform = Platform::start_with(Options::default()).await;
    let (dir, other) = (tempfile::tempdir().unwrap(), Ca::new());
    let volume = Volume(dir.path());
    volume.put(0, &platform.ca.server(), &[&platform.ca]);
    let flags = volume.flags();
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let replica = platform.replica_with(&flags).await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();

    let own = pki::client_config(&platform.ca, Some(&platform.identity("executor")));
    let identity = other.client(&[&spiffe_id("executor")]);
    let new = pki::client_config(&platform.ca, Some(&identity));
    assert!(refused(&replica, Arc::clone(&new)).await, "its CA is not known yet");
    let witnesses = Witnesses::start(replica.address, &own).await;
    let both = [&platform.ca, &other];
    for (version, cas) in [&both[..1], &both, &both, &both].into_iter().enumerate() {
        let server = platform.ca.server();
        volume.put(version + 1, &server, cas);
        until_shown(&replica, &own, &server).await;
        assert_eq!(refused(&replica, Arc::clone(&new)).await, cas.len() == 1);
        witnesses.until_served(10).await;
    }
    witnesses.end().await;

    // The old CA goes; who has changed to the new one loses no call.
    let mut open = platform.client(&replica, "executor").await;
    open.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
    let witnesses = Witnesses::start(replica.address, &new).await;
    volume.put(5, &platform.ca.server(), &[&other]);
    until_refused(&replica, &own).await;
    witnesses.until_served(10).await;
    witnesses.end().await;
    // An open connection is not looked at again: it ends with its age.
    open.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
}

#[tokio::test]
async fn certificates_that_prove_nothing_are_refused() {
    let (platform, replica) = with_key(&[]).await;
    let (ca, id) = (&platform.ca, spiffe_id("executor"));
    for (what, identity) in [
        ("another CA", Ca::new().client(&[&id])),
        ("expired", ca.expired_client(&id)),
        ("not valid yet", ca.early_client(&id)),
        ("for servers", ca.server()),
        ("a CA", ca.ca_client(&id)),
    ] {
        assert!(refused(&replica, pki::client_config(ca, Some(&identity))).await, "{what}");
    }
    let unauthenticated = (Code::Unauthenticated, "UNAUTHENTICATED");
    for (what, identity, told) in [
        ("none", None, unauthenticated),
        ("no URI", Some(ca.client(&[])), unauthenticated),
        ("two URIs", Some(ca.client(&[&id, &spiffe_id("platform")])), unauthenticated),
        ("the same twice", Some(ca.client(&[&id, &id])), unauthenticated),
        ("no purpose", Some(ca.aimless_client(&id)), unauthenticated),
        // The policy names whole ids.
        (
            "another trust domain",
            Some(ca.client(&["spiffe://test.example/executor"])),
            (Code::PermissionDenied, "NOT_GRANTED"),
        ),
        (
            "a longer id",
            Some(ca.client(&[&format!("{id}/more")])),
            (Code::PermissionDenied, "NOT_GRANTED"),
        ),
    ] {
        let status = resolved(&platform, &replica, identity.as_ref()).await.unwrap_err();
        assert_eq!(reason(&status), (told.0, told.1.to_owned()), "{what}");
    }
    resolved(&platform, &replica, Some(&ca.client(&[&id]))).await.unwrap();
}

async fn resolved(
    platform: &Platform,
    replica: &Replica,
    identity: Option<&Identity>,
) -> Result<(), Status> {
    let mut client = SecretsServiceClient::new(platform.channel(replica, identity).await);
    client.resolve_secrets(resolve("ws", &["KEY"])).await.map(|_| ())
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_once_the_list_says_so() {
    let platform = Platform::start_with(Options::default()).await;
    let list = platform.file("ca.crl");
    fs::write(&list, platform.ca.crl(&[7], 2400)).unwrap();
    let replica = platform.replica_with(&["--tls-client-crl", list.to_str().unwrap()]).await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();

    let id = spiffe_id("executor");
    let numbered = |number| platform.ca.numbered_client(&id, number);
    let (revoked, later) = (numbered(7), numbered(8));
    assert!(refused(&replica, pki::client_config(&platform.ca, Some(&revoked))).await);
    let mut open = SecretsServiceClient::new(platform.channel(&replica, Some(&later)).await);
    open.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();

    let new = list.with_extension("new");
    fs::write(&new, platform.ca.crl(&[7, 8], 2400)).unwrap();
    fs::rename(&new, &list).unwrap();
    until_refused(&replica, &pki::client_config(&platform.ca, Some(&later))).await;
    // An open connection is not looked at again: it ends with its age.
    open.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
    resolved(&platform, &replica, Some(&numbered(9))).await.unwrap();

    // A CA without a list could not revoke anything.
    let other = Ca::new();
    fs::write(platform.file("ca.crt"), [platform.ca.pem(), other.pem()].concat()).unwrap();
    let unlisted = pki::client_config(&platform.ca, Some(&other.numbered_client(&id, 9)));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(refused(&replica, unlisted).await);
}
