//! Brings data keys: from memory, or from the store and the KMS.

mod making;
mod rewrapping;

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;
use tracing::Instrument as _;

use super::{
    DataKey,
    cache::{Cache, Found, Slot, Wanted},
};
use crate::{
    domain::{Clock, DataKeyId, Environment, WorkspaceId, WrappedDataKey},
    kms::{EncryptionContext, Kms, KmsError},
    metrics::Metrics,
    store::{Key, Record, Store, StoreError, Trail, codec},
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
    /// The workspace was destroyed.
    #[error("workspace shredded")]
    Shredded,
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
    metrics: Metrics,
    /// Never held across an await.
    state: Mutex<State>,
}

struct State {
    cache: Cache,
    /// With their numbers: one that was taken off the table must neither be
    /// taken for its successor nor leave a key behind.
    flights: HashMap<Slot, (u64, Flight)>,
    started: u64,
}

/// Whoever starts a flight: its number, and where to tell its outcome.
type Start = (u64, watch::Sender<Option<Outcome>>);

impl State {
    /// Joins the flight of a slot. If there is none, the caller has to start
    /// it and tell its outcome.
    fn board(&mut self, slot: &Slot) -> (Flight, Option<Start>) {
        if let Some((_, flight)) = self.flights.get(slot) {
            return (flight.clone(), None);
        }
        let (tell, flight) = watch::channel(None);
        self.started += 1;
        self.flights.insert(slot.clone(), (self.started, flight.clone()));
        (flight, Some((self.started, tell)))
    }

    /// Whether a flight is still on the table.
    fn flies(&self, slot: &Slot, number: u64) -> bool {
        self.flights.get(slot).is_some_and(|(flying, _)| *flying == number)
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
        let state = State { cache: Cache::new(config), flights: HashMap::new(), started: 0 };
        let state = Mutex::new(state);
        let metrics = Metrics::none();
        Self(Arc::new(Inner { kms, store, clock, environment, config, metrics, state }))
    }

