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
    pub fn checked_add(self, by: Duration) -> Option<Self> {
        let nanos = u64::from(self.nanos) + u64::from(by.subsec_nanos());
        let (carry, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        let by = i64::try_from(by.as_secs().checked_add(carry)?).ok()?;
        Self::new(self.seconds.checked_add(by)?, u32::try_from(nanos).ok()?)
    }

    /// So much later, at most the end of the range.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let nanos = u64::from(self.nanos) + u64::from(by.subsec_nanos());
        let seconds = i64::try_from(by.as_secs().saturating_add(nanos / 1_000_000_000));
        let seconds = self.seconds.saturating_add(seconds.unwrap_or(i64::MAX));
        let nanos = u32::try_from(nanos % 1_000_000_000).unwrap_or_default();
        Self { seconds: seconds.min(Self::MAX_SECONDS), nanos }
    }

    /// How long after `earlier` this is; nothing if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        let parts = |time: Self| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        let nanos = parts(self).saturating_sub(parts(earlier));
        Duration::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
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

/// Until when a caller waits for the outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Duration);

impl Deadline {
    /// There is no end to it.
    pub const NONE: Self = Self(Duration::MAX);

    /// So long from now.
    pub fn after(time: Duration, clock: &dyn Clock) -> Self {
        Self(clock.monotonic().saturating_add(time))
    }

    /// How long it is from now; nothing once it has passed.
    pub fn left(self, clock: &dyn Clock) -> Duration {
        match self {
            Self::NONE => Duration::MAX,
            Self(end) => end.saturating_sub(clock.monotonic()),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up_and_stay_in_range() {
        let time = |seconds, nanos| Timestamp::new(seconds, nanos).unwrap();
        let later = time(-1, 999_999_999).checked_add(Duration::new(2, 1));
        assert_eq!(later, Some(time(2, 0)));
        let end = time(Timestamp::MAX_SECONDS, 0);
        assert_eq!(
            end.checked_add(Duration::from_nanos(999_999_999)),
            Some(time(end.seconds, 999_999_999))
        );
        for too_much in [Duration::from_secs(1), Duration::MAX] {
            assert_eq!(end.checked_add(too_much), None);
        }
    }

    #[test]
    fn sums_carry_and_stay_in_range() {
        let time = |s, n| Timestamp::new(s, n).expect("in range");
        let ms = Duration::from_millis;
        assert_eq!(time(5, 900_000_000).plus(ms(1_200)), time(7, 100_000_000));
        assert_eq!(time(-5, 0).plus(ms(4_999)), time(-1, 999_000_000));
        assert_eq!(time(7, 5).plus(Duration::ZERO), time(7, 5));
        let end = time(Timestamp::MAX_SECONDS, 0);
        assert_eq!(end.plus(Duration::MAX).seconds(), Timestamp::MAX_SECONDS);
        assert_eq!(time(7, 100_000_000).since(time(5, 900_000_000)), ms(1_200));
        assert_eq!(time(5, 0).since(time(5, 1)), Duration::ZERO);
        assert_eq!(end.since(time(Timestamp::MIN_SECONDS, 0)), Duration::from_nanos(u64::MAX));
    }
}
