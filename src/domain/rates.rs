//! How often something may be done, counted apart for each key.

use std::{hash::Hash, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as GovernorClock, Reference as _},
    middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};

use super::Clock;

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, Monotonic, NoOpMiddleware<Duration>>;

/// Counts per key, on the clock handed in. What is not used adds up to a burst
/// and no further.
pub struct Rates<K: Clone + Eq + Hash> {
    limiter: Limiter<K>,
    clock: Monotonic,
}

impl<K: Clone + Eq + Hash> Rates<K> {
    /// So many per minute for each key, and as many at once.
    pub fn per_minute(each: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        Self::new(Quota::per_minute(each), clock)
    }

    /// So many per second for each key, and so many at once.
    pub fn per_second(each: NonZeroU32, burst: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        Self::new(Quota::per_second(each).allow_burst(burst), clock)
    }

    fn new(quota: Quota, clock: Arc<dyn Clock>) -> Self {
        let clock = Monotonic(clock);
        let store = HashMapStateStore::default();
        Self { limiter: RateLimiter::new(quota, store, clock.clone()), clock }
    }

    /// Counts one.
    ///
    /// # Errors
    /// Too often; the time after which one more is allowed.
    pub fn count(&self, key: &K) -> Result<(), Duration> {
        self.limiter.check_key(key).map_err(|refusal| {
            let free = refusal.earliest_possible();
            free.duration_since(self.clock.now()).into()
        })
    }

    /// Forgets keys that may do all at once that they ever may.
    pub fn tidy(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }

    /// Of how many keys it knows.
    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.limiter.len()
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
