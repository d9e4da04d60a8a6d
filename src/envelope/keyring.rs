//! Brings data keys: from memory, or from the store and the KMS.

use std::{
    collections::HashMap,
    future::Future,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    DataKey,
    cache::{Cache, Found, Slot},
};
use crate::{
    domain::{Clock, DataKeyId, Environment, Revision, WorkspaceId, WrappedDataKey},
    kms::{EncryptionContext, Kms, KmsError},
    store::{Batch, Commit, Expect, Key, Operation, Record, Store, StoreError, Write, codec},
};

/// How long unwrapped data keys serve.
#[derive(Debug, Clone, Copy)]
pub struct KeyringConfig {
    /// Keys kept in memory; the one used longest ago goes first.
    pub capacity: NonZeroUsize,
    /// From this age on, +/-10 %, a key in use is refreshed in the background.
    pub soft_age: Duration,
    /// Keys up to this age open values while the KMS is unavailable.
    pub hard_age_read: Duration,
    /// Keys up to this age seal values.
    pub hard_age_write: Duration,
    /// A failure is told again for this long before the KMS is asked again.
    pub negative: Duration,
    /// A cached key is given up when the KMS refuses it twice, at least this
    /// long apart.
    pub confirm_unusable: Duration,
}

impl Default for KeyringConfig {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            capacity: const { NonZeroUsize::new(10_000).unwrap() },
            soft_age: 15 * MINUTE,
            hard_age_read: 60 * MINUTE,
            hard_age_write: 15 * MINUTE,
            negative: Duration::from_secs(2),
            confirm_unusable: Duration::from_secs(10),
        }
    }
}

/// Why there is no data key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The KMS is unavailable, or refuses to use the key-encryption key. Never
    /// [`KmsError::WrongCiphertext`].
    #[error(transparent)]
    Kms(KmsError),
    /// The store does not answer. Never [`StoreError::Malformed`].
    #[error(transparent)]
    Store(StoreError),
    /// The data key is gone from the store while records remain. It must be
    /// restored; a new one would bury what the old one sealed.
    #[error("data key missing")]
    Missing,
    /// What is stored of the data key is wrong: it will never unwrap.
    #[error("data key corrupt: {0}")]
    Corrupt(&'static str),
}

impl From<KmsError> for KeyError {
    fn from(error: KmsError) -> Self {
        match error {
            KmsError::WrongCiphertext(why) => Self::Corrupt(why),
            KmsError::Transient(_) | KmsError::KeyUnusable(_) => Self::Kms(error),
        }
    }
}

impl From<StoreError> for KeyError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Malformed(why) => Self::Corrupt(why),
            _ => Self::Store(error),
        }
    }
}

type Outcome = Result<Arc<DataKey>, KeyError>;
/// An outcome under way; `None` until it is known.
type Flight = watch::Receiver<Option<Outcome>>;

/// The data keys of all workspaces.
///
/// Calls for one key share one call to the KMS. It runs in a task of its own,
/// so a caller that goes away harms no other.
pub struct Keyring(Arc<Inner>);

struct Inner {
    kms: Arc<dyn Kms>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    environment: Environment,
    config: KeyringConfig,
    /// Never held across an await.
    state: Mutex<State>,
}

struct State {
    cache: Cache,
    flights: HashMap<Slot, Flight>,
}

impl State {
    /// Joins the flight of a slot. If there is none, the caller has to start
    /// it and tell its outcome.
    fn board(&mut self, slot: &Slot) -> (Flight, Option<watch::Sender<Option<Outcome>>>) {
        if let Some(flight) = self.flights.get(slot) {
            return (flight.clone(), None);
        }
        let (tell, flight) = watch::channel(None);
        self.flights.insert(slot.clone(), flight.clone());
        (flight, Some(tell))
    }
}

impl Keyring {
    /// An empty keyring. Its calls need a Tokio runtime.
    pub fn new(
        kms: Arc<dyn Kms>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        environment: Environment,
        config: KeyringConfig,
    ) -> Self {
        let state = State { cache: Cache::new(config), flights: HashMap::new() };
        let state = Mutex::new(state);
        Self(Arc::new(Inner { kms, store, clock, environment, config, state }))
    }

