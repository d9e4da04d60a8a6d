//! Every fault of the KMS, seen by callers: what is cached serves, the rest
//! fails in time and for the right reason, the KMS is asked three times at most,
//! and all is well once it is.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto::RotateDataKeyRequest;

use super::support::{
    kms_endpoint::{Fault, KeyState, KmsEndpoint},
    platform::{Client, Platform, Replica, assert_unavailable, create, reason, resolve, value},
    redis_server::Options,
};

/// 3 s are promised; the rest is for a busy machine.
const DEADLINE: Duration = Duration::from_secs(4);

/// For what must come about some time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Resolves without end, each of which must succeed.
struct Warm(tokio::task::JoinHandle<()>);

impl Warm {
    fn start(mut executor: Client) -> Self {
        Self(tokio::spawn(async move {
            loop {
                let answer = executor.resolve_secrets(resolve("warm", &["KEY"])).await.unwrap();
                assert_eq!(value(&answer.into_inner(), "KEY"), "warm");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }))
    }

    /// Ends it, if it has not failed.
    async fn end(self) {
        self.0.abort();
        assert!(self.0.await.unwrap_err().is_cancelled(), "a warm Resolve failed");
    }
}

/// A replica that knows the data key of `warm` alone.
struct Setting {
    platform: Platform,
    replica: Replica,
    executor: Client,
    warm: Warm,
}

impl Setting {
    async fn start(cold: &[String]) -> Self {
        let platform = Platform::start_with(Options::default()).await;
        let first = platform.replica().await;
        let client = platform.client(&first, "platform").await;
        let mut creations = JoinSet::new();
        for workspace in cold.iter().map(String::as_str).chain(["warm"]) {
            let (mut client, request) = (client.clone(), create(workspace, "KEY", workspace));
            creations.spawn(async move { client.create_secret(request).await.unwrap() });
        }
        creations.join_all().await;
        let replica = platform.replica().await;
        let mut executor = platform.client(&replica, "executor").await;
        executor.resolve_secrets(resolve("warm", &["KEY"])).await.unwrap();
        let warm = Warm::start(executor.clone());
        Self { platform, replica, executor, warm }
    }

    async fn resolves(&mut self, workspace: &str) {
        let answer = self.executor.resolve_secrets(resolve(workspace, &["KEY"])).await.unwrap();
        assert_eq!(value(&answer.into_inner(), "KEY"), workspace);
    }

