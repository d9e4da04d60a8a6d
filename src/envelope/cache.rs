//! Unwrapped data keys in memory: how long they serve, and what a failure to
//! refresh them means. Decides only; does no I/O and waits for nothing.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lru::LruCache;

use super::{DataKey, KeyError, KeyringConfig};
use crate::{
    domain::{DataKeyId, WorkspaceId},
    kms::KmsError,
    metrics::KeyLookup,
};

/// What is wanted of a workspace.
pub(super) type Slot = (WorkspaceId, Wanted);

/// A data key to unwrap, or one to make. Of the latter only failures are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// This one.
    Key(DataKeyId),
    /// The first.
    First,
    /// The one to take this one's place.
    Next(DataKeyId),
}

/// What the cache says of a key.
pub(super) enum Found {
    /// Use it.
    Fresh(Arc<DataKey>),
    /// Use it, and refresh it in the background.
    Aging(Arc<DataKey>),
    /// It failed a moment ago: do not ask again yet.
    Failed(KeyError),
    /// Fetch it.
    Nothing,
}

impl Found {
    /// The same for who counts.
    pub(super) fn told(&self) -> KeyLookup {
        match self {
            Self::Fresh(_) => KeyLookup::Hit,
            Self::Aging(_) => KeyLookup::Refresh,
            Self::Failed(_) => KeyLookup::Failed,
            Self::Nothing => KeyLookup::Miss,
        }
    }
}

struct Entry {
    key: Arc<DataKey>,
    /// When the KMS was asked for it.
    since: Duration,
    /// Age from which it is refreshed ahead.
    soft_age: Duration,
    /// When a refresh was first told that the key-encryption key is unusable.
    refused: Option<Duration>,
}

struct Failure {
    error: KeyError,
    until: Duration,
}

/// Bounded; the key used longest ago goes first and is overwritten.
pub(super) struct Cache {
    config: KeyringConfig,
    entries: LruCache<Slot, Entry>,
    failures: LruCache<Slot, Failure>,
}

impl Cache {
    pub(super) fn new(config: KeyringConfig) -> Self {
        Self {
            entries: LruCache::sparse(config.capacity),
            failures: LruCache::sparse(config.capacity),
            config,
        }
    }

    /// What there is for a caller that accepts keys up to `hard_age`.
    pub(super) fn find(&mut self, slot: &Slot, hard_age: Duration, now: Duration) -> Found {
        let failure = self.failures.get(slot).filter(|failure| now < failure.until);
        if let Some(entry) = self.entries.get(slot) {
            let age = now.saturating_sub(entry.since);
            if age < hard_age {
                let key = Arc::clone(&entry.key);
                let unconfirmed = entry
                    .refused
                    .is_some_and(|first| now.saturating_sub(first) < self.config.confirm_unusable);
                let rest = age < entry.soft_age || failure.is_some() || unconfirmed;
                return if rest { Found::Fresh(key) } else { Found::Aging(key) };
            }
        }
        failure.map_or(Found::Nothing, |failure| Found::Failed(failure.error.clone()))
    }

    /// Keeps a key that the KMS unwrapped when asked at `since`.
    pub(super) fn keep(&mut self, slot: Slot, key: Arc<DataKey>, since: Duration) {
        let soft_age = jittered(self.config.soft_age);
        self.entries.put(slot, Entry { key, since, soft_age, refused: None });
    }

    /// Drops keys that are too old to serve. All are looked at: the one used
    /// longest ago need not be the oldest.
    pub(super) fn drop_idle(&mut self, now: Duration) {
        let old = |entry: &Entry| now.saturating_sub(entry.since) >= self.config.hard_age_read;
        let all = self.entries.iter();
        let old: Vec<_> =
            all.filter(|(_, entry)| old(entry)).map(|(slot, _)| slot.clone()).collect();
        for slot in old {
            self.entries.pop(&slot);
        }
    }

    /// How many keys there are, and for how long the oldest.
    pub(super) fn held(&self, now: Duration) -> (usize, Duration) {
        let ages = self.entries.iter().map(|(_, entry)| now.saturating_sub(entry.since));
        (self.entries.len(), ages.max().unwrap_or_default())
    }

    /// Drops all there is of a workspace.
    pub(super) fn evict(&mut self, workspace: &WorkspaceId) {
        let slots = |of: &Slot| (of.0 == *workspace).then(|| of.clone());
        let keys: Vec<_> = self.entries.iter().filter_map(|(slot, _)| slots(slot)).collect();
        let failures: Vec<_> = self.failures.iter().filter_map(|(slot, _)| slots(slot)).collect();
        for slot in keys {
            self.entries.pop(&slot);
        }
        for slot in failures {
            self.failures.pop(&slot);
        }
    }

    /// The workspaces of all keys.
    pub(super) fn workspaces(&self) -> BTreeSet<WorkspaceId> {
        self.entries.iter().map(|((workspace, _), _)| workspace.clone()).collect()
    }

    /// Draws the consequences of a failure.
    pub(super) fn fail(&mut self, slot: Slot, error: &KeyError, now: Duration) {
        let evict = match error {
            // May pass: what is cached goes on serving, up to its hard age.
            KeyError::Kms(
                KmsError::Transient(_) | KmsError::Down { .. } | KmsError::OverBudget { .. },
            )
            | KeyError::Store(_) => false,
            // One refusal may be a slip of access management; a second one,
            // some time later, is not.
            KeyError::Kms(_) => self.entries.peek_mut(&slot).is_some_and(|entry| {
                let first = *entry.refused.get_or_insert(now);
                now.saturating_sub(first) >= self.config.confirm_unusable
            }),
            KeyError::Missing | KeyError::Corrupt(_) | KeyError::Shredded => true,
        };
        if evict {
            self.entries.pop(&slot);
        }
        // The store bounds its own calls, and must be back as soon as it is.
        if !matches!(error, KeyError::Store(_)) {
            let longest = self.config.negative;
            let pause = match error {
                // Costs nothing to ask again, and may succeed from then on.
                KeyError::Kms(KmsError::Down { wait } | KmsError::OverBudget { wait }) => {
                    longest.min(*wait)
                }
                _ => longest,
            };
            let until = now.saturating_add(pause);
            self.failures.put(slot, Failure { error: error.clone(), until });
        }
    }
}

/// Within 10 % of an age, so that keys unwrapped together are not refreshed
/// together.
fn jittered(age: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    age.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}
