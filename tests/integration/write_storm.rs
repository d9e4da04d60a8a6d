//! Writes while Redis or a replica of the service is killed: what was
//! acknowledged is there, exactly once and whole.

use std::{collections::BTreeSet, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::support::{
    lossy_proxy::LossyProxy,
    platform::{Client, Platform, Replica, create, resolve, update, value},
};

const WRITERS: usize = 8;

/// An acknowledged write.
struct Written {
    name: String,
    version: u64,
}

/// The value of each version can be told from its name.
fn value_of(name: &str, version: u64) -> String {
    format!("{name}:{version}:{}", "x".repeat(500))
}

/// Writers that go on until told to stop, and how many calls had to be tried
/// again.
struct Storm {
    stop: CancellationToken,
    writers: JoinSet<(Vec<Written>, usize)>,
}

impl Storm {
    /// Each writer has clients of these replicas, and uses the next one when a
    /// call fails.
    async fn start(platform: &Platform, replicas: &[&Replica]) -> Self {
        let mut storm = Self { stop: CancellationToken::new(), writers: JoinSet::new() };
        for writer in 0..WRITERS {
            let mut clients = Vec::new();
            for replica in replicas {
                clients.push(platform.client(replica, "platform").await);
            }
            storm.writers.spawn(write(writer, clients, storm.stop.clone()));
        }
        storm
    }

    /// Lets every writer get the write in hand acknowledged.
    async fn end(self) -> Vec<Written> {
        self.stop.cancel();
        let (mut all, mut retries) = (Vec::new(), 0);
        for (written, tried_again) in self.writers.join_all().await {
            all.extend(written);
            retries += tried_again;
        }
        assert!(retries > 0, "nothing failed: not much of a storm");
        all
    }
}

/// Creates secrets and gives each three more values. Every request is sent
/// again under its id until it is acknowledged; its version shows if it was
/// then carried out twice, or if an acknowledged one before it was lost.
async fn write(
    writer: usize,
    mut clients: Vec<Client>,
    stop: CancellationToken,
) -> (Vec<Written>, usize) {
    let (mut written, mut retries) = (Vec::new(), 0);
    for secret in 0.. {
        let name = format!("W{writer}_{secret}");
        for version in 1..=4 {
            if stop.is_cancelled() {
                return (written, retries);
            }
            let request_id = Uuid::new_v4().to_string();
            let answer = loop {
                match attempt(&mut clients[0], &name, version, &request_id).await {
                    Ok(answer) => break answer,
                    Err(error) => assert_may_be_tried_again(&error),
                }
                retries += 1;
                clients.rotate_left(1);
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            assert_eq!(answer, version, "{name}");
            written.push(Written { name: name.clone(), version });
        }
    }
    (written, retries)
}

/// One try; the version in its answer.
async fn attempt(
    client: &mut Client,
    name: &str,
    version: u64,
    request_id: &str,
) -> Result<u64, Status> {
    let value = value_of(name, version);
    let answer = if version == 1 {
        let mut request = create("ws", name, &value);
        request.request_id = request_id.to_owned();
        client.create_secret(request).await?
    } else {
        let mut request = update("ws", name);
        request.value = Some(value);
        request.request_id = request_id.to_owned();
        client.update_secret(request).await?
    };
    Ok(answer.into_inner().version)
}

/// The store is away, or else the replica is: then no answer has details.
fn assert_may_be_tried_again(error: &Status) {
    if let Some(info) = error.get_error_details().error_info() {
        assert_eq!((error.code(), info.reason.as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
    }
}

/// Every acknowledged write is there, nothing is half there, and each has left
/// its audit line in one of the replicas.
async fn check(platform: &Platform, replica: &Replica, all: &[Replica], written: &[Written]) {
    let mut executor = platform.client(replica, "executor").await;
    let last = written
        .iter()
        .filter(|w| !written.iter().any(|other| other.name == w.name && other.version > w.version));
    let last: Vec<_> = last.collect();
    for some in last.chunks(100) {
        let names: Vec<_> = some.iter().map(|w| w.name.as_str()).collect();
        let answer = executor.resolve_secrets(resolve("ws", &names)).await.unwrap().into_inner();
        for Written { name, version } in some {
            assert_eq!(answer.secrets[name].version, *version, "{name}");
            assert_eq!(value(&answer, name), value_of(name, *version));
        }
    }

    let stored = |command: &[&str]| -> BTreeSet<String> {
        platform.redis.cli(command).lines().map(str::to_owned).collect()
    };
    let mut whole: BTreeSet<_> =
        last.iter().flat_map(|w| [format!("m/{}", w.name), format!("v/{}", w.name)]).collect();
    whole.insert("k/active".to_owned());
    let records = stored(&["HKEYS", "workflow-secrets:{ws}:records"]);
    let (trail, records): (BTreeSet<_>, BTreeSet<_>) =
        records.into_iter().partition(|key| key.starts_with("a/"));
    // One entry for each value.
    let values: u64 = last.iter().map(|w| w.version).sum();
    assert_eq!(u64::try_from(trail.len()).unwrap(), values);
    let (earlier, found): (BTreeSet<_>, BTreeSet<_>) =
        records.into_iter().partition(|key| key.starts_with("h/"));
    assert_eq!(found, whole);
    // Of each secret the versions before the last.
    let numbers = |version: u64| (1..version).map(|number| format!("{number:020}"));
    let mut expected: Vec<_> = last.iter().flat_map(|w| numbers(w.version)).collect();
    let mut kept: Vec<_> = earlier.iter().map(|key| key[key.len() - 20..].to_owned()).collect();
    expected.sort();
    kept.sort();
    assert_eq!(kept, expected);
    whole.extend(earlier.into_iter().chain(trail));
    assert_eq!(stored(&["ZRANGE", "workflow-secrets:{ws}:index", "0", "-1"]), whole);

    let audited: BTreeSet<_> = all
        .iter()
        .flat_map(Replica::audit)
        .filter(|line| line["outcome"] == "ok")
        .map(|line| format!("{} {} {}", line["action"], line["secret"], line["version"]))
        .collect();
    for Written { name, version } in written {
        let action = if *version == 1 { "create" } else { "update" };
        let line = format!("\"{action}\" \"{name}\" {version}");
        assert!(audited.contains(&line), "no audit line {line}");
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test]
async fn redis_hung_and_killed_in_a_storm() {
    let mut platform = Platform::start().await;
    let replica = platform.replica().await;
    let storm = Storm::start(&platform, &[&replica]).await;
    pause(500).await;
    // Calls time out; what they sent is carried out when Redis goes on, when
    // it is also asked again.
    platform.redis.stop_signal();
    pause(1_500).await;
    platform.redis.cont_signal();
    pause(1_500).await;
    for _ in 0..2 {
        platform.redis.kill9();
        pause(300).await;
        platform.redis.restart().await;
        pause(1_500).await;
    }
    let written = storm.end().await;
    check(&platform, &replica, std::slice::from_ref(&replica), &written).await;
}

#[tokio::test]
async fn answers_lost_in_a_storm() {
    let platform = Platform::start().await;
    let proxy = LossyProxy::start(platform.redis.port()).await;
    let store = format!("redis://{}", proxy.address());
    let replica = platform.replica_with(&["--store", &store]).await;
    let storm = Storm::start(&platform, &[&replica]).await;
    for _ in 0..20 {
        pause(150).await;
        proxy.lose_answers();
    }
    let written = storm.end().await;
    check(&platform, &replica, std::slice::from_ref(&replica), &written).await;
}

#[tokio::test]
async fn a_replica_killed_in_a_storm() {
    let platform = Platform::start().await;
    let mut replicas = [platform.replica().await, platform.replica().await];
    let storm = Storm::start(&platform, &[&replicas[0], &replicas[1]]).await;
    pause(700).await;
    replicas[0].kill9();
    pause(700).await;
    let written = storm.end().await;
    check(&platform, &replicas[1], &replicas, &written).await;
}