    /// Waits until a cold workspace is served.
    async fn returns(&mut self, workspace: &str, within: Duration) {
        let start = Instant::now();
        while let Err(error) = self.executor.resolve_secrets(resolve(workspace, &["KEY"])).await {
            assert!(start.elapsed() < within, "{workspace}: {error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.resolves(workspace).await;
    }

    /// Breaks the KMS in each of these ways in turn.
    async fn check(cases: &[Case]) {
        let names = |kind: &str| -> Vec<_> {
            cases.iter().map(|case| format!("{kind}-{}", case.name)).collect()
        };
        let (cold, fresh) = (names("cold"), names("fresh"));
        let mut setting = Self::start(&[&cold[..], &fresh[..]].concat()).await;
        for ((case, cold), fresh) in cases.iter().zip(&cold).zip(&fresh) {
            let before = setting.platform.kms.decrypts();
            (case.break_it)(&setting.platform.kms, &setting.platform.kms_key);
            // Told again for 2 s without asking again.
            for _ in 0..2 {
                let start = Instant::now();
                let refused = setting.executor.resolve_secrets(resolve(cold, &["KEY"])).await;
                assert!(start.elapsed() < DEADLINE, "{}: {:?}", case.name, start.elapsed());
                let status = refused.err().expect(case.name);
                let expected = (case.code, case.reason.to_owned());
                assert_eq!(reason(&status), expected, "{}: {status:?}", case.name);
                let retry = status.get_error_details().retry_info().is_some();
                assert_eq!(retry, case.code == Code::Unavailable, "{}", case.name);
            }
            let attempts = setting.platform.kms.decrypts() - before;
            assert!(case.attempts.contains(&attempts), "{}: {attempts} attempts", case.name);

            setting.platform.kms.heal();
            setting.platform.kms.set_state(&setting.platform.kms_key, KeyState::Enabled);
            setting.resolves(fresh).await;
        }
        for cold in &cold {
            setting.returns(cold, DEADLINE).await;
        }
        setting.warm.end().await;
    }
}

type Break = fn(&KmsEndpoint, &str);

struct Case {
    name: &'static str,
    break_it: Break,
    code: Code,
    reason: &'static str,
    attempts: std::ops::RangeInclusive<usize>,
}

fn transient(name: &'static str, break_it: Break) -> Case {
    let (code, reason, attempts) = (Code::Unavailable, "KMS_UNAVAILABLE", 2..=3);
    Case { name, break_it, code, reason, attempts }
}

fn unusable(name: &'static str, break_it: Break) -> Case {
    let (code, reason) = (Code::FailedPrecondition, "KMS_KEY_UNUSABLE");
    Case { name, break_it, code, reason, attempts: 1..=1 }
}

#[tokio::test]
async fn answers_that_say_nothing_of_the_key() {
    Setting::check(&[
        transient("throttled", |kms, _| kms.fault(Fault::Throttle)),
        transient("internal", |kms, _| kms.fault(Fault::Error(500, "KMSInternalException"))),
        transient("unavailable", |kms, _| {
            kms.fault(Fault::Error(503, "ServiceUnavailableException"));
        }),
        transient("dependency", |kms, _| {
            kms.fault(Fault::Error(503, "DependencyTimeoutException"));
        }),
        Case { attempts: 1..=3, ..transient("garbage", |kms, _| kms.fault(Fault::Body("<html>"))) },
        Case { attempts: 1..=3, ..transient("empty", |kms, _| kms.fault(Fault::Body("{}"))) },
    ])
    .await;
}

#[tokio::test]
async fn connections_that_fail() {
    Setting::check(&[
        transient("hang", |kms, _| kms.fault(Fault::Hang)),
        transient("closed", |kms, _| kms.fault(Fault::Drop)),
        transient("cut", |kms, _| kms.fault(Fault::CutBody)),
        transient("late", |kms, _| kms.fault(Fault::Delay(Duration::from_secs(5)))),
    ])
    .await;
}

#[tokio::test]
async fn keys_that_are_refused() {
    Setting::check(&[
        unusable("disabled", |kms, key| kms.set_state(key, KeyState::Disabled)),
        unusable("deleted", |kms, key| kms.set_state(key, KeyState::PendingDeletion)),
        unusable("denied", |kms, key| kms.set_state(key, KeyState::AccessDenied)),
        unusable("spurious", |kms, _| kms.fault_times(1, Fault::Error(400, "NotFoundException"))),
        Case {
            code: Code::DataLoss,
            reason: "RECORD_CORRUPT",
            ..unusable("short", |kms, _| kms.fault(Fault::ShortPlaintext))
        },
    ])
    .await;
}

/// 60 workspaces ask a KMS that throttles: it sees a few calls, each of the
/// callers is told at once and when to come back.
#[tokio::test]
async fn a_kms_that_is_down_is_left_alone() {
    let cold: Vec<_> = (0..60).map(|n| format!("cold-{n}")).collect();
    let mut setting = Setting::start(&cold).await;
    let before = setting.platform.kms.decrypts();
    setting.platform.kms.fault(Fault::Throttle);
    let start = Instant::now();
    for workspace in &cold {
        let refused = setting.executor.resolve_secrets(resolve(workspace, &["KEY"])).await;
        assert_unavailable(refused, "KMS_UNAVAILABLE");
    }
    // Five to see that it is down; then one after each pause, of half a second
    // at least.
    let probes = usize::try_from(start.elapsed().as_millis() / 500).unwrap();
    let calls = setting.platform.kms.decrypts() - before;
    assert!((13..=3 * (5 + probes)).contains(&calls), "{calls} calls, {:?}", start.elapsed());
    assert!(setting.replica.stderr().contains("the KMS fails: it is asked less"));

    setting.platform.kms.heal();
    for workspace in &cold {
        setting.returns(workspace, PATIENCE).await;
    }
    assert!(setting.replica.stderr().contains("the KMS is back"));
    setting.warm.end().await;
}

/// Secrets `K0`, `K1`, ... of one workspace, each sealed by another data key.
async fn many_keys(platform: &Platform, workspace: &str, count: usize) {
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    let mut keys = platform.key_client(&replica, "operator").await;
    for number in 0..count {
        writer.create_secret(create(workspace, &format!("K{number}"), "v")).await.unwrap();
        let request = RotateDataKeyRequest { workspace: workspace.into(), ..Default::default() };
        keys.rotate_data_key(request).await.unwrap();
    }
}

/// One workspace whose calls all hang, with many more than it may make at once.
#[tokio::test]
async fn one_workspace_cannot_starve_the_others() {
    let cold: Vec<_> = (0..60).map(|n| format!("cold-{n}")).collect();
    let mut setting = Setting::start(&cold).await;
    many_keys(&setting.platform, "greedy", 12).await;
    let kms = &setting.platform.kms;
    kms.fault_in("greedy", Fault::Hang);
    let mut greedy = JoinSet::new();
    for number in 0..12 {
        let mut executor = setting.executor.clone();
        greedy.spawn(async move {
            let start = Instant::now();
            let name = format!("K{number}");
            let refused = executor.resolve_secrets(resolve("greedy", &[&name])).await;
            assert_unavailable(refused, "KMS_UNAVAILABLE");
            assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        });
    }
    let start = Instant::now();
    while kms.in_flight_of("greedy").0 < 5 {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for workspace in &cold {
        setting.resolves(workspace).await;
    }
    greedy.join_all().await;
    assert_eq!(setting.platform.kms.in_flight_of("greedy").1, 5);
    setting.platform.kms.heal();
    let start = Instant::now();
    while let Err(error) = setting.executor.resolve_secrets(resolve("greedy", &["K7"])).await {
        assert!(start.elapsed() < PATIENCE, "{error:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    setting.warm.end().await;
}
