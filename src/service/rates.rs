//! How often a caller or a workspace may call.

use std::{hash::Hash, num::NonZeroU32, sync::Arc};

use super::Error;
use crate::domain::{self, Clock};

/// Of how many seconds unused calls add up, where calls are counted by the
/// second.
const BURST_SECONDS: NonZeroU32 = const { NonZeroU32::new(10).unwrap() };

/// Bounds calls of one kind, each key for itself, on this replica; or does not.
///
/// Remembers a key from its first call until it has all its calls left, and
/// then to the next [`tidy`](Self::tidy).
pub(super) struct Rates<K: Clone + Eq + Hash>(Option<domain::Rates<K>>);

impl<K: Clone + Eq + Hash> Rates<K> {
    /// So many calls per minute. Unused calls do not add up to more than one
    /// minute's.
    pub(super) fn per_minute(calls: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        Self(Some(domain::Rates::per_minute(calls, clock)))
    }

    /// So many calls per second; `None`: as many as there are. Unused calls add
    /// up to those of ten seconds.
    pub(super) fn per_second(calls: Option<NonZeroU32>, clock: Arc<dyn Clock>) -> Self {
        let burst = |calls: NonZeroU32| calls.saturating_mul(BURST_SECONDS);
        Self(calls.map(|calls| domain::Rates::per_second(calls, burst(calls), clock)))
    }

    /// Counts a call.
    ///
    /// # Errors
    /// [`Error::RateLimited`], with the time after which one is allowed.
    pub(super) fn count(&self, key: &K) -> Result<(), Error> {
        let Some(rates) = &self.0 else { return Ok(()) };
        rates.count(key).map_err(|wait| Error::RateLimited { wait })
    }

    /// Forgets keys that have all their calls left.
    pub(super) fn tidy(&self) {
        if let Some(rates) = &self.0 {
            rates.tidy();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use super::*;
    use crate::domain::Timestamp;

    /// A clock that a test turns.
    #[derive(Default)]
    struct Turned(Mutex<Duration>);

    impl Clock for Turned {
        fn now(&self) -> Timestamp {
            Timestamp::new(0, 0).unwrap()
        }

        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    #[test]
    fn calls_of_ten_seconds_add_up_and_the_wait_is_told() {
        let clock = Arc::new(Turned::default());
        let rates = Rates::per_second(NonZeroU32::new(4), clock.clone());
        for _ in 0..40 {
            rates.count(&"a").unwrap();
        }
        let Err(Error::RateLimited { wait }) = rates.count(&"a") else { panic!("no limit") };
        assert_eq!(wait, Duration::from_millis(250));
        rates.count(&"b").unwrap();
        *clock.0.lock().unwrap() += wait;
        rates.count(&"a").unwrap();
        assert!(rates.count(&"a").is_err());
    }

    #[test]
    fn without_a_limit_nothing_is_refused_or_remembered() {
        let rates = Rates::per_second(None, Arc::new(Turned::default()));
        assert!((0..10_000).all(|_| rates.count(&"a").is_ok()) && rates.0.is_none());
    }

    #[test]
    fn no_more_keys_are_remembered_than_called_lately() {
        let clock = Arc::new(Turned::default());
        let rates = Rates::per_second(NonZeroU32::new(10), clock.clone());
        for key in 0..10_000 {
            rates.count(&key).unwrap();
        }
        *clock.0.lock().unwrap() += Duration::from_millis(200);
        rates.count(&0).unwrap();
        rates.tidy();
        assert_eq!(rates.0.unwrap().remembered(), 1);
    }
}
