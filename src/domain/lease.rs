//! The lease on the refresh of a secret.

use std::time::Duration;

use super::{
    CallerId, LeaseHolder, Refusal, Revision, SecretMetadata, SecretName, SecretUid, Timestamp,
};

/// Grows with each lease of a secret: only with the newest may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FencingToken(u64);

impl FencingToken {
    /// Of a secret's first lease: random, so that one from before the secret
    /// was deleted and created again is not mistaken for it. Below 2^50, since
    /// some clients read numbers as doubles.
    pub fn first() -> Self {
        Self((Revision::initial().as_u64() >> 13).max(1))
    }

    /// From its number.
    ///
    /// # Errors
    /// 0 is none.
    pub fn parse(number: u64) -> Result<Self, Refusal> {
        match number {
            0 => Err(Refusal::Malformed("must be a token from AcquireRefreshLease")),
            number => Ok(Self(number)),
        }
    }

    /// Its number.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// Of the next lease.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// How long a lease lasts: 1 s to 10 min.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTtl(Duration);

impl LeaseTtl {
    /// From seconds and nanoseconds.
    ///
    /// # Errors
    /// Shorter or longer than allowed.
    pub fn parse(seconds: i64, nanos: i32) -> Result<Self, Refusal> {
        let allowed = Duration::from_secs(1)..=Duration::from_secs(600);
        let ttl = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        ttl.filter(|(seconds, nanos)| *seconds <= 600 && *nanos < 1_000_000_000)
            .map(|(seconds, nanos)| Duration::new(seconds, nanos))
            .filter(|ttl| allowed.contains(ttl))
            .map(Self)
            .ok_or(Refusal::Malformed("must lie between 1s and 600s"))
    }

    /// As the standard library counts.
    pub fn as_duration(self) -> Duration {
        self.0
    }
}

impl Default for LeaseTtl {
    /// 1 min.
    fn default() -> Self {
        Self(Duration::from_secs(60))
    }
}

/// Who has a lease: the name that a caller gives, and the caller, so that
/// callers that take the same name do not share a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Proven.
    pub caller: CallerId,
    /// As the caller tells it.
    pub holder: LeaseHolder,
}

/// The newest lease of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshLease {
    /// The secret.
    pub name: SecretName,
    /// The same, should the name be taken anew.
    pub uid: SecretUid,
    /// The value to refresh.
    pub version: u64,
    /// What the holder writes with.
    pub token: FencingToken,
    /// `None`: given back.
    pub held_by: Option<Holding>,
    /// From then on others may have the lease.
    pub expire_time: Timestamp,
}

impl RefreshLease {
    /// Whether the secret still has the value that was to be refreshed. A new
    /// one ends the lease, whoever stores it.
    pub fn is_of(&self, secret: &SecretMetadata) -> bool {
        (self.uid, self.version) == (secret.uid, secret.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_fit_a_double_and_are_never_0() {
        for _ in 0..1_000 {
            let first = FencingToken::first();
            assert!((1..1 << 50).contains(&first.as_u64()));
            assert!(first < first.next());
        }
        assert!(FencingToken::parse(0).is_err());
        assert_eq!(FencingToken::parse(7).map(FencingToken::as_u64), Ok(7));
    }

    #[test]
    fn a_lease_lasts_a_second_to_ten_minutes() {
        for (seconds, nanos) in [(1, 0), (1, 1), (599, 999_999_999), (600, 0)] {
            assert!(LeaseTtl::parse(seconds, nanos).is_ok(), "{seconds} {nanos}");
        }
        for (seconds, nanos) in [
            (0, 0),
            (0, 999_999_999),
            (600, 1),
            (-5, 0),
            (5, -1),
            (5, 1_000_000_000),
            (i64::MAX, i32::MAX),
            (i64::MIN, 0),
        ] {
            assert!(LeaseTtl::parse(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }
}
