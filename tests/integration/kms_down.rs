//! What works without the KMS, and how the rest fails.

use std::time::{Duration, Instant};

use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt as _;

use super::support::{
    kms_endpoint::{Fault, KeyState},
    platform::{
        Client, KMS_ALIAS, Platform, Replica, SERVICE, assert_refused, assert_unavailable, create,
        get, resolve, value,
    },
    redis_server::Options,
};

/// 3 s are promised; the rest is for a busy machine.
const DEADLINE: Duration = Duration::from_secs(4);

/// A replica that knows the data key of `warm` but not those of `cold...`.
struct Setting {
    platform: Platform,
    replica: Replica,
    executor: Client,
    writer: Client,
}

impl Setting {
    async fn start() -> Self {
        let platform = Platform::start_with(Options::default()).await;
        let first = platform.replica().await;
        let mut client = platform.client(&first, "platform").await;
        for workspace in ["warm", "cold", "cold-2"] {
            client.create_secret(create(workspace, "KEY", workspace)).await.unwrap();
        }
        let replica = platform.replica().await;
        let mut executor = platform.client(&replica, "executor").await;
        let writer = platform.client(&replica, "platform").await;
        executor.resolve_secrets(resolve("warm", &["KEY"])).await.unwrap();
        Self { platform, replica, executor, writer }
    }

    async fn resolves(&mut self, workspace: &str) {
        let answer = self.executor.resolve_secrets(resolve(workspace, &["KEY"])).await.unwrap();
        assert_eq!(value(&answer.into_inner(), "KEY"), workspace);
    }

    /// Everything that must hold while the KMS gives no answer.
    async fn check_without_kms(&mut self) {
        self.resolves("warm").await;
        let start = Instant::now();
        let cold = self.executor.resolve_secrets(resolve("cold", &["KEY"])).await;
        assert_unavailable(cold, "KMS_UNAVAILABLE");
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());

        self.writer.create_secret(create("warm", "NEW", "v")).await.unwrap();
        let start = Instant::now();
        let refused = self.writer.create_secret(create("new", "KEY", "v")).await;
        assert_unavailable(refused, "KMS_UNAVAILABLE");
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        assert_eq!(self.platform.redis.cli(&["KEYS", "*{new}*"]), "");

        self.resolves("warm").await;
        for name in ["", SERVICE] {
            let health = self.replica.health(&self.platform, name).await;
            assert_eq!(health, Some(ServingStatus::Serving), "{name:?}");
        }
    }

    /// Failures are remembered for 2 s and no longer.
    async fn check_recovery(&mut self) {
        let start = Instant::now();
        while let Err(error) = self.executor.resolve_secrets(resolve("cold", &["KEY"])).await {
            assert!(start.elapsed() < DEADLINE, "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.resolves("cold").await;
        while let Err(error) = self.writer.create_secret(create("new", "KEY", "new")).await {
            assert!(start.elapsed() < DEADLINE, "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.resolves("new").await;
    }
}

#[tokio::test]
async fn kms_gone() {
    let mut setting = Setting::start().await;
    setting.platform.kms.stop().await;
    setting.check_without_kms().await;
    setting.platform.kms.restart().await;
    setting.check_recovery().await;
}

#[tokio::test]
async fn kms_hangs() {
    let mut setting = Setting::start().await;
    setting.platform.kms.fault(Fault::Hang);
    setting.check_without_kms().await;
    setting.platform.kms.heal();
    setting.check_recovery().await;
}

#[tokio::test]
async fn a_disabled_key_is_told_as_such() {
    let mut setting = Setting::start().await;
    setting.platform.kms.set_state(&setting.platform.kms_key, KeyState::Disabled);
    for workspace in ["cold", "cold-2"] {
        let refused = setting.executor.resolve_secrets(resolve(workspace, &["KEY"])).await;
        let status = assert_refused(refused, Code::FailedPrecondition, "KMS_KEY_UNUSABLE");
        assert!(status.get_error_details().retry_info().is_none());
    }
    let refused = setting.writer.create_secret(create("new", "KEY", "v")).await;
    assert_refused(refused, Code::FailedPrecondition, "KMS_KEY_UNUSABLE");
    assert_eq!(setting.platform.redis.cli(&["KEYS", "*{new}*"]), "");
    // One refusal may be a slip: what is cached goes on until it is confirmed.
    setting.resolves("warm").await;
    setting.platform.kms.set_state(&setting.platform.kms_key, KeyState::Enabled);
    setting.check_recovery().await;
}

#[tokio::test]
async fn a_data_key_of_another_kms_key_is_a_loss_and_asked_for_once() {
    let mut setting = Setting::start().await;
    let other = setting.platform.kms.create_key();
    setting.platform.kms.set_alias(KMS_ALIAS, &other);
    let before = setting.platform.kms.decrypts();
    let refused = setting.executor.resolve_secrets(resolve("cold", &["KEY"])).await;
    assert_refused(refused, Code::DataLoss, "RECORD_CORRUPT");
    assert_eq!(setting.platform.kms.decrypts(), before + 1);
    // Nothing is sealed over it, and what is known of the secret is still told.
    let refused = setting.writer.create_secret(create("cold", "NEW", "v")).await;
    assert_refused(refused, Code::DataLoss, "RECORD_CORRUPT");
    setting.writer.get_secret(get("cold", "KEY")).await.unwrap();
    setting.resolves("warm").await;
}
