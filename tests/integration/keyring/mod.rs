//! The keyring against a KMS and a store that behave, on a clock that moves
//! when told.

mod aging;
mod guarding;
mod minting;
mod rotation;

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    sync::{Arc, Weak},
    time::Duration,
};

use workflow_secrets::{
    domain::{DataKeyId, Environment, Revision, WorkspaceId, WrappedDataKey},
    envelope::{DataKey, KeyError, Keyring, KeyringConfig},
    kms::{EncryptionContext, Kms as _, KmsError},
    store::{Key, Record, codec},
};

use crate::support::{fake_kms::FakeKms, manual_clock::ManualClock, memory_store::MemoryStore};

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const THROTTLED: KmsError = KmsError::Transient("throttled");
const INTERRUPTED: KmsError = KmsError::Transient("unwrapping was interrupted");
const DISABLED: KmsError = KmsError::KeyUnusable("disabled");

#[derive(Default)]
struct Bench {
    kms: Arc<FakeKms>,
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
}

impl Bench {
    /// A keyring, as each replica has one.
    fn keyring(&self) -> Keyring {
        self.keyring_with(KeyringConfig::default())
    }

    fn keyring_with(&self, config: KeyringConfig) -> Keyring {
        let (kms, store, clock) = (self.kms.clone(), self.store.clone(), self.clock.clone());
        Keyring::new(kms, store, clock, environment(), config)
    }

    /// Puts a new data key into the store, under `k/active`.
    async fn stored_key(&self, workspace: &WorkspaceId) -> WrappedDataKey {
        let context = EncryptionContext {
            environment: environment(),
            workspace: workspace.clone(),
            data_key: DataKeyId::random(),
        };
        let now = workflow_secrets::domain::Clock::now(&*self.clock);
        let wrapped = self.kms.generate_data_key(&context, now).await.unwrap();
        self.store.set(workspace, Key::active_data_key(), Some(record(&wrapped)));
        wrapped
    }

    fn active(&self, workspace: &WorkspaceId) -> Option<WrappedDataKey> {
        let records = self.store.records(workspace);
        let active = records.get(&Key::active_data_key());
        active.map(|r| codec::decode_data_key(&r.bytes).unwrap().wrapped)
    }
}

fn environment() -> Environment {
    Environment::parse("test").unwrap()
}

fn workspace(number: usize) -> WorkspaceId {
    WorkspaceId::parse(&format!("ws_{number}")).unwrap()
}

fn record(wrapped: &WrappedDataKey) -> Record {
    Record { revision: Revision::initial(), bytes: codec::encode_data_key(&wrapped.clone().into()) }
}

/// Lets background tasks go on; nothing in these tests waits for real time.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The error, for comparison: a data key can be neither printed nor compared.
fn error(outcome: Result<Arc<DataKey>, KeyError>) -> Option<KeyError> {
    outcome.err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_cold_reads_make_one_decrypt_per_workspace_and_hot_ones_none() {
    let bench = Bench::default();
    let mut ids = Vec::new();
    for number in 0..100 {
        ids.push(bench.stored_key(&workspace(number)).await.id);
    }
    let keyring = Arc::new(bench.keyring());
    for round in 0..2 {
        bench.kms.hold(round == 0);
        let calls: Vec<_> = (0..1_000)
            .map(|call| {
                let (keyring, id) = (keyring.clone(), ids[call % 100]);
                tokio::spawn(async move {
                    keyring.for_open(&workspace(call % 100), id, None).await.map(|key| key.id())
                })
            })
            .collect();
        while bench.kms.decrypts() < 100 {
            tokio::task::yield_now().await;
        }
        bench.kms.hold(false);
        for (call, task) in calls.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), Ok(ids[call % 100]));
        }
        assert_eq!(bench.kms.decrypts(), 100);
        assert_eq!(bench.store.reads(), 100);
    }
}

#[tokio::test]
async fn a_cancelled_leader_harms_nobody() {
    let bench = Bench::default();
    let id = bench.stored_key(&workspace(1)).await.id;
    let keyring = Arc::new(bench.keyring());
    let call = || {
        let keyring = keyring.clone();
        tokio::spawn(async move { error(keyring.for_open(&workspace(1), id, None).await) })
    };
    bench.kms.hold(true);
    let leader = call();
    settle().await;
    let follower = call();
    settle().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    bench.kms.hold(false);
    assert_eq!(follower.await.unwrap(), None);
    assert_eq!(bench.kms.decrypts(), 1);
}

#[tokio::test]
async fn a_panic_fails_its_callers_and_leaves_nothing_behind() {
    let bench = Bench::default();
    let id = bench.stored_key(&workspace(1)).await.id;
    let keyring = bench.keyring();
    bench.kms.panic_once();
    let interrupted = keyring.for_open(&workspace(1), id, None).await;
    assert_eq!(error(interrupted), Some(KeyError::Kms(INTERRUPTED)));
    assert_eq!(error(keyring.for_open(&workspace(1), id, None).await), None);
}

#[test]
fn a_runtime_that_shuts_down_keeps_nobody_waiting() {
    let gone = tokio::runtime::Runtime::new().unwrap();
    let inside = gone.handle().clone();
    gone.shutdown_background();
    let live = tokio::runtime::Builder::new_current_thread().build().unwrap();
    live.block_on(async {
        let bench = Bench::default();
        let id = bench.stored_key(&workspace(1)).await.id;
        // Tasks spawned from here on are dropped at once.
        let _inside = inside.enter();
        let interrupted = bench.keyring().for_open(&workspace(1), id, None).await;
        assert_eq!(error(interrupted), Some(KeyError::Kms(INTERRUPTED)));
    });
}