    /// The same, counted; to be told before its first use.
    #[must_use]
    pub fn measured(mut self, metrics: Metrics) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.metrics = metrics;
        }
        self
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

    /// Puts a new data key in the place of the active one, which goes on opening
    /// what it sealed, and brings the new one. If `replaced` is no longer the
    /// active one, nothing is done, and the active one is brought.
    ///
    /// The new key is unwrapped before it takes the place, and once more, as it
    /// lies in the store, before its first use. Of calls at once, on whatever
    /// replica, one does it; it is told so, and its entry is in the trail.
    ///
    /// # Errors
    /// See [`KeyError`]. Safe to call again.
    pub async fn rotate(
        &self,
        workspace: &WorkspaceId,
        replaced: DataKeyId,
        trail: Option<Trail>,
    ) -> Result<(Arc<DataKey>, bool), KeyError> {
        self.0.next_key(workspace, replaced, trail).await
    }

    /// Overwrites all keys of a workspace, also those that are being unwrapped,
    /// once those who have them or wait for them are done.
    pub fn evict(&self, workspace: &WorkspaceId) {
        let mut state = self.0.lock();
        state.cache.evict(workspace);
        state.flights.retain(|(flying, _), _| flying != workspace);
    }

    /// The workspaces with keys in memory.
    pub fn workspaces(&self) -> BTreeSet<WorkspaceId> {
        self.0.lock().cache.workspaces()
    }

    /// Overwrites keys that are too old to serve. To be called now and then,
    /// so that a key nobody asks for does not stay in memory.
    pub fn drop_idle(&self) {
        let now = self.0.clock.monotonic();
        let (count, oldest) = {
            let mut state = self.0.lock();
            state.cache.drop_idle(now);
            state.cache.held(now)
        };
        self.0.metrics.keys_cached(count, oldest);
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
        let slot = (workspace.clone(), Wanted::Key(id));
        self.obtain(slot, hard_age, |number| {
            Arc::clone(self).load(workspace.clone(), id, wrapped.cloned(), number)
        })
        .await
    }

    async fn first_key(self: &Arc<Self>, workspace: &WorkspaceId) -> Outcome {
        let slot = (workspace.clone(), Wanted::First);
        self.obtain(slot, Duration::ZERO, |_| Arc::clone(self).mint(workspace.clone())).await
    }

    async fn next_key(
        self: &Arc<Self>,
        workspace: &WorkspaceId,
        replaced: DataKeyId,
        trail: Option<Trail>,
    ) -> Result<(Arc<DataKey>, bool), KeyError> {
        let slot = (workspace.clone(), Wanted::Next(replaced));
        let made = Arc::new(AtomicBool::new(false));
        let mut started = false;
        let replace = |_| {
            started = true;
            Arc::clone(self).replace(workspace.clone(), replaced, trail, Arc::clone(&made))
        };
        let key = self.obtain(slot, Duration::ZERO, replace).await?;
        Ok((key, started && made.load(Ordering::Relaxed)))
    }

    /// What the cache has, or else the outcome of `start`, shared with all who
    /// ask meanwhile.
    async fn obtain<F>(
        self: &Arc<Self>,
        slot: Slot,
        hard_age: Duration,
        start: impl FnOnce(u64) -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let now = self.clock.monotonic();
        let (cached, flight, tell) = {
            let mut state = self.lock();
            let found = state.cache.find(&slot, hard_age, now);
            self.metrics.key_lookup(found.told());
            let cached = match found {
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
        if let Some((number, tell)) = tell {
            let landing = Landing { inner: Arc::clone(self), slot, number };
            let journey = start(number);
            let flight = async move {
                let outcome = journey.await;
                drop(landing);
                tell.send_replace(Some(outcome));
            };
            tokio::spawn(flight.in_current_span());
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
        number: u64,
    ) -> Outcome {
        let since = self.clock.monotonic();
        let outcome = self.fetch(&workspace, id, wrapped).await;
        let now = self.clock.monotonic();
        let slot = (workspace, Wanted::Key(id));
        let mut state = self.lock();
        if state.flies(&slot, number) {
            match &outcome {
                Ok(key) => state.cache.keep(slot, Arc::clone(key), since),
                Err(error) => state.cache.fail(slot, error, now),
            }
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
        self.metrics.key_age(self.clock.now().since(wrapped.create_time));
        Ok(Arc::new(DataKey::new(id, material)))
    }

    /// Reads a data key that may be the active one or an earlier one.
    async fn read(
        &self,
        workspace: &WorkspaceId,
        id: DataKeyId,
    ) -> Result<WrappedDataKey, KeyError> {
        for record in self.records(workspace, [Key::data_key(id), Key::active_data_key()]).await? {
            let wrapped = codec::decode_data_key(&record.bytes)?.wrapped;
            if wrapped.id == id {
                return Ok(wrapped);
            }
        }
        Err(KeyError::Missing)
    }

    /// Those of the records that are there.
    async fn records<const N: usize>(
        &self,
        workspace: &WorkspaceId,
        keys: [Key; N],
    ) -> Result<impl Iterator<Item = Record> + use<N>, KeyError> {
        let keys: Vec<_> = [Key::tombstone()].into_iter().chain(keys).collect();
        let mut records = self.store.read(workspace, &keys).await?.into_iter();
        match records.next().flatten() {
            None => Ok(records.flatten()),
            Some(_) => Err(KeyError::Shredded),
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
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        if state.flies(&self.slot, self.number) {
            state.flights.remove(&self.slot);
        }
    }
}

async fn landed(mut flight: Flight) -> Outcome {
    match flight.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(outcome)) => outcome.clone(),
        // Its task panicked or the process is going down.
        _ => Err(KeyError::Kms(KmsError::Transient("unwrapping was interrupted"))),
    }
}
