//! How often the KMS and the store are asked: once per cold workspace, and
//! once per Resolve.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tonic::{Code, Response, Status};

use super::support::{
    kms_endpoint::Fault,
    platform::{Client, Platform, Replica, create, resolve, value, with},
    redis_server::{Options, until},
};

const WORKSPACES: usize = 100;

/// 1,000 calls over all workspaces, on ten connections.
const CALLS: usize = 1_000;

/// So many calls at once keep a busy machine busy for more than the usual 1 s.
const PATIENCE: [&str; 2] = ["--redis-timeout", "5s"];

/// After so long the service gives an attempt of a KMS call up and makes another.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Before that it gives no call of the KMS or the store up. On a machine so busy
/// that it does later, callers come again.
const GIVEN_UP: Duration = Duration::from_millis(2_500);

/// A hung test fails instead.
const HUNG: Duration = Duration::from_secs(60);

/// Calls again as long as time that is up may be the cause.
async fn with_patience<T, F>(start: Instant, mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => {
                let late = (GIVEN_UP..HUNG).contains(&start.elapsed());
                if status.code() != Code::Unavailable || !late {
                    return Err(status);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Asserts that since `start` the KMS was asked once for each workspace by each
/// of these operations. On a busy machine it may be asked again, but not before
/// the time of an attempt was up.
fn assert_once_each(platform: &Platform, start: Instant, operations: &[&str]) {
    let mut asked: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (call, arrival) in platform.kms.calls().into_iter().zip(platform.kms.arrivals()) {
        if let Some(after) = arrival.checked_duration_since(start) {
            let workspace = call.context["workspace"].clone();
            asked.entry((call.operation, workspace)).or_default().push(after);
        }
    }
    for arrivals in asked.values() {
        assert!(arrivals[1..].iter().all(|after| *after >= ATTEMPT), "{asked:?}");
    }
    let mut found: Vec<_> = asked.into_keys().map(|(operation, _)| operation).collect();
    found.sort();
    let expected: Vec<_> =
        operations.iter().flat_map(|operation| [*operation; WORKSPACES]).collect();
    assert_eq!(found, expected);
}

/// A secret in each of 100 workspaces.
async fn filled() -> Platform {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica_with(&PATIENCE).await;
    let client = platform.client(&replica, "platform").await;
    let (mut creations, start) = (JoinSet::new(), Instant::now());
    for i in 0..WORKSPACES {
        let request = with(create(&format!("ws{i}"), "KEY", &format!("value-{i}")), |r| {
            r.request_id = "once".to_owned();
        });
        let client = client.clone();
        creations.spawn(async move {
            let create = || {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.create_secret(request).await }
            };
            with_patience(start, create).await.unwrap()
        });
    }
    creations.join_all().await;
    assert_once_each(&platform, start, &["Decrypt", "GenerateDataKeyWithoutPlaintext"]);
    platform
}

async fn executors(platform: &Platform, replica: &Replica) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(platform.client(replica, "executor").await);
    }
    clients
}

/// Starts `calls` Resolves at once; each checks the value it gets.
fn storm(clients: &[Client], calls: usize) -> JoinSet<Result<(), Status>> {
    let (mut storm, start) = (JoinSet::new(), Instant::now());
    for i in 0..calls {
        let (client, workspace) = (clients[i % clients.len()].clone(), i % WORKSPACES);
        storm.spawn(async move {
            let call = || {
                let mut client = client.clone();
                let request = resolve(&format!("ws{workspace}"), &["KEY"]);
                async move { client.resolve_secrets(request).await }
            };
            let answer = with_patience(start, call).await?;
            assert_eq!(value(&answer, "KEY"), format!("value-{workspace}"));
            Ok(())
        });
    }
    storm
}

async fn all_succeed(storm: JoinSet<Result<(), Status>>, calls: usize) {
    let outcomes = storm.join_all().await;
    assert_eq!(outcomes.len(), calls);
    assert_eq!(outcomes.into_iter().find_map(Result::err).map(|e| e.to_string()), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_workspace_costs_one_decrypt_and_a_hot_one_none() {
    let platform = filled().await;
    let replica = platform.replica_with(&PATIENCE).await;
    let clients = executors(&platform, &replica).await;
    let start = Instant::now();
    all_succeed(storm(&clients, CALLS), CALLS).await;
    assert_once_each(&platform, start, &["Decrypt"]);
    let hot = Instant::now();
    all_succeed(storm(&clients, CALLS), CALLS).await;
    assert_once_each(&platform, hot, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_leaders_harm_nobody() {
    let platform = filled().await;
    let replica = platform.replica_with(&PATIENCE).await;
    let clients = executors(&platform, &replica).await;
    platform.kms.fault(Fault::Delay(Duration::from_millis(600)));
    let (before, start) = (platform.kms.calls().len(), Instant::now());
    // The first calls lead: they come before all others, which join them.
    let mut leaders = storm(&clients, CALLS / 2);
    until(|| platform.kms.calls().len() >= before + 40).await;
    let followers = storm(&clients, CALLS / 2);
    tokio::time::sleep(Duration::from_millis(100)).await;
    leaders.abort_all();
    let mut cancelled = 0;
    while let Some(ended) = leaders.join_next().await {
        cancelled += usize::from(ended.is_err_and(|error| error.is_cancelled()));
    }
    assert!(cancelled > CALLS / 4, "only {cancelled} calls were still under way");
    all_succeed(followers, CALLS / 2).await;
    assert_once_each(&platform, start, &["Decrypt"]);
}

/// Calls of each command, without health probes (DEL) and this look (INFO).
fn commands(platform: &Platform) -> BTreeMap<String, u64> {
    platform
        .redis
        .cli(&["INFO", "commandstats"])
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
        .filter(|(command, _)| !["del", "info"].contains(command))
        .map(|(command, rest)| (command.to_owned(), rest.split(',').next().unwrap()))
        .map(|(command, calls)| (command, calls.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_resolve_of_100_names_is_one_round_trip() {
    let platform = Platform::start_with(Options::default()).await;
    let (one, mut two) = (platform.replica().await, platform.replica().await);
    let mut writer = platform.client(&one, "platform").await;
    let names: Vec<_> = (0..100).map(|i| format!("KEY_{i}")).collect();
    for name in &names {
        writer.create_secret(create("ws", name, &format!("value of {name}"))).await.unwrap();
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut reader = platform.client(&two, "executor").await;
    for state in ["cold", "hot"] {
        let mut looks = 0;
        loop {
            let mut expected = commands(&platform);
            // Sent together: the records, and the revision of the workspace.
            for command in ["hmget", "get"] {
                *expected.entry(command.to_owned()).or_default() += 1;
            }
            let answer = reader.resolve_secrets(resolve("ws", &names)).await.unwrap().into_inner();
            assert_eq!(answer.secrets.len(), 100);
            for name in &names {
                assert_eq!(value(&answer, name), format!("value of {name}"));
            }
            let found = commands(&platform);
            looks += 1;
            // Now and then usage is written and tombstones are looked for, perhaps just
            // now. What belongs to the call is there each time.
            if found == expected || looks == 5 {
                assert_eq!(found, expected, "{state}");
                break;
            }
            if state == "cold" {
                two = platform.replica().await;
                reader = platform.client(&two, "executor").await;
            }
        }
    }
}