#[tokio::test]
async fn the_active_key_spares_the_store_only_if_it_is_the_one_asked_for() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let old = bench.stored_key(&ws).await;
    assert_eq!(
        keyring.for_seal(&ws, Some(&old)).await.unwrap_or_else(|e| panic!("{e}")).id(),
        old.id
    );
    assert_eq!(bench.store.reads(), 0);

    // Another process rotates: the old key moves to its own place.
    let new = bench.stored_key(&ws).await;
    bench.store.set(&ws, Key::data_key(old.id), Some(record(&old)));
    let sealing = keyring.for_seal(&ws, Some(&new)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(sealing.id(), new.id);
    assert_eq!(bench.store.reads(), 0);

    let elsewhere = bench.keyring();
    let opening =
        elsewhere.for_open(&ws, old.id, Some(&new)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(opening.id(), old.id);
    assert_eq!(bench.store.reads(), 1);
    assert_eq!(error(elsewhere.for_open(&ws, new.id, None).await), None);
    assert_eq!(bench.store.reads(), 2);
}

#[tokio::test]
async fn a_key_that_is_gone_is_missing() {
    let bench = Bench::default();
    let ws = workspace(1);
    bench.stored_key(&ws).await;
    let gone = bench.keyring().for_open(&ws, DataKeyId::random(), None).await;
    assert_eq!(error(gone), Some(KeyError::Missing));
    assert_eq!(bench.kms.decrypts(), 0);
}

#[tokio::test]
async fn a_blob_from_another_workspace_or_environment_is_corrupt() {
    let bench = Bench::default();
    let moved = bench.stored_key(&workspace(1)).await;
    let corrupt = Some(KeyError::Corrupt("fake"));
    let keyring = bench.keyring();
    for _ in 0..3 {
        assert_eq!(error(keyring.for_seal(&workspace(2), Some(&moved)).await), corrupt);
    }
    assert_eq!(bench.kms.decrypts(), 1);

    let elsewhere = Keyring::new(
        bench.kms.clone(),
        bench.store.clone(),
        bench.clock.clone(),
        Environment::parse("production").unwrap(),
        KeyringConfig::default(),
    );
    assert_eq!(error(elsewhere.for_seal(&workspace(1), Some(&moved)).await), corrupt);

    let renamed = WrappedDataKey { id: DataKeyId::random(), ..moved };
    assert_eq!(error(keyring.for_seal(&workspace(1), Some(&renamed)).await), corrupt);
    bench.store.set(
        &workspace(3),
        Key::active_data_key(),
        Some(Record { revision: Revision::initial(), bytes: b"no data key".to_vec() }),
    );
    let malformed = keyring.for_open(&workspace(3), DataKeyId::random(), None).await;
    assert_eq!(error(malformed), Some(KeyError::Corrupt("data-key record")));
}

#[tokio::test]
async fn memory_is_bounded_and_idle_keys_are_dropped() {
    let bench = Bench::default();
    let keyring = bench.keyring_with(KeyringConfig {
        capacity: NonZeroUsize::new(2).unwrap(),
        ..KeyringConfig::default()
    });
    let mut keys = Vec::new();
    for number in 0..3 {
        keys.push(bench.stored_key(&workspace(number)).await);
    }
    let mut held: Vec<Weak<DataKey>> = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let key = keyring.for_seal(&workspace(number), Some(key)).await;
        held.push(Arc::downgrade(&key.unwrap_or_else(|e| panic!("{e}"))));
    }
    let alive = |held: &[Weak<DataKey>]| held.iter().map(|k| k.strong_count()).collect::<Vec<_>>();
    settle().await;
    assert_eq!(alive(&held), [0, 1, 1]);

    bench.clock.advance(60 * MINUTE - Duration::from_millis(1));
    keyring.drop_idle().await;
    assert_eq!(alive(&held), [0, 1, 1]);
    bench.clock.advance(Duration::from_millis(1));
    keyring.drop_idle().await;
    assert_eq!(alive(&held), [0, 0, 0]);
}

/// More than are looked at without a pause.
#[tokio::test(start_paused = true)]
async fn a_walk_over_many_keys_leaves_none_out() {
    let bench = Bench::default();
    let keyring = bench.keyring();
    let mut held: Vec<Weak<DataKey>> = Vec::new();
    for number in 0..1_300 {
        if number == 1_000 {
            bench.clock.advance(MINUTE);
        }
        let key = bench.stored_key(&workspace(number)).await;
        let key = keyring.for_seal(&workspace(number), Some(&key)).await;
        held.push(Arc::downgrade(&key.unwrap_or_else(|e| panic!("{e}"))));
    }
    settle().await;
    let from = |first: usize| (first..1_300).map(workspace).collect::<BTreeSet<_>>();
    assert_eq!(keyring.workspaces().await, from(0));
    bench.clock.advance(59 * MINUTE);
    keyring.drop_idle().await;
    assert_eq!(keyring.workspaces().await, from(1_000));
    for (number, key) in held.iter().enumerate() {
        assert_eq!(key.strong_count(), usize::from(number >= 1_000), "{number}");
    }
}
