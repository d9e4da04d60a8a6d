//! More calls than a replica is for, and callers who do not wait for ever.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use prost::Message;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use workflow_secrets::grpc::proto::{Credential, ResolveSecretsRequest};

use super::support::{
    documents::{open, redact, render_json},
    kms_endpoint::Fault,
    pki::Identity,
    platform::{
        Client, Platform, Replica, assert_refused, create, get, list, reason, resolve, spiffe_id,
        value,
    },
    raw_call,
    redis_server::Options,
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of a caller; far shorter than any wait of the service itself.
const SHORT: &str = "300m";

/// Callers who tell deadlines.
struct Hurried<'a> {
    platform: &'a Platform,
    replica: &'a Replica,
    identity: Identity,
}

impl<'a> Hurried<'a> {
    fn new(platform: &'a Platform, replica: &'a Replica, caller: &str) -> Self {
        Self { platform, replica, identity: platform.ca.client(&[&spiffe_id(caller)]) }
    }

    async fn call(&self, method: &str, message: &impl Message, timeout: &str) -> Option<Status> {
        let method = format!("SecretsService/{method}");
        let who = (&self.platform.ca, &self.identity);
        raw_call::call(self.replica.address, who, &method, message, timeout).await
    }

    /// Asserts that a call ends at its deadline, by the server.
    async fn times_out(&self, method: &str, message: &impl Message, timeout: &str) {
        let status = self.call(method, message, timeout).await.expect("no answer");
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "TIMEOUT".to_owned()));
    }

    /// Waits until so many calls have left a line with this outcome.
    async fn lines(&self, action: &str, outcome: &str, count: usize) {
        let start = Instant::now();
        let found = || {
            let lines = self.replica.audit().into_iter();
            lines.filter(|line| line["action"] == action && line["outcome"] == outcome).count()
        };
        while found() < count {
            assert!(start.elapsed() < PATIENCE, "{count} {action} {outcome}");
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(found(), count, "{action} {outcome}");
    }
}