    /// The key to seal with. `active` is the record under
    /// [`Key::active_data_key`] as the caller just read it. `None` makes the
    /// first key of the workspace, and only if the workspace is empty.
    ///
    /// Commit what the key seals on the condition that the active data key is
    /// still the one read, or the workspace may be deleted meanwhile.
    ///
    /// # Errors
    /// See [`KeyError`]. Safe to call again.
    pub async fn for_seal(
        &self,
        workspace: &WorkspaceId,
        active: Option<&WrappedDataKey>,
    ) -> Result<Arc<DataKey>, KeyError> {
        match active {
            Some(active) => {
                let hard_age = self.0.config.hard_age_write;
                self.0.key(workspace, active.id, Some(active), hard_age).await
            }
            None => self.0.first_key(workspace).await,
        }
    }

    /// Overwrites keys that are too old to serve. To be called now and then,
    /// so that a key nobody asks for does not stay in memory.
    pub fn drop_idle(&self) {
        let now = self.0.clock.monotonic();
        self.0.lock().cache.drop_idle(now);
    }

    /// The key `id` to open with. `active` as for [`Self::for_seal`]; it saves
    /// reading the store if it is the key asked for.
    ///
    /// # Errors
    /// See [`KeyError`]. Safe to call again.
    pub async fn for_open(
        &self,
        workspace: &WorkspaceId,
        id: DataKeyId,
        active: Option<&WrappedDataKey>,
    ) -> Result<Arc<DataKey>, KeyError> {
        let wrapped = active.filter(|active| active.id == id);
        self.0.key(workspace, id, wrapped, self.0.config.hard_age_read).await
    }
}

impl Inner {
    async fn key(
        self: &Arc<Self>,
        workspace: &WorkspaceId,
        id: DataKeyId,
        wrapped: Option<&WrappedDataKey>,
        hard_age: Duration,
    ) -> Outcome {
        let slot = (workspace.clone(), Some(id));
        self.obtain(slot, hard_age, || {
            Arc::clone(self).load(workspace.clone(), id, wrapped.cloned())
        })
        .await
    }

    async fn first_key(self: &Arc<Self>, workspace: &WorkspaceId) -> Outcome {
        // Nothing is ever cached under this slot but failures.
        let slot = (workspace.clone(), None);
        self.obtain(slot, Duration::ZERO, || Arc::clone(self).mint(workspace.clone())).await
    }

    /// What the cache has, or else the outcome of `start`, shared with all who
    /// ask meanwhile.
    async fn obtain<F>(
        self: &Arc<Self>,
        slot: Slot,
        hard_age: Duration,
        start: impl FnOnce() -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let now = self.clock.monotonic();
        let (cached, flight, tell) = {
            let mut state = self.lock();
            let cached = match state.cache.find(&slot, hard_age, now) {
                Found::Fresh(key) => return Ok(key),
                Found::Failed(error) => return Err(error),
                Found::Aging(key) => Some(key),
                Found::Nothing => None,
            };
            let (flight, tell) = state.board(&slot);
            (cached, flight, tell)
        };
        // Not under the lock: a runtime that is shutting down drops the task,
        // and with it the landing, within `spawn`.
        if let Some(tell) = tell {
            let landing = Landing { inner: Arc::clone(self), slot };
            let journey = start();
            tokio::spawn(async move {
                let outcome = journey.await;
                drop(landing);
                tell.send_replace(Some(outcome));
            });
        }
        match cached {
            Some(key) => Ok(key),
            None => landed(flight).await,
        }
    }

    /// Unwraps a data key and remembers the outcome.
    async fn load(
        self: Arc<Self>,
        workspace: WorkspaceId,
        id: DataKeyId,
        wrapped: Option<WrappedDataKey>,
    ) -> Outcome {
        let since = self.clock.monotonic();
        let outcome = self.fetch(&workspace, id, wrapped).await;
        let now = self.clock.monotonic();
        let slot = (workspace, Some(id));
        let cache = &mut self.lock().cache;
        match &outcome {
            Ok(key) => cache.keep(slot, Arc::clone(key), since),
            Err(error) => cache.fail(slot, error, now),
        }
        outcome
    }

