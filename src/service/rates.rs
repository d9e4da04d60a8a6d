//! How often a workspace may be asked whether text holds its values.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as GovernorClock, Reference as _},
    middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};

use super::Error;
use crate::domain::{Clock, WorkspaceId};

type Limiter =
    RateLimiter<WorkspaceId, HashMapStateStore<WorkspaceId>, Monotonic, NoOpMiddleware<Duration>>;

/// Bounds calls of one kind per workspace and minute, on this replica. Unused
/// calls do not add up to more than one minute's.
pub(super) struct Rates {
    limiter: Limiter,
    clock: Monotonic,
}

impl Rates {
    /// So many calls per workspace and minute.
    pub(super) fn new(per_minute: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        let clock = Monotonic(clock);
        let store = HashMapStateStore::default();
        Self {
            limiter: RateLimiter::new(Quota::per_minute(per_minute), store, clock.clone()),
            clock,
        }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// [`Error::RateLimited`], with the time after which one is allowed.
    pub(super) fn count(&self, workspace: &WorkspaceId) -> Result<(), Error> {
        self.limiter.check_key(workspace).map_err(|refusal| {
            let free = refusal.earliest_possible();
            let wait: Duration = free.duration_since(self.clock.now()).into();
            Error::RateLimited { wait }
        })
    }

    /// Forgets workspaces that have all their calls left.
    pub(super) fn tidy(&self) {
        self.limiter.retain_recent();
    }
}

/// The clock handed in, as governor reads it.
#[derive(Clone)]
struct Monotonic(Arc<dyn Clock>);

impl GovernorClock for Monotonic {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}
