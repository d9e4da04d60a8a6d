//! `/healthz`, `/readyz` and `/metrics`.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use x509_parser::prelude::{FromDer as _, X509Certificate, parse_x509_pem};

use super::http::{request, scrape, send, watched};
use crate::support::{
    platform::{Platform, create},
    redis_server::Options,
};

#[tokio::test]
async fn health_is_told_as_over_grpc() {
    let mut platform = Platform::start_with(Options::default()).await;
    let (mut replica, admin) =
        watched(&platform, &[], &["--drain-delay", "30s", "--shutdown-grace", "60s"]).await;
    for path in ["/healthz", "/readyz"] {
        let answer = request(admin, "GET", path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"), "{path}");
    }
    let ready = scrape(admin).await["workflow_secrets_ready"].samples["workflow_secrets_ready"];
    assert_eq!(ready, 1.0);
    platform.redis.kill9();
    until_status(admin, "/readyz", 503).await;
    assert_eq!(request(admin, "GET", "/healthz").await.status, 200);
    platform.redis.restart().await;
    until_status(admin, "/readyz", 200).await;
    let shown = scrape(admin).await;
    let reconnects = &shown["workflow_secrets_store_reconnects_total"].samples;
    assert!(reconnects["workflow_secrets_store_reconnects_total"] >= 1.0, "{reconnects:?}");
    // While it drains, it is neither.
    replica.terminate();
    until_status(admin, "/healthz", 503).await;
    until_status(admin, "/readyz", 503).await;
    assert_eq!(request(admin, "GET", "/metrics").await.status, 200);
    replica.kill9();
}

async fn until_status(admin: SocketAddr, path: &str, status: u16) {
    let start = Instant::now();
    while request(admin, "GET", path).await.status != status {
        assert!(start.elapsed() < Duration::from_secs(60), "{path} is not {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn only_get_and_head_of_what_is_there_are_answered() {
    let platform = Platform::start_with(Options::default()).await;
    let (_replica, admin) = watched(&platform, &[], &[]).await;
    let get = request(admin, "GET", "/metrics").await;
    assert!(get.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{get:?}");
    assert!(get.head.contains("cache-control: no-store"), "{get:?}");
    assert!(get.head.contains("connection: close"), "{get:?}");
    let head = request(admin, "HEAD", "/metrics").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        for path in ["/metrics", "/healthz", "/readyz", "/"] {
            let answer = request(admin, method, path).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert!(answer.head.contains("allow: get, head"), "{answer:?}");
        }
    }
    for path in ["/", "/metrics/", "/metrics/x", "/METRICS", "/debug/pprof", "/../metrics", "*"] {
        let status = request(admin, "GET", path).await.status;
        assert!([404, 400].contains(&status), "{path}: {status}");
    }
    // What is no HTTP, and what asks for another connection.
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = String::from_utf8_lossy(&send(admin, bytes).await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
}

#[tokio::test]
async fn no_client_holds_or_fills_the_admin_port() {
    let platform = Platform::start_with(Options::default()).await;
    let (_replica, admin) = watched(&platform, &[], &[]).await;
    // A head without end, in bytes and in headers.
    let long = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    for head in [long, many] {
        let answer = String::from_utf8_lossy(&send(admin, head.as_bytes()).await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    // A body is not waited for.
    let body = b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\nx";
    assert!(send(admin, body).await.starts_with(b"HTTP/1.1 200"));
    // More than there are places say nothing: others are answered all the same,
    // and each is closed in time.
    let mut silent = vec![];
    for _ in 0..40 {
        silent.push(TcpStream::connect(admin).await.unwrap());
    }
    assert_eq!(request(admin, "GET", "/healthz").await.status, 200);
    let start = Instant::now();
    for stream in &mut silent {
        let mut rest = vec![];
        let end = tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut rest));
        assert!(end.await.is_ok(), "held open for {:?}", start.elapsed());
    }
}

/// Connects from an address of loopback.
async fn connect_from(from: [u8; 4], to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_while_another_address_floods_the_admin_port() {
    const FLOOD: usize = 200;
    let platform = Platform::start_with(Options::default()).await;
    let (_replica, admin) = watched(&platform, &[], &[]).await;
    let opened = Arc::new(AtomicUsize::new(0));
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..FLOOD {
        let opened = opened.clone();
        flood.spawn(async move {
            loop {
                // Half say nothing, half begin; whoever is cut comes again.
                if let Ok(mut stream) = connect_from([127, 0, 0, 2], admin).await {
                    opened.fetch_add(1, Ordering::Relaxed);
                    let begun: &[u8] = if number % 2 == 0 { b"" } else { b"GET /metrics HT" };
                    let _ = stream.write_all(begun).await;
                    let _ = stream.read_to_end(&mut vec![]).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    while opened.load(Ordering::Relaxed) < 2 * FLOOD {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // As a kubelet asks, which waits for 1 s; here, the machine may be busy.
    for path in ["/healthz", "/readyz"].into_iter().cycle().take(40) {
        let asked = tokio::time::timeout(Duration::from_secs(5), request(admin, "GET", path));
        assert_eq!(asked.await.expect("an answer").status, 200);
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(opened.load(Ordering::Relaxed) > 3 * FLOOD, "no flood any more");
    flood.shutdown().await;
}

#[tokio::test]
async fn the_first_expiry_of_each_certificate_file_is_told() {
    let platform = Platform::start_with(Options::default()).await;
    let (replica, admin) = watched(&platform, &[], &[]).await;
    let expiry = |name: &str| {
        let pem = std::fs::read(platform.file(name)).unwrap();
        let (_, pem) = parse_x509_pem(&pem).unwrap();
        let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
        certificate.validity().not_after.timestamp() as f64
    };
    let name = "workflow_secrets_tls_certificate_expiry_seconds";
    let told = |file: &str| format!("{name}{{file=\"{file}\"}}");
    let shown = scrape(admin).await;
    assert_eq!(shown[name].samples[&told("server")], expiry("tls.crt"));
    assert_eq!(shown[name].samples[&told("client_ca")], expiry("ca.crt"));
    // A new certificate, taken without a restart.
    let left = Duration::from_secs(3_600 * 24 * 3);
    let soon = SystemTime::now() + left;
    crate::support::pki::write_server_files(
        platform.file("tls.crt").parent().unwrap(),
        &platform.ca.expiring_server(left),
        &platform.ca,
    );
    let start = Instant::now();
    loop {
        let now = scrape(admin).await[name].samples[&told("server")];
        let soon = soon.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        if (now - soon).abs() < 120.0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{now}, {}", replica.stderr());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn nothing_listens_unless_asked_to() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", replica.pid())).unwrap();
    let own = std::fs::read_dir(format!("/proc/{}/fd", replica.pid())).unwrap();
    let own: Vec<String> = own
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter_map(|to| {
            Some(to.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let listening = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Listening, and of this process.
    let listening = listening.filter(|f| f.get(3) == Some(&"0A") && own.contains(&f[9].to_owned()));
    assert_eq!(listening.count(), 1);
}