    async fn fetch(
        &self,
        workspace: &WorkspaceId,
        id: DataKeyId,
        wrapped: Option<WrappedDataKey>,
    ) -> Outcome {
        let wrapped = match wrapped {
            Some(wrapped) => wrapped,
            None => self.read(workspace, id).await?,
        };
        let material = self.kms.decrypt(&self.context(workspace, id), &wrapped).await?;
        Ok(Arc::new(DataKey::new(id, material)))
    }

    /// Reads a data key that may be the active one or an earlier one.
    async fn read(
        &self,
        workspace: &WorkspaceId,
        id: DataKeyId,
    ) -> Result<WrappedDataKey, KeyError> {
        let keys = [Key::data_key(id), Key::active_data_key()];
        let records = self.store.read(workspace, &keys).await?;
        for record in records.into_iter().flatten() {
            let wrapped = codec::decode_data_key(&record.bytes)?;
            if wrapped.id == id {
                return Ok(wrapped);
            }
        }
        Err(KeyError::Missing)
    }

    /// The first data key of a workspace, unwrapped.
    async fn mint(self: Arc<Self>, workspace: WorkspaceId) -> Outcome {
        match self.store_first(&workspace).await {
            // Unwrapping what the store now holds proves that it can be.
            Ok(active) => {
                let hard_age = self.config.hard_age_write;
                self.key(&workspace, active.id, Some(&active), hard_age).await
            }
            Err(error) => {
                let now = self.clock.monotonic();
                self.lock().cache.fail((workspace, None), &error, now);
                Err(error)
            }
        }
    }

    /// Puts a new data key into an empty workspace, and reads back which one
    /// is there.
    async fn store_first(&self, workspace: &WorkspaceId) -> Result<WrappedDataKey, KeyError> {
        // Tried without a key first: where there can be none, none is made.
        if self.claim(workspace, Write::Nothing).await? {
            let context = self.context(workspace, DataKeyId::random());
            let minted = self.kms.generate_data_key(&context, self.clock.now()).await?;
            if minted.id != context.data_key {
                return Err(KeyError::Corrupt("the KMS made another data key than asked for"));
            }
            let bytes = codec::encode_data_key(&minted);
            let record = Record { revision: Revision::initial(), bytes };
            self.claim(workspace, Write::Put(record)).await?;
        }
        let records = self.store.read(workspace, &[Key::active_data_key()]).await?;
        let active = records.into_iter().flatten().next().ok_or(KeyError::Missing)?;
        Ok(codec::decode_data_key(&active.bytes)?)
    }

    /// Writes the active data key of an empty workspace. False: it is not empty;
    /// another replica was faster, or its key is missing.
    async fn claim(&self, workspace: &WorkspaceId, write: Write) -> Result<bool, KeyError> {
        let key = Key::active_data_key();
        let batch = Batch {
            operations: vec![Operation { key, expect: Some(Expect::Absent), write }],
            expect_empty: true,
            ..Batch::default()
        };
        match self.store.commit(workspace, batch).await? {
            Commit::Done => Ok(true),
            Commit::NotEmpty | Commit::Conflict(_) => Ok(false),
            Commit::Replayed(_) | Commit::Full => {
                Err(KeyError::Corrupt("the store answered what was not asked"))
            }
        }
    }

    fn context(&self, workspace: &WorkspaceId, data_key: DataKeyId) -> EncryptionContext {
        EncryptionContext {
            environment: self.environment.clone(),
            workspace: workspace.clone(),
            data_key,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a flight off the table however its task ends.
struct Landing {
    inner: Arc<Inner>,
    slot: Slot,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.inner.lock().flights.remove(&self.slot);
    }
}

async fn landed(mut flight: Flight) -> Outcome {
    match flight.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(outcome)) => outcome.clone(),
        // Its task panicked or the process is going down.
        _ => Err(KeyError::Kms(KmsError::Transient("unwrapping was interrupted"))),
    }
}
