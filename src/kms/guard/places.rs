//! Who may call now.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::GuardConfig;
use crate::domain::WorkspaceId;

/// A bounded number of places, of which a workspace may take a few. Whoever has
/// to wait first waits among its own workspace's, so in the queue of all there
/// are never more of one workspace than it may have places: they come in turn,
/// however many one has waiting.
pub(super) struct Places {
    all: Semaphore,
    each: usize,
    /// Of workspaces that have or want places.
    of: Mutex<HashMap<WorkspaceId, Weak<Semaphore>>>,
}

/// A place; given back when dropped.
pub(super) struct Place<'a> {
    // In this order: first it is another workspace's turn.
    _all: SemaphorePermit<'a>,
    _own: Own<'a>,
}

/// A workspace's own places, kept while somebody has or wants one.
struct Own<'a> {
    places: &'a Places,
    workspace: &'a WorkspaceId,
    semaphore: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new(config: &GuardConfig) -> Self {
        Self {
            all: Semaphore::new(config.max_in_flight.get().into()),
            each: config.max_in_flight_per_workspace.get().into(),
            of: Mutex::default(),
        }
    }

    /// Waits for a place. `None`: there are none any more, which does not
    /// happen.
    pub(super) async fn take<'a>(&'a self, workspace: &'a WorkspaceId) -> Option<Place<'a>> {
        let mut own = self.own(workspace);
        own.permit = Arc::clone(own.semaphore.as_ref()?).acquire_owned().await.ok();
        let all = self.all.acquire().await.ok()?;
        Some(Place { _all: all, _own: own })
    }

    fn own<'a>(&'a self, workspace: &'a WorkspaceId) -> Own<'a> {
        let mut of = self.lock();
        let known = of.get(workspace).and_then(Weak::upgrade);
        let semaphore = known.unwrap_or_else(|| {
            let new = Arc::new(Semaphore::new(self.each));
            of.insert(workspace.clone(), Arc::downgrade(&new));
            new
        });
        Own { places: self, workspace, semaphore: Some(semaphore), permit: None }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkspaceId, Weak<Semaphore>>> {
        // No step under the lock leaves the map half changed.
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.permit = None;
        let mut of = self.places.lock();
        self.semaphore = None;
        if of.get(self.workspace).is_some_and(|own| own.strong_count() == 0) {
            of.remove(self.workspace);
        }
    }
}