async fn until_resolved(client: &mut Client, workspace: &str) {
    let start = Instant::now();
    while let Err(status) = client.resolve_secrets(resolve(workspace, &["KEY"])).await {
        assert!(start.elapsed() < PATIENCE, "{status:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_end_at_their_deadline_though_redis_hangs() {
    let platform = Platform::start_with(Options::default()).await;
    // Longer than the deadline by far: else it is this that ends the call.
    let replica = platform.replica_with(&["--redis-timeout", "5s"]).await;
    let mut writer = platform.client(&replica, "platform").await;
    let mut reader = platform.client(&replica, "executor").await;
    writer.create_secret(create("ws", "KEY", "v")).await.unwrap();
    until_resolved(&mut reader, "ws").await;
    let executor = Hurried::new(&platform, &replica, "executor");
    let people = Hurried::new(&platform, &replica, "platform");
    assert!(executor.call("ResolveSecrets", &resolve("ws", &["KEY"]), "9S").await.is_none());

    // What comes too late is not begun, nor does it fill the audit stream.
    let (reads, lines) = (platform.redis.calls("hmget"), replica.audit().len());
    for late in ["0n", "1n", "0S"] {
        executor.times_out("ResolveSecrets", &resolve("ws", &["KEY"]), late).await;
        people.times_out("CreateSecret", &create("ws", "LATE", "v"), late).await;
    }
    assert_eq!((platform.redis.calls("hmget"), replica.audit().len()), (reads, lines));

    platform.redis.stop_signal();
    executor.times_out("ResolveSecrets", &resolve("ws", &["KEY"]), SHORT).await;
    people.times_out("ListSecrets", &list("ws"), SHORT).await;
    people.times_out("CreateSecret", &create("ws", "NEW", "v"), SHORT).await;
    executor.lines("resolve", "TIMEOUT", 1).await;
    people.lines("list", "TIMEOUT", 1).await;
    people.lines("create", "TIMEOUT", 1).await;
    platform.redis.cont_signal();
    until_resolved(&mut reader, "ws").await;
    for name in ["LATE", "NEW"] {
        let gone = writer.get_secret(get("ws", name)).await;
        assert_refused(gone, Code::NotFound, "SECRET_NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_end_at_their_deadline_though_the_kms_hangs() {
    let platform = Platform::start_with(Options::default()).await;
    let first = platform.replica().await;
    let mut writer = platform.client(&first, "platform").await;
    writer.create_secret(create("ws", "KEY", "v")).await.unwrap();
    let replica = platform.replica().await;
    let executor = Hurried::new(&platform, &replica, "executor");
    let people = Hurried::new(&platform, &replica, "platform");

    platform.kms.fault(Fault::Hang);
    executor.times_out("ResolveSecrets", &resolve("ws", &["KEY"]), SHORT).await;
    people.times_out("CreateSecret", &create("new", "KEY", "v"), SHORT).await;
    executor.lines("resolve", "TIMEOUT", 1).await;
    people.lines("create", "TIMEOUT", 1).await;
    platform.kms.heal();
    let mut reader = platform.client(&replica, "executor").await;
    until_resolved(&mut reader, "ws").await;
    // Nobody waited for it any more when the key was there.
    let gone = writer.get_secret(get("new", "KEY")).await;
    assert_refused(gone, Code::NotFound, "SECRET_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_workspace_and_of_a_caller_are_counted() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform
        .replica_with(&[
            "--max-workspace-calls-per-second",
            "1",
            "--max-caller-calls-per-second",
            "4",
        ])
        .await;
    let mut people = platform.client(&replica, "platform").await;
    let mut other = platform.client(&replica, "operator").await;
    // Unused calls of 10 seconds add up, and no more.
    let (passed, status) = until_refused(&mut people, "ws").await;
    assert!(passed >= 10, "{passed}");
    let wait = wait(&status);
    assert!(!wait.is_zero() && wait <= Duration::from_secs(1), "{wait:?}");
    other.list_secrets(list("other")).await.unwrap();
    let refused = other.list_secrets(list("ws")).await;
    assert_refused(refused, Code::ResourceExhausted, "RATE_LIMITED");

    let mut asked = 0;
    let mut next = || {
        asked += 1;
        format!("w{asked}")
    };
    let start = Instant::now();
    let status = loop {
        assert!(start.elapsed() < PATIENCE, "too slow a machine to tell");
        // No workspace is asked twice.
        let calls = (0..20).map(|_| {
            let (mut people, request) = (people.clone(), list(&next()));
            async move { people.list_secrets(request).await.err() }
        });
        if let Some(status) = join_all(calls).await.into_iter().flatten().next() {
            break status;
        }
    };
    assert_eq!(reason(&status), (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));
    other.list_secrets(list("one-more")).await.unwrap();
    // The log tells of it, the audit stream does not.
    assert!(replica.stderr().contains("calls refused for load"));
    assert!(replica.audit().iter().all(|line| line["outcome"] != "RATE_LIMITED"));
}

/// How many calls of a workspace passed, and how the next was refused.
async fn until_refused(client: &mut Client, workspace: &str) -> (usize, Status) {
    let (start, mut passed) = (Instant::now(), 0);
    let status = loop {
        match client.list_secrets(list(workspace)).await {
            Ok(_) => passed += 1,
            Err(status) => break status,
        }
        assert!(start.elapsed() < PATIENCE, "too slow a machine to tell");
    };
    assert_eq!(reason(&status), (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));
    (passed, status)
}

/// What RetryInfo says.
fn wait(status: &Status) -> Duration {
    let details = status.get_error_details();
    details.retry_info().and_then(|info| info.retry_delay).expect("RetryInfo")
}

/// Secrets of the flooding workspace.
const NAMES: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooding_workspace_takes_no_call_from_others() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    let names: Vec<_> = (0..NAMES).map(|number| format!("K{number}")).collect();
    for name in &names {
        writer.create_secret(create("flood", name, "a-value-of-the-flood")).await.unwrap();
    }
    for workspace in ["one", "two"] {
        writer.create_secret(create(workspace, "KEY", workspace)).await.unwrap();
    }
    let mut executor = platform.client(&replica, "executor").await;
    for workspace in ["one", "two"] {
        until_resolved(&mut executor, workspace).await;
    }

    // All of one caller, on a connection that the others share.
    let mut flood = tokio::task::JoinSet::new();
    let references: Vec<_> = names.iter().map(|name| format!("{{{{secrets.{name}}}}}")).collect();
    let document = Arc::new(serde_json::to_string(&references).unwrap());
    let names = Arc::new(names);
    for _ in 0..50 {
        let (mut client, names) = (executor.clone(), Arc::clone(&names));
        flood.spawn(async move {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            client.resolve_secrets(resolve("flood", &names)).await.err()
        });
        let (mut client, document) = (executor.clone(), Arc::clone(&document));
        flood.spawn(
            async move { client.render_template(render_json("flood", &document)).await.err() },
        );
    }
    for _ in 0..10 {
        let mut client = executor.clone();
        flood.spawn(async move {
            let chunk = [b"a-value-of-the-flood ".repeat(500)].concat();
            redact(&mut client, open("flood", &[]), &[&chunk]).await.err()
        });
    }
    let others = ["one", "two"].map(|workspace| {
        let mut client = executor.clone();
        async move {
            for _ in 0..20 {
                let answer = client.resolve_secrets(resolve(workspace, &["KEY"])).await;
                assert_eq!(value(&answer.unwrap().into_inner(), "KEY"), workspace);
                let document = render_json(workspace, r#"["{{secrets.KEY}}"]"#);
                client.render_template(document).await.unwrap();
            }
        }
    });
    join_all(others).await;

    let refused: Vec<_> = flood.join_all().await.into_iter().flatten().collect();
    for status in &refused {
        assert_eq!(reason(status), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
        assert!(!wait(status).is_zero());
    }
    // Of 50 documents, 32 are its share.
    assert!((1..50).contains(&refused.len()), "{} refused", refused.len());
    assert!(replica.audit().iter().all(|line| line["outcome"] != "OVERLOADED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_waited_for_half_of_their_time_is_sent_away() {
    let platform = Platform::start_with(Options::default()).await;
    let first = platform.replica().await;
    let mut writer = platform.client(&first, "platform").await;
    for workspace in ["slow", "other"] {
        writer.create_secret(create(workspace, "KEY", "v")).await.unwrap();
    }
    let replica = platform.replica_with(&["--max-workspace-calls-at-once", "1"]).await;
    let mut executor = platform.client(&replica, "executor").await;
    until_resolved(&mut executor, "other").await;
    platform.kms.fault(Fault::Hang);
    let before = platform.kms.decrypts();
    let cold = {
        let mut executor = executor.clone();
        tokio::spawn(async move { executor.resolve_secrets(resolve("slow", &["KEY"])).await })
    };
    let start = Instant::now();
    while platform.kms.decrypts() == before {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
    let hurried = Hurried::new(&platform, &replica, "executor");
    let mut refused = None;
    while !cold.is_finished() && refused.is_none() {
        refused = hurried.call("ResolveSecrets", &resolve("slow", &["KEY"]), "400m").await;
        executor.resolve_secrets(resolve("other", &["KEY"])).await.unwrap();
    }
    let status = refused.expect("a refusal");
    assert_eq!(reason(&status), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
    platform.kms.heal();
    let _ = cold.await.unwrap();
    until_resolved(&mut executor, "slow").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_many_values_that_wait_for_the_kms_hold_nobody_up() {
    let platform = Platform::start_with(Options::default()).await;
    let first = platform.replica().await;
    let mut writer = platform.client(&first, "platform").await;
    for workspace in ["slow", "other"] {
        writer.create_secret(create(workspace, "KEY", "v")).await.unwrap();
    }
    let replica = platform.replica().await;
    let mut executor = platform.client(&replica, "executor").await;
    until_resolved(&mut executor, "other").await;
    platform.kms.fault(Fault::Hang);
    let before = platform.kms.decrypts();
    let credential = |number: usize| Credential {
        secret: "KEY".to_owned(),
        alias: format!("A{number}"),
        ..Credential::default()
    };
    let request = |workspace, names| ResolveSecretsRequest {
        credentials: (0..names).map(credential).collect(),
        ..resolve(workspace, &[])
    };
    let (mut patient, all) = (executor.clone(), request("slow", 100));
    let cold = tokio::spawn(async move { patient.resolve_secrets(all).await });
    let start = Instant::now();
    while platform.kms.decrypts() == before {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
    let answer = executor.resolve_secrets(request("other", 100)).await.unwrap();
    assert_eq!(answer.into_inner().secrets.len(), 100);
    assert!(!cold.is_finished());
    let hurried = Hurried::new(&platform, &replica, "executor");
    let many = request("slow", 1_000);
    let status = hurried.call("ResolveSecrets", &many, "2S").await.expect("no answer");
    assert_eq!(reason(&status).1, "TOO_MANY_CREDENTIALS");
    assert!(!cold.is_finished());
    platform.kms.heal();
    let _ = cold.await.unwrap();
}
