//! How long others' calls take while one workspace floods a replica, beside how
//! long they take without: the program itself, with a redis-server and a KMS
//! endpoint of its own.
//!
//! `cargo bench --bench fairness`; for a quick look, `cargo bench --profile dev
//! --bench fairness`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench fails loudly, and prints")]
#![allow(clippy::indexing_slicing, reason = "a bench fails loudly")]

#[allow(dead_code, unreachable_pub, clippy::panic, clippy::indexing_slicing, reason = "shared")]
#[allow(clippy::expect_used, clippy::unwrap_used, reason = "shared")]
#[path = "../tests/integration/support/mod.rs"]
mod support;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::support::{
    documents::render_json,
    platform::{Client, Platform, create, resolve},
    redis_server::Options,
};

/// How long each part is measured.
const PART: Duration = Duration::from_secs(10);

/// Workspaces that call as healthy ones do: a run now and then.
const OTHERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(10);

/// Calls of the flood under way at any time, half of them of so many names, half
/// with a document of them.
const FLOOD: usize = 300;
const NAMES: usize = 100;

fn main() {
    let runtime = Runtime::new().unwrap();
    let names: Vec<_> = (0..NAMES).map(|number| format!("K{number}")).collect();
    let (platform, replica, client) = runtime.block_on(async {
        let platform = Platform::start_with(Options::default()).await;
        let replica = platform.replica().await;
        let mut writer = platform.client(&replica, "platform").await;
        for name in &names {
            writer.create_secret(create("flood", name, "a-value")).await.unwrap();
        }
        for number in 0..OTHERS {
            writer.create_secret(create(&format!("w{number}"), "KEY", "a-value")).await.unwrap();
        }
        let client = platform.client(&replica, "executor").await;
        others(&client).await;
        (platform, replica, client)
    });
    let alone = runtime.block_on(others(&client));
    let stop = CancellationToken::new();
    let (beside, flooded) = thread::scope(|scope| {
        // Not on the threads on which the others' calls are timed.
        let flooding = scope.spawn(|| {
            let apart = Builder::new_current_thread().enable_all().build().unwrap();
            apart.block_on(async {
                let client = platform.client(&replica, "executor").await;
                flood(&client, &names, &stop).join_all().await
            })
        });
        let beside = runtime.block_on(others(&client));
        stop.cancel();
        (beside, flooding.join().unwrap())
    });
    for (what, (times, lost)) in [("alone", &alone), ("beside the flood", &beside)] {
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let (p50, p99) = (at(50), at(99));
        println!("others, {what}: {} calls, p50 {p50:?}, p99 {p99:?}, lost {lost}", times.len());
    }
    let sum = |part: fn(&(usize, usize)) -> usize| flooded.iter().map(part).sum::<usize>();
    println!("flood: {} calls passed, {} refused", sum(|one| one.0), sum(|one| one.1));
}

/// How long the calls of all others took, sorted, and how many failed.
async fn others(client: &Client) -> (Vec<Duration>, usize) {
    let mut callers = JoinSet::new();
    for number in 0..OTHERS {
        let (mut client, workspace) = (client.clone(), format!("w{number}"));
        callers.spawn(async move {
            let (start, mut times, mut lost) = (Instant::now(), Vec::new(), 0);
            while start.elapsed() < PART {
                let call = Instant::now();
                lost += usize::from(
                    client.resolve_secrets(resolve(&workspace, &["KEY"])).await.is_err(),
                );
                times.push(call.elapsed());
                sleep(PAUSE).await;
            }
            (times, lost)
        });
    }
    let all = callers.join_all().await;
    let lost = all.iter().map(|(_, lost)| lost).sum();
    let mut times: Vec<_> = all.into_iter().flat_map(|(times, _)| times).collect();
    times.sort();
    (times, lost)
}

/// Calls of one workspace without end; how many passed and were refused.
fn flood(client: &Client, names: &[String], stop: &CancellationToken) -> JoinSet<(usize, usize)> {
    let references: Vec<_> = names.iter().map(|name| format!("{{{{secrets.{name}}}}}")).collect();
    let document = Arc::new(serde_json::to_string(&references).unwrap());
    let names: Arc<[String]> = names.into();
    let mut flood = JoinSet::new();
    for number in 0..FLOOD {
        let (mut client, stop) = (client.clone(), stop.clone());
        let (names, document) = (Arc::clone(&names), Arc::clone(&document));
        flood.spawn(async move {
            let (mut passed, mut refused) = (0, 0);
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            while !stop.is_cancelled() {
                let answered: Result<(), Status> = match number % 2 {
                    0 => client.resolve_secrets(resolve("flood", &names)).await.map(drop),
                    _ => client.render_template(render_json("flood", &document)).await.map(drop),
                };
                match answered {
                    Ok(()) => passed += 1,
                    Err(_) => {
                        refused += 1;
                        // As RetryInfo says.
                        sleep(Duration::from_millis(500)).await;
                    }
                }
            }
            (passed, refused)
        });
    }
    flood
}
