//! Wall clock and monotonic clock, handed in so that tests can turn them.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A point in time, UTC, within 0001-01-01 to 9999-12-31 (RFC 3339 and
/// `google.protobuf.Timestamp` have the same range).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
}

impl Timestamp {
    const MIN_SECONDS: i64 = -62_135_596_800;
    const MAX_SECONDS: i64 = 253_402_300_799;

    /// From seconds since the Unix epoch and nanoseconds; `None` out of range.
    pub fn new(seconds: i64, nanos: u32) -> Option<Self> {
        let fits = (Self::MIN_SECONDS..=Self::MAX_SECONDS).contains(&seconds);
        (fits && nanos < 1_000_000_000).then_some(Self { seconds, nanos })
    }

    /// Seconds since the Unix epoch, rounded down.
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds past the second.
    pub fn nanos(self) -> u32 {
        self.nanos
    }

    /// So much later; `None` out of range.
    pub fn later(self, by: std::time::Duration) -> Option<Self> {
        let nanos = self.nanos + by.subsec_nanos();
        let carry = i64::from(nanos / 1_000_000_000);
        let seconds = self.seconds.checked_add_unsigned(by.as_secs())?.checked_add(carry)?;
        Self::new(seconds, nanos % 1_000_000_000)
    }

    /// As the standard library counts; before the epoch counts as the epoch.
    pub fn to_system_time(self) -> SystemTime {
        u64::try_from(self.seconds)
            .map_or(UNIX_EPOCH, |s| UNIX_EPOCH + Duration::new(s, self.nanos))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        // A machine whose clock stands before 1970 or after 9999 gets the
        // nearest end: later expiry checks then err on the safe side.
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(Self::MAX_SECONDS);
        Self { seconds: seconds.min(Self::MAX_SECONDS), nanos: since.subsec_nanos() }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_millis(self.to_system_time()))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The two clocks the service reads.
pub trait Clock: Send + Sync + 'static {
    /// Wall time, for stamps and expiry.
    fn now(&self) -> Timestamp;
    /// Monotonic time since some fixed moment, for ages.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}
