//! Who a connection comes from: real TLS, real certificates.

use std::{fs, io, net::SocketAddr, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use rustls::{ClientConfig, HandshakeKind, ServerConfig, version};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Server, server::Connected as _},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use workflow_secrets::{
    domain::CallerId,
    grpc::{
        accept::{self, AcceptLimits, PlainError},
        identity::{self, Peer},
        tls::{self, TlsFiles},
    },
};

use crate::support::pki::{self, Ca, Identity};

/// Far longer than anything here takes: a hung test fails instead.
const PATIENCE: Duration = Duration::from_secs(20);
const EXECUTOR: &str = "spiffe://example.org/executor";

/// Greets each connection with its peer and keeps it until the client ends it.
struct Greeter {
    address: SocketAddr,
    tls: Arc<ArcSwap<ServerConfig>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    ca: Ca,
    files: TlsFiles,
    dir: TempDir,
}

impl Greeter {
    async fn start(limits: AcceptLimits) -> Self {
        let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
        let files = pki::write_server_files(dir.path(), &ca.server(), &ca);
        let tls = Arc::new(ArcSwap::new(tls::load(&files).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut incoming = accept::incoming(listener, Arc::clone(&tls), limits, shutdown.clone());
        let task = tokio::spawn(async move {
            while let Some(connection) = incoming.next().await {
                let mut connection = connection.unwrap();
                tokio::spawn(async move {
                    let peer = match connection.connect_info() {
                        Peer::Verified(id) => id.to_string(),
                        Peer::Unidentified { why, .. } => why.to_owned(),
                    };
                    connection.write_all(format!("{peer}\n").as_bytes()).await.unwrap();
                    connection.flush().await.unwrap();
                    let _ = connection.read(&mut [0]).await;
                });
            }
        });
        Self { address, tls, shutdown, task, ca, files, dir }
    }

    fn client(&self, identity: &Identity) -> Arc<ClientConfig> {
        pki::client_config(&self.ca, Some(identity))
    }

    /// The greeting, and the connection that it came by.
    async fn greet(
        &self,
        client: &Arc<ClientConfig>,
    ) -> io::Result<(String, BufReader<TlsStream<TcpStream>>)> {
        let exchange = async {
            let stream = pki::connect(self.address, Arc::clone(client)).await?;
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            match stream.read_line(&mut line).await? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok((line.trim_end().to_owned(), stream)),
            }
        };
        timeout(PATIENCE, exchange).await.expect("neither greeted nor refused")
    }

    async fn peer(&self, identity: &Identity) -> String {
        self.greet(&self.client(identity)).await.unwrap().0
    }

    async fn refuses(&self, identity: &Identity) -> bool {
        self.greet(&self.client(identity)).await.is_err()
    }
}

#[tokio::test]
async fn one_spiffe_uri_names_the_caller() {
    let server = Greeter::start(AcceptLimits::default()).await;
    for id in [EXECUTOR, "spiffe://td/ns/prod/sa/platform"] {
        assert_eq!(server.peer(&server.ca.client(&[id])).await, id);
    }
    let old = &[&version::TLS12];
    let client = pki::client_config_with(&server.ca, Some(&server.ca.client(&[EXECUTOR])), old);
    assert_eq!(server.greet(&client).await.unwrap().0, EXECUTOR);
}

#[tokio::test]
async fn http2_is_the_only_protocol() {
    let server = Greeter::start(AcceptLimits::default()).await;
    let mut client = (*server.client(&server.ca.client(&[EXECUTOR]))).clone();
    for (offered, agreed) in [(&["http/1.1", "h2"][..], true), (&[], true), (&["http/1.1"], false)]
    {
        client.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let greeted = server.greet(&Arc::new(client.clone())).await;
        assert_eq!(greeted.is_ok(), agreed, "{offered:?}");
        if let Ok((_, stream)) = greeted {
            let chosen = stream.get_ref().get_ref().1.alpn_protocol();
            assert_eq!(chosen, (!offered.is_empty()).then_some(&b"h2"[..]));
        }
    }
}

#[tokio::test]
async fn all_others_are_unidentified() {
    let server = Greeter::start(AcceptLimits::default()).await;
    let anonymous = pki::client_config(&server.ca, None);
    assert_eq!(server.greet(&anonymous).await.unwrap().0, "no client certificate");

    let ca = &server.ca;
    // A URI (tag 6) whose bytes are no text, beside a good one.
    let mut san = vec![0x86, 2, 0xff, 0xfe, 0x86, u8::try_from(EXECUTOR.len()).unwrap()];
    san.extend_from_slice(EXECUTOR.as_bytes());
    san.splice(0..0, [0x30, u8::try_from(san.len()).unwrap()]);
    let not_spiffe = "URI SAN of the client certificate is no SPIFFE id";
    let several = "client certificate with more than one URI SAN";
    for (identity, why) in [
        (ca.client(&[]), "client certificate without URI SAN"),
        (ca.aimless_client(EXECUTOR), "client certificate is not for client authentication"),
        (ca.client(&[EXECUTOR, "spiffe://example.org/platform"]), several),
        (ca.client(&[EXECUTOR, EXECUTOR]), several),
        (ca.client(&[EXECUTOR, "https://example.org/"]), several),
        (ca.client(&["https://example.org/executor"]), not_spiffe),
        (ca.client(&["spiffe://Example.org/executor"]), not_spiffe),
        (ca.client(&["spiffe://example.org/executor/"]), not_spiffe),
        (ca.client(&[""]), not_spiffe),
        (ca.signing_client(EXECUTOR), "client certificate may sign others"),
        (ca.client_with_raw_san(san), "client certificate malformed"),
    ] {
        assert_eq!(server.peer(&identity).await, why);
    }
}

#[tokio::test]
async fn certificates_that_do_not_verify_are_refused() {
    let server = Greeter::start(AcceptLimits::default()).await;
    assert!(server.refuses(&Ca::new().client(&[EXECUTOR])).await, "another CA");
    assert!(server.refuses(&server.ca.expired_client(EXECUTOR)).await, "expired");
    assert!(server.refuses(&server.ca.early_client(EXECUTOR)).await, "not valid yet");
    assert!(server.refuses(&server.ca.server()).await, "not for clients");
    assert!(server.refuses(&server.ca.ca_client(EXECUTOR)).await, "a CA");
    assert!(!server.refuses(&server.ca.client(&[EXECUTOR])).await);
}

#[tokio::test]
async fn silent_clients_delay_nobody_and_are_cut() {
    let server = Greeter::start(AcceptLimits {
        handshake_timeout: Duration::from_secs(3),
        max_handshakes: 8,
        ..AcceptLimits::default()
    })
    .await;
    let client = server.client(&server.ca.client(&[EXECUTOR]));
    // An open connection is no handshake.
    let (_, mut open) = server.greet(&client).await.unwrap();
    let mut silent = Vec::new();
    for index in 0..20 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Some begin a handshake, and stop.
        stream.write_all(&[0x16, 3, 1][..index % 4]).await.unwrap();
        silent.push(stream);
    }
    // The oldest go for those who come, and for one who is quick.
    assert_eq!(server.greet(&client).await.unwrap().0, EXECUTOR);
    for stream in &mut silent[..12] {
        cut(stream).await;
    }
    let last = silent.last().unwrap();
    let error = last.try_read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "still in its time");
    for stream in &mut silent[12..] {
        cut(stream).await;
    }
    open.write_all(b"x").await.unwrap();
    open.flush().await.unwrap();
}

