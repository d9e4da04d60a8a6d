//! Redis killed, hung, restarted or full, seen by callers.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use workflow_secrets::grpc::proto;

use super::support::platform::{
    Client, Platform, Replica, SERVICE, assert_refused, assert_unavailable, create, delete, get,
    resolve, value,
};

/// A call asks the store at most twice, for 1 s each; the rest is for a busy
/// machine.
const DEADLINE: Duration = Duration::from_secs(4);

/// Promised after Redis is back: 3 s, and again some for a busy machine.
const RETURN: Duration = Duration::from_secs(4);

/// Callers that never stop, each call checked to end in time and, if it fails,
/// as it must.
struct Load {
    stop: CancellationToken,
    callers: JoinSet<(usize, usize)>,
}

impl Load {
    async fn start(platform: &Platform, replica: &Replica) -> Self {
        let mut load = Self { stop: CancellationToken::new(), callers: JoinSet::new() };
        for caller in 0..4 {
            let executor = platform.client(replica, "executor").await;
            let writer = platform.client(replica, "platform").await;
            load.callers.spawn(call(caller, executor, writer, load.stop.clone()));
        }
        load
    }

    /// Ends it. Some calls must have succeeded, and some have failed.
    async fn end(self) {
        self.stop.cancel();
        for (succeeded, failed) in self.callers.join_all().await {
            assert!(succeeded > 0 && failed > 0, "{succeeded} succeeded, {failed} failed");
        }
    }
}

async fn call(
    caller: usize,
    mut executor: Client,
    mut writer: Client,
    stop: CancellationToken,
) -> (usize, usize) {
    let (mut succeeded, mut failed) = (0, 0);
    for round in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let start = Instant::now();
        let outcome = if round % 2 == 0 {
            executor.resolve_secrets(resolve("ws", &["KEY"])).await.map(|_| ())
        } else {
            let request = create("ws", &format!("K{caller}_{round}"), "v");
            writer.create_secret(request).await.map(|_| ())
        };
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        match outcome {
            Ok(()) => succeeded += 1,
            Err(error) => {
                failed += 1;
                assert_unavailable::<()>(Err(error), "STORE_UNAVAILABLE");
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (succeeded, failed)
}

struct Setting {
    platform: Platform,
    replica: Replica,
    executor: Client,
}

impl Setting {
    async fn start() -> Self {
        let platform = Platform::start().await;
        let replica = platform.replica().await;
        let mut writer = platform.client(&replica, "platform").await;
        writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
        let executor = platform.client(&replica, "executor").await;
        Self { platform, replica, executor }
    }

    async fn check_down(&mut self) {
        let start = Instant::now();
        let outcome = self.executor.resolve_secrets(resolve("ws", &["KEY"])).await;
        assert_unavailable(outcome, "STORE_UNAVAILABLE");
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        self.replica.until_health(&self.platform, SERVICE, ServingStatus::NotServing).await;
        self.check_alive().await;
    }

    async fn check_alive(&self) {
        let alive = self.replica.health(&self.platform, "").await;
        assert_eq!(alive, Some(ServingStatus::Serving));
    }

    /// `back`: when Redis came back.
    async fn check_return(&mut self, back: Instant) {
        let answer = loop {
            match self.executor.resolve_secrets(resolve("ws", &["KEY"])).await {
                Ok(answer) => break answer.into_inner(),
                Err(error) => assert!(back.elapsed() < RETURN, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(back.elapsed() < RETURN, "{:?}", back.elapsed());
        assert_eq!(value(&answer, "KEY"), "value");
        self.replica.until_health(&self.platform, SERVICE, ServingStatus::Serving).await;
        self.check_alive().await;
    }
}

#[tokio::test]
async fn redis_killed_and_started_again() {
    let mut setting = Setting::start().await;
    let load = Load::start(&setting.platform, &setting.replica).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    setting.platform.redis.kill9();
    setting.check_down().await;
    setting.platform.redis.restart().await;
    setting.check_return(Instant::now()).await;
    load.end().await;
}

#[tokio::test]
async fn redis_hangs_and_goes_on() {
    let mut setting = Setting::start().await;
    let load = Load::start(&setting.platform, &setting.replica).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    setting.platform.redis.stop_signal();
    setting.check_down().await;
    setting.platform.redis.cont_signal();
    setting.check_return(Instant::now()).await;
    load.end().await;
}

#[tokio::test]
async fn redis_without_room() {
    let mut setting = Setting::start().await;
    let redis = &setting.platform.redis;
    let mut writer = setting.platform.client(&setting.replica, "platform").await;
    writer.create_secret(create("ws", "OLD", "old")).await.unwrap();
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for workspace in ["ws", "new"] {
        let keys = redis.cli(&["KEYS", "*"]);
        let refused = writer.create_secret(create(workspace, "NEW", "new")).await;
        assert_refused(refused, Code::ResourceExhausted, "STORE_FULL");
        let missing = writer.get_secret(get(workspace, "NEW")).await;
        assert_refused(missing, Code::NotFound, "SECRET_NOT_FOUND");
        assert_eq!(redis.cli(&["KEYS", "*"]), keys);
    }
    // What is there can be read, and deleted to make room.
    setting.executor.resolve_secrets(resolve("ws", &["OLD"])).await.unwrap();
    let refused = writer.delete_secret(delete("ws", "OLD")).await;
    assert_refused(refused, Code::ResourceExhausted, "STORE_FULL");
    let permanent = proto::DeleteSecretRequest { permanent: true, ..delete("ws", "OLD") };
    writer.delete_secret(permanent).await.unwrap();
    let missing = writer.get_secret(get("ws", "OLD")).await;
    assert_refused(missing, Code::NotFound, "SECRET_NOT_FOUND");
    let health = setting.replica.health(&setting.platform, SERVICE).await;
    assert_eq!(health, Some(ServingStatus::Serving));
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    writer.create_secret(create("ws", "NEW", "new")).await.unwrap();
}
