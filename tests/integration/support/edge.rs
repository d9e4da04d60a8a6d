//! A server in this process whose limits are the test's.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request, Response};
use tempfile::TempDir;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, body::Body, transport::Channel};
use tower::{Service as _, ServiceExt as _};
use workflow_secrets::{
    domain::{CallerId, Environment, SystemClock},
    envelope::KeyringConfig,
    grpc::{
        self, Health, ServerConfig,
        accept::{self, AcceptLimits},
        proto::secrets_service_client::SecretsServiceClient,
        tls,
    },
    kms::local::LocalKms,
    service::{
        Limits, Parts, Secrets,
        access::Policy,
        audit::{AuditConfig, AuditLog, AuditSink},
    },
    store::{Store, embedded::EmbeddedStore},
};

use super::{
    pki::{self, Ca, Identity},
    platform::Client,
};

/// Far longer than anything here takes: a hung test fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The caller who may do everything; all others may nothing.
pub(crate) const CALLER: &str = "spiffe://test/caller";

/// Ends when dropped.
pub(crate) struct Edge {
    pub(crate) address: SocketAddr,
    pub(crate) ca: Ca,
    /// Bytes of audit lines.
    pub(crate) audit: Arc<Mutex<Vec<u8>>>,
    _stop: DropGuard,
    _dir: TempDir,
}

impl Edge {
    pub(crate) async fn start(config: ServerConfig) -> Self {
        let limits = AcceptLimits { life: config.connection_life(), ..AcceptLimits::default() };
        Self::start_with(config, limits).await
    }

    pub(crate) async fn start_with(config: ServerConfig, limits: AcceptLimits) -> Self {
        let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
        let files = pki::write_server_files(dir.path(), &ca.server(), &ca);
        let tls = Arc::new(ArcSwap::new(tls::load(&files).unwrap()));
        let audit = Arc::default();
        let secrets = Arc::new(secrets(&dir, Lines(Arc::clone(&audit))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let incoming = accept::incoming(listener, tls, limits, stop.clone());
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            let health = Health::default();
            let span = |_: &str, _: &HeaderMap| tracing::Span::none();
            grpc::serve(secrets, &health, config, incoming, stopped, span).await.unwrap();
        });
        Self { address, ca, audit, _stop: stop.drop_guard(), _dir: dir }
    }

    /// A connection of this caller, or of nobody.
    pub(crate) async fn channel(&self, caller: Option<&str>) -> Channel {
        let identity: Option<Identity> = caller.map(|id| self.ca.client(&[id]));
        let config = pki::client_config(&self.ca, identity.as_ref());
        pki::channel(self.address, config).await.unwrap()
    }

    pub(crate) async fn client(&self, caller: &str) -> Client {
        SecretsServiceClient::new(self.channel(Some(caller)).await)
    }
}

fn secrets(dir: &TempDir, lines: Lines) -> Secrets {
    let clock = Arc::new(SystemClock::default());
    let store = EmbeddedStore::open(&dir.path().join("store"), clock.clone()).unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    let kms = Arc::new(LocalKms::open_or_create(&dir.path().join("kek")).unwrap());
    let environment = Environment::parse("test").unwrap();
    let caller = CallerId::parse(CALLER).unwrap();
    let sink = AuditSink::Writer(Box::new(lines));
    Secrets::new(Parts {
        store,
        kms,
        keyring: KeyringConfig::default(),
        clock,
        audit: AuditLog::start(sink, AuditConfig::default()).unwrap(),
        policy: Arc::new(ArcSwap::from_pointee(Policy::everything(caller))),
        environment,
        limits: Limits {
            max_secrets_per_workspace: 10,
            // Random cases make many calls.
            preparations_per_minute: NonZeroU32::MAX,
            ..Limits::default()
        },
        shredded: Arc::default(),
    })
}

struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Calls with these bytes; the answer, its body unread.
pub(crate) async fn call(channel: &Channel, path: &str, bytes: Vec<u8>) -> Response<Body> {
    send(channel, path, axum::body::Body::from(bytes)).await
}

/// The same without ever ending the request.
pub(crate) async fn stalled(channel: &Channel, path: &str, bytes: Vec<u8>) -> Response<Body> {
    let sent = stream::once(async { Ok::<_, std::io::Error>(Bytes::from(bytes)) });
    send(channel, path, axum::body::Body::from_stream(sent.chain(stream::pending()))).await
}

/// The same with this body.
pub(crate) async fn send(channel: &Channel, path: &str, body: axum::body::Body) -> Response<Body> {
    let request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(body))
        .unwrap();
    let mut channel = channel.clone();
    let call = async { channel.ready().await.unwrap().call(request).await.unwrap() };
    timeout(PATIENCE, call).await.expect("an answer")
}

/// The error that an answer begins with, if it is one.
pub(crate) fn refusal(answer: &Response<Body>) -> Option<Status> {
    Status::from_header_map(answer.headers())
}

/// The frame of a message of so many bytes; the message itself is to follow.
pub(crate) fn announce(length: u32) -> Vec<u8> {
    [&[0][..], &length.to_be_bytes()].concat()
}
