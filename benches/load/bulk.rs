//! Many workspaces, many secrets.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use workflow_secrets::grpc::proto::ListSecretsRequest;

use crate::{
    drive::{self, client, names, request},
    echo::VALUE,
    process::Server,
    server::SERVICE,
    support::{
        platform::{self, Client, Platform},
        redis_server::Options,
    },
    tables::Table,
    thousands::thousands,
};

/// Calls under way while a store is filled.
const FILLERS: usize = 64;

async fn start(platform: &Platform) -> Server {
    let audit = platform.file("audit.jsonl");
    let flags = ["--audit", audit.to_str().unwrap(), "--max-secrets-per-workspace", "1000000"];
    Server::start(SERVICE, platform, &flags)
}

/// Creates secrets; their workspaces and names come from their numbers. Per second.
pub(crate) async fn fill(
    people: &Client,
    numbers: std::ops::Range<usize>,
    place: impl Fn(usize) -> (String, String),
) -> f64 {
    let (count, start) = (numbers.len(), Instant::now());
    stream::iter(numbers)
        .for_each_concurrent(FILLERS, |number| {
            let (mut people, (workspace, name)) = (people.clone(), place(number));
            async move {
                people.create_secret(platform::create(&workspace, &name, VALUE)).await.unwrap();
            }
        })
        .await;
    count as f64 / start.elapsed().as_secs_f64()
}

/// A service that has just started meets many workspaces.
pub(crate) async fn cold(workspaces: usize) -> Table {
    let platform = Platform::start_with(Options::default()).await;
    let place = |number| (format!("ws-{number}"), "KEY_0".to_owned());
    let created = {
        let server = start(&platform).await;
        fill(&client(&platform, &server, "platform").await, 0..workspaces, place).await
    };
    let mut server = start(&platform).await;
    let executors = [client(&platform, &server, "executor").await];
    let mut table = Table::new(
        "cold",
        &["Workspaces", "Call", "Calls/s", "p50 ms", "p99 ms", "KMS calls", "RSS KiB"],
    );
    let idle = server.resident();
    table.row(&[
        thousands(workspaces as f64),
        "Create, first of its workspace".to_owned(),
        thousands(created),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
    ]);
    for title in ["Resolve, cold", "Resolve, hot"] {
        let (before, begin) = (platform.kms.decrypts(), Instant::now());
        let used = server.used();
        let latencies: Vec<_> = stream::iter(0..workspaces)
            .map(|number| {
                let mut client = executors[0].clone();
                async move {
                    let sent = Instant::now();
                    let request = request(&format!("ws-{number}"), &names(1));
                    client.resolve_secrets(request).await.unwrap();
                    u32::try_from(sent.elapsed().as_micros()).unwrap()
                }
            })
            .buffer_unordered(FILLERS)
            .collect()
            .await;
        let after = server.used();
        let mut turn = drive::Turn {
            seconds: begin.elapsed().as_secs_f64(),
            latencies,
            cpu_micros: after.cpu_micros - used.cpu_micros,
            allocations: after.allocations - used.allocations,
        };
        turn.latencies.sort_unstable();
        table.row(&[
            thousands(workspaces as f64),
            title.to_owned(),
            thousands(turn.calls() / turn.seconds),
            format!("{:.2}", turn.permille(500) / 1000.0),
            format!("{:.2}", turn.permille(990) / 1000.0),
            thousands((platform.kms.decrypts() - before) as f64),
            format!("{} (idle {idle})", server.resident()),
        ]);
    }
    table
}

/// One workspace with very many secrets, page by page.
pub(crate) async fn list(secrets: usize) -> Table {
    let platform = Platform::start_with(Options::default()).await;
    let server = start(&platform).await;
    let mut people = client(&platform, &server, "platform").await;
    let place = |number| ("ws".to_owned(), format!("KEY_{number:07}"));
    let created = fill(&people, 0..secrets, place).await;
    eprintln!("created {secrets} secrets, {created:.0}/s");
    let (mut token, mut pages) = (String::new(), Vec::new());
    loop {
        let mut page =
            ListSecretsRequest { page_size: 1_000, page_token: token, ..platform::list("ws") };
        let sent = Instant::now();
        page.show_system_managed = true;
        let answer = people.list_secrets(page).await.unwrap().into_inner();
        pages.push(sent.elapsed().as_secs_f64() * 1000.0);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let mut table = Table::new("list", &["Secrets", "Pages of 1,000", "Milliseconds of a page"]);
    let tenth = (pages.len() / 10).max(1);
    for (tenths, part) in pages.chunks(tenth).enumerate() {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        let first = tenths * tenth + 1;
        table.row(&[
            thousands(secrets as f64),
            format!("{first} to {}", first + part.len() - 1),
            format!("{:.1}", part[part.len() / 2]),
        ]);
    }
    table
}

/// Resolve and Create in a store that grows; a thousand secrets in each workspace.
pub(crate) async fn growth(most: usize, turn: Duration) -> Table {
    let platform = Platform::start_with(Options::default()).await;
    let mut server = start(&platform).await;
    let people = client(&platform, &server, "platform").await;
    let executors = [client(&platform, &server, "executor").await];
    let place =
        |number: usize| (format!("ws-{}", number / 1_000), format!("KEY_{}", number % 1_000));
    let mut table = Table::new(
        "growth",
        &[
            "Secrets",
            "Create/s",
            "Resolve/s, 64 at once",
            "p50 ms",
            "CPU us/call",
            "Redis bytes/secret",
        ],
    );
    let empty = memory(&platform);
    let mut stored = 0;
    while stored < most {
        let next = (stored * 10).clamp(1, most);
        let created = fill(&people, stored..next, place).await;
        stored = next;
        let workspaces = stored.div_ceil(1_000);
        let call = move |number| request(&format!("ws-{}", number % workspaces), &names(1));
        let done = drive::resolve(&mut server, &executors, 64, turn, call).await;
        table.row(&[
            thousands(stored as f64),
            thousands(created),
            thousands(done.calls() / done.seconds),
            format!("{:.2}", done.permille(500) / 1000.0),
            format!("{:.1}", done.cpu_micros / done.calls()),
            // Of few, it would say what the usage of a workspace takes.
            match stored {
                ..1_000 => String::new(),
                _ => thousands((memory(&platform) - empty) / stored as f64),
            },
        ]);
    }
    table
}

/// Bytes that Redis says it uses.
fn memory(platform: &Platform) -> f64 {
    let info = platform.redis.cli(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    used.trim().parse().unwrap()
}