async fn cut(stream: &mut TcpStream) {
    let cut = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
    assert!(!matches!(cut, Ok(1..)));
}

#[tokio::test]
async fn one_caller_leaves_connections_to_others() {
    let limits = AcceptLimits { max_connections_per_caller: 2, ..AcceptLimits::default() };
    let server = Greeter::start(limits).await;
    let client = server.client(&server.ca.client(&[EXECUTOR]));
    let first = server.greet(&client).await.unwrap();
    let _second = server.greet(&client).await.unwrap();
    assert!(server.greet(&client).await.is_err(), "its share is taken");
    let other = "spiffe://example.org/platform";
    assert_eq!(server.peer(&server.ca.client(&[other])).await, other);
    drop(first);
    let again = async { while server.greet(&client).await.is_err() {} };
    timeout(PATIENCE, again).await.expect("a place is free again");
}

#[tokio::test]
async fn connections_are_bounded() {
    let limits = AcceptLimits { max_connections: 2, ..AcceptLimits::default() };
    let server = Greeter::start(limits).await;
    let client = server.client(&server.ca.client(&[EXECUTOR]));
    let first = server.greet(&client).await.unwrap();
    let _second = server.greet(&client).await.unwrap();
    for _ in 0..3 {
        assert!(server.greet(&client).await.is_err(), "closed at once");
    }
    drop(first);
    let again = async {
        while server.greet(&client).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("a place is free again");
}

/// In a process of its own, since the limit on open files is the process's.
#[tokio::test]
async fn running_out_of_files_is_survived() {
    const CHILD: &str = "RUNNING_OUT_OF_FILES";
    if std::env::var_os(CHILD).is_none() {
        let mut child = tokio::process::Command::new("sh");
        child.args(["-c", "ulimit -n 64 && exec \"$0\" --exact \"$1\""]);
        child.arg(std::env::current_exe().unwrap());
        child.arg("identity::running_out_of_files_is_survived").env(CHILD, "1");
        let output = timeout(3 * PATIENCE, child.kill_on_drop(true).output()).await;
        let output = output.unwrap().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
        return;
    }
    let server = Greeter::start(AcceptLimits::default()).await;
    let client = server.client(&server.ca.client(&[EXECUTOR]));
    let mut held = Vec::new();
    while let Ok(stream) = TcpStream::connect(server.address).await {
        held.push(stream);
    }
    // Connections the server has no file for wait in the listener's queue.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(held);
    let served = async { while server.greet(&client).await.is_err() {} };
    timeout(PATIENCE, served).await.expect("accepts again");
}

#[tokio::test]
async fn sessions_are_not_resumed_and_a_new_ca_counts_at_once() {
    let server = Greeter::start(AcceptLimits::default()).await;
    let identity = server.ca.client(&[EXECUTOR]);
    let mut clients = Vec::new();
    for version in [&version::TLS12, &version::TLS13] {
        let client = pki::client_config_with(&server.ca, Some(&identity), &[version]);
        for _ in 0..3 {
            let (_, stream) = server.greet(&client).await.unwrap();
            let kind = stream.get_ref().get_ref().1.handshake_kind();
            assert_eq!(kind, Some(HandshakeKind::Full));
        }
        clients.push(client);
    }
    let open = server.greet(&clients[0]).await.unwrap();

    let other = Ca::new();
    pki::write_server_files(server.dir.path(), &server.ca.server(), &other);
    server.tls.store(tls::load(&server.files).unwrap());
    for client in &clients {
        assert!(server.greet(client).await.is_err(), "the old CA no longer counts");
    }
    assert_eq!(server.peer(&other.client(&[EXECUTOR])).await, EXECUTOR);
    drop(open);
}

#[tokio::test]
async fn a_new_server_certificate_is_shown_to_new_connections() {
    let server = Greeter::start(AcceptLimits::default()).await;
    let renewed = Ca::new();
    let client = pki::client_config(&renewed, None);
    assert!(server.greet(&client).await.is_err());
    pki::write_server_files(server.dir.path(), &renewed.server(), &server.ca);
    server.tls.store(tls::load(&server.files).unwrap());
    assert!(server.greet(&client).await.is_ok());
}

#[tokio::test]
async fn shutdown_ends_the_stream_and_unfinished_handshakes() {
    let limits = AcceptLimits { handshake_timeout: 10 * PATIENCE, ..AcceptLimits::default() };
    let server = Greeter::start(limits).await;
    let client = server.client(&server.ca.client(&[EXECUTOR]));
    let (_, mut open) = server.greet(&client).await.unwrap();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    server.shutdown.cancel();
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
    let cut = timeout(PATIENCE, silent.read(&mut [0])).await.unwrap();
    assert!(!matches!(cut, Ok(1..)));
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is closed");
    open.write_all(b"x").await.unwrap();
    open.flush().await.unwrap();
}

#[tokio::test]
async fn plaintext_is_for_loopback_only() {
    let dev = CallerId::parse("spiffe://dev/local").unwrap();
    let listen = |address: &'static str| async move {
        (TcpListener::bind(address).await.unwrap(), AcceptLimits::default())
    };
    let (open, limits) = listen("0.0.0.0:0").await;
    let refused = accept::plain(open, dev.clone(), limits, CancellationToken::new());
    assert!(matches!(refused.map(|_| ()), Err(PlainError::NotLoopback(_))));

    let (local, limits) = listen("127.0.0.1:0").await;
    let address = local.local_addr().unwrap();
    let mut incoming = accept::plain(local, dev.clone(), limits, CancellationToken::new()).unwrap();
    let _client = TcpStream::connect(address).await.unwrap();
    let connection = timeout(PATIENCE, incoming.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(connection.connect_info(), Peer::Verified(dev));
}

#[test]
fn every_faulty_file_is_named_and_nothing_of_it_told() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let faults = |files: &TlsFiles| {
        let error = tls::load(files).unwrap_err();
        assert!(!error.to_string().contains("CANARY"), "{error}");
        error.faults().to_vec()
    };
    let write = || pki::write_server_files(dir.path(), &ca.server(), &ca);
    let files = write();
    let all = [&files.cert, &files.key, &files.client_ca].map(Clone::clone);

    for content in
        [None, Some(""), Some("-----BEGIN CANARY\n"), Some("-----BEGIN CERTIFICATE-----\nCANARY!")]
    {
        write();
        for file in &all {
            match content {
                Some(content) => fs::write(file, content).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
        }
        let told: Vec<_> = faults(&files).into_iter().map(|(file, _)| file).collect();
        assert_eq!(told, all, "{content:?}");
    }

    for (server, fault) in [
        (ca.server_until(2020), "certificate 1 has expired"),
        (ca.server_from(2400), "certificate 1 is not valid yet"),
    ] {
        pki::write_server_files(dir.path(), &server, &ca);
        assert_eq!(faults(&files), [(files.cert.clone(), fault.to_owned())]);
    }

    write();
    let crl = dir.path().join("ca.crl");
    let with_crl = TlsFiles { client_crl: Some(crl.clone()), ..files.clone() };
    for (content, fault) in [
        ("", "holds no revocation lists in PEM"),
        ("-----BEGIN X509 CRL-----\nCANARY!", "holds no revocation lists in PEM"),
        (&ca.crl(&[], 2021), "list 1 is out of date"),
    ] {
        fs::write(&crl, content).unwrap();
        assert_eq!(faults(&with_crl), [(crl.clone(), fault.to_owned())]);
    }
    fs::write(&crl, ca.crl(&[], 2400)).unwrap();
    tls::load(&with_crl).unwrap();

    write();
    for (mode, ok) in [(0o644, false), (0o604, false), (0o601, false), (0o640, true)] {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        match tls::load(&files) {
            Ok(_) => assert!(ok, "{mode:o}"),
            Err(error) => {
                assert!(!ok, "{mode:o}: {error}");
                assert!(error.faults()[0].1.contains("open to others"), "{error}");
            }
        }
    }

    write();
    fs::write(&files.key, ca.server().key).unwrap();
    assert!(faults(&files)[0].1.contains("does not fit"));
}

#[tokio::test]
async fn a_grpc_call_carries_the_identity_of_its_connection() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let files = pki::write_server_files(dir.path(), &ca.server(), &ca);
    let tls = Arc::new(ArcSwap::new(tls::load(&files).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let incoming = accept::incoming(listener, tls, AcceptLimits::default(), shutdown.clone());
    let (_, health) = tonic_health::server::health_reporter();
    let tell = |request: Request<()>| {
        let caller = identity::caller(request.extensions(), request.metadata());
        Err::<Request<()>, _>(Status::aborted(format!("{caller:?}")))
    };
    let service = InterceptedService::new(health, tell);
    let server = tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned()),
    );

    let call = |client: Arc<ClientConfig>| async move {
        let channel = pki::channel(address, client).await.unwrap();
        let mut request = Request::new(HealthCheckRequest::default());
        request.metadata_mut().insert("x-actor", "zoe".parse().unwrap());
        let reply = timeout(PATIENCE, HealthClient::new(channel).check(request)).await.unwrap();
        reply.unwrap_err().message().to_owned()
    };
    let told = call(pki::client_config(&ca, Some(&ca.client(&[EXECUTOR])))).await;
    assert!(told.contains(EXECUTOR) && told.contains("zoe"), "{told}");
    let told = call(pki::client_config(&ca, None)).await;
    assert_eq!(told, "Err(Unauthenticated(\"no client certificate\"))");
    shutdown.cancel();
    timeout(PATIENCE, server).await.unwrap().unwrap().unwrap();
}
