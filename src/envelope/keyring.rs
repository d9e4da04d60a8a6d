//! Brings data keys: from memory, or from the store and the KMS.

mod error;
mod flights;
mod making;
mod rewrapping;

use std::{
    collections::BTreeSet,
    future::Future,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Handle;
use tracing::Instrument as _;

pub use self::error::KeyError;
use self::flights::{Flights, Landing, landed};
use super::{
    DataKey,
    cache::{Cache, Found, SLICE, Slot, Wanted},
};
use crate::{
    domain::{Clock, DataKeyId, Environment, WorkspaceId, WrappedDataKey},
    kms::{EncryptionContext, Kms},
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
    /// A failure is told again for this long before the KMS is asked again; one
    /// that says when to ask again, no longer than that.
    pub negative: Duration,
    /// A cached key is given up when the KMS refuses it twice, at least this
    /// long apart.
    pub confirm_unusable: Duration,
}

impl KeyringConfig {
    /// No key stays in memory for longer than this. One in use is refreshed, and
    /// seals, for a quarter of it.
    pub fn forgetting_after(age: Duration) -> Self {
        Self { soft_age: age / 4, hard_age_read: age, hard_age_write: age / 4, ..Self::default() }
    }
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

type Outcome = Result<Arc<DataKey>, KeyError>;

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
    /// Where the KMS is asked, whoever wants to know: its answers are work too.
    runtime: Handle,
    /// Never held across an await.
    state: Mutex<State>,
}

struct State {
    cache: Cache,
    flights: Flights,
}

impl Keyring {
    /// An empty keyring. Must be called within the Tokio runtime on which the KMS is
    /// to be asked.
    pub fn new(
        kms: Arc<dyn Kms>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        environment: Environment,
        config: KeyringConfig,
    ) -> Self {
        let state = State { cache: Cache::new(config), flights: Flights::default() };
        let state = Mutex::new(state);
        let (metrics, runtime) = (Metrics::none(), Handle::current());
        Self(Arc::new(Inner { kms, store, clock, environment, config, metrics, runtime, state }))
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
                self.0.key(workspace, active.id, || Some(Ok(active.clone())), hard_age).await
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
        let gone = {
            let mut state = self.0.lock();
            state.flights.evict(workspace);
            state.cache.evict(workspace)
        };
        drop(gone);
    }

    /// The workspaces with keys in memory.
    pub async fn workspaces(&self) -> BTreeSet<WorkspaceId> {
        let (mut all, mut after) = (BTreeSet::new(), None);
        loop {
            let slice = self.0.lock().cache.slice(after.as_ref());
            after = slice.last().filter(|_| slice.len() == SLICE).cloned();
            all.extend(slice.into_iter().map(|(workspace, _)| workspace));
            if after.is_none() {
                return all;
            }
            give_way().await;
        }
    }

    /// Overwrites keys that are too old to serve. To be called every few seconds,
    /// so that a key nobody asks for does not stay in memory.
    pub async fn drop_idle(&self) {
        let now = self.0.clock.monotonic();
        let (mut count, mut oldest, mut after) = (0, Duration::ZERO, None);
        loop {
            let swept = self.0.lock().cache.sweep(after.as_ref(), now);
            count += swept.kept;
            oldest = oldest.max(swept.oldest);
            after = swept.last;
            drop(swept.gone);
            if after.is_none() {
                break;
            }
            give_way().await;
        }
        self.0.metrics.keys_cached(count, oldest);
        self.0.kms.tidy();
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
        self.for_open_with(workspace, id, || wrapped.cloned().map(Ok)).await
    }

    /// The same; `wrapped` is asked for the key as it lies in the store if it is not in
    /// memory, and only then.
    ///
    /// # Errors
    /// See [`KeyError`]. Safe to call again.
    pub async fn for_open_with(
        &self,
        workspace: &WorkspaceId,
        id: DataKeyId,
        wrapped: impl FnOnce() -> Option<Result<WrappedDataKey, StoreError>> + Send,
    ) -> Result<Arc<DataKey>, KeyError> {
        self.0.key(workspace, id, wrapped, self.0.config.hard_age_read).await
    }
}

impl Inner {
    async fn key(
        self: &Arc<Self>,
        workspace: &WorkspaceId,
        id: DataKeyId,
        wrapped: impl FnOnce() -> Option<Result<WrappedDataKey, StoreError>> + Send,
        hard_age: Duration,
    ) -> Outcome {
        let slot = (workspace.clone(), Wanted::Key(id));
        self.obtain(slot, hard_age, |number| {
            Arc::clone(self).load(workspace.clone(), id, wrapped(), number)
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
            let (flight, tell) = state.flights.board(&slot);
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
            self.runtime.spawn(flight.in_current_span());
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
        wrapped: Option<Result<WrappedDataKey, StoreError>>,
        number: u64,
    ) -> Outcome {
        let since = self.clock.monotonic();
        let outcome = self.fetch(&workspace, id, wrapped).await;
        let now = self.clock.monotonic();
        let slot = (workspace, Wanted::Key(id));
        let gone = {
            let mut state = self.lock();
            match &outcome {
                _ if !state.flights.flies(&slot, number) => None,
                Ok(key) => state.cache.keep(slot, Arc::clone(key), since),
                Err(error) => state.cache.fail(slot, error, now),
            }
        };
        drop(gone);
        outcome
    }

    async fn fetch(
        &self,
        workspace: &WorkspaceId,
        id: DataKeyId,
        wrapped: Option<Result<WrappedDataKey, StoreError>>,
    ) -> Outcome {
        let wrapped = match wrapped {
            Some(wrapped) => wrapped?,
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

/// Lets those have the lock who wait for it: who takes it again at once mostly gets it.
async fn give_way() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
