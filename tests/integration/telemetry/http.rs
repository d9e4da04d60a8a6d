//! Plain HTTP/1.1, and the text format of Prometheus.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::platform::{Platform, Replica, free_address};

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// A replica with an admin port, ready.
pub(crate) async fn watched(
    platform: &Platform,
    variables: &[(&str, &str)],
    flags: &[&str],
) -> (Replica, SocketAddr) {
    let admin = free_address();
    let address = admin.to_string();
    let flags = [&["--admin-listen", &address], flags].concat();
    let replica = platform.launch_in(variables, &flags);
    replica.ready(platform).await;
    (replica, admin)
}

/// Sends bytes and reads to the end, which must come within 30 s.
pub(crate) async fn send(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        // The server may have answered and closed before it has read all.
        let _ = stream.write_all(bytes).await;
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    tokio::time::timeout(Duration::from_secs(30), exchange).await.expect("an end")
}

pub(crate) async fn request(to: SocketAddr, method: &str, path: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: admin\r\n\r\n");
    let answer = String::from_utf8(send(to, request.as_bytes()).await).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// A family of metrics.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) labels: BTreeSet<String>,
    /// By name and labels, as they stand there.
    pub(crate) samples: BTreeMap<String, f64>,
}

/// The families at `/metrics`.
pub(crate) async fn scrape(to: SocketAddr) -> BTreeMap<String, Family> {
    let answer = request(to, "GET", "/metrics").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    parse(&answer.body)
}

fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(told) = line.strip_prefix("# HELP ") {
            let (name, help) = told.split_once(' ').unwrap();
            assert!(!families.contains_key(name), "{name} stands there twice");
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some(told) = line.strip_prefix("# TYPE ") {
            let (name, kind) = told.split_once(' ').unwrap();
            assert_eq!(name, current);
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let family = families.get_mut(&current).unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            assert!(name.starts_with(&current), "{line} under {current}");
            for label in labels.trim_end_matches('}').split("\",").filter(|l| !l.is_empty()) {
                let name = label.split_once("=\"").unwrap().0;
                family.labels.extend((name != "le").then(|| name.to_owned()));
            }
            family.samples.insert(series.to_owned(), value.parse().unwrap());
        }
    }
    families
}
