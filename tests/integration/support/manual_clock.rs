//! A clock that moves only when told.

use std::{sync::Mutex, time::Duration};

use workflow_secrets::domain::{Clock, Timestamp};

/// Starts in 2027.
#[derive(Default)]
pub(crate) struct ManualClock(Mutex<Duration>);

impl ManualClock {
    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let passed = self.monotonic();
        let seconds = 1_800_000_000 + i64::try_from(passed.as_secs()).unwrap();
        Timestamp::new(seconds, passed.subsec_nanos()).unwrap()
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}
