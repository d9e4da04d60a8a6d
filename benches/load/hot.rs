//! A hot Resolve beside an echo, and beside an echo that asks Redis.

use std::time::Duration;

use crate::{
    drive::{self, Turn, client, names, request},
    echo::VALUE,
    process::Server,
    server::{ECHO, HMGET, SERVICE},
    support::{
        platform::{self, Platform},
        redis_server::Options,
    },
    tables::Table,
    thousands::thousands,
};

const SERVERS: [(&str, &str); 3] = [("echo", ECHO), ("echo + HMGET", HMGET), ("Resolve", SERVICE)];

/// Connections of the callers, as several executors have.
const CONNECTIONS: usize = 4;

/// Workspaces that call by turns. One alone may not have more than so many calls at work.
const WORKSPACES: usize = 16;

fn workspace(number: usize) -> String {
    format!("ws-{}", number % WORKSPACES)
}

pub(crate) struct Shape {
    /// Calls under way together.
    pub(crate) at_once: Vec<usize>,
    /// Names of one call.
    pub(crate) names: Vec<usize>,
}

pub(crate) async fn run(turn: Duration, rounds: usize, shape: &Shape) -> Table {
    let platform = Platform::start_with(Options::default()).await;
    let audit = platform.file("audit.jsonl");
    // Metrics are counted only if somebody may ask for them.
    let flags = ["--audit", audit.to_str().unwrap(), "--admin-listen", "127.0.0.1:0"];
    let mut servers: Vec<_> =
        SERVERS.iter().map(|(_, role)| Server::start(role, &platform, &flags)).collect();
    let mut clients = Vec::new();
    for server in &servers {
        let mut of_server = Vec::new();
        for _ in 0..CONNECTIONS {
            of_server.push(client(&platform, server, "executor").await);
        }
        clients.push(of_server);
    }
    let idle = servers.last().unwrap().resident();
    let mut people = client(&platform, servers.last().unwrap(), "platform").await;
    let most = shape.names.iter().copied().max().unwrap_or(1);
    for number in 0..WORKSPACES {
        for name in names(most) {
            let create = platform::create(&workspace(number), &name, VALUE);
            people.create_secret(create).await.unwrap();
        }
    }

    let mut table = Table::new(
        "hot",
        &[
            "At once",
            "Names",
            "Server",
            "Calls/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU us/call",
            "Allocations/call",
            "Calls/s to echo",
            "CPU to echo",
        ],
    );
    for &at_once in &shape.at_once {
        for &count in &shape.names {
            let mut turns = vec![Vec::new(); servers.len()];
            let asked = names(count);
            // The first round warms up.
            for round in 0..=rounds {
                for (number, server) in servers.iter_mut().enumerate() {
                    let asked = asked.clone();
                    let call = move |number| request(&workspace(number), &asked);
                    let done = drive::resolve(server, &clients[number], at_once, turn, call).await;
                    if round > 0 {
                        turns[number].push(done);
                    }
                }
            }
            let sums: Vec<_> = turns.iter().map(|turns| Turn::sum(turns)).collect();
            let rate = |sum: &Turn| sum.calls() / sum.seconds;
            let cpu = |sum: &Turn| sum.cpu_micros / sum.calls();
            for ((name, _), sum) in SERVERS.iter().zip(&sums) {
                let millis = |share| format!("{:.2}", sum.permille(share) / 1000.0);
                table.row(&[
                    at_once.to_string(),
                    count.to_string(),
                    (*name).to_owned(),
                    thousands(rate(sum)),
                    millis(500),
                    millis(990),
                    millis(999),
                    format!("{:.1}", cpu(sum)),
                    format!("{:.0}", sum.allocations as f64 / sum.calls()),
                    format!("{:.2}", rate(sum) / rate(&sums[0])),
                    format!("{:.2}", cpu(sum) / cpu(&sums[0])),
                ]);
            }
        }
    }
    eprintln!("resident: {idle} KiB idle, {} KiB now", servers.last().unwrap().resident());
    table
}
