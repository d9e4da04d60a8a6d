//! Unwrapped data keys in memory: how long they serve, and what a failure to
//! refresh them means. Decides only; does no I/O and waits for nothing.

mod slots;

use std::{sync::Arc, time::Duration};

use self::slots::Slots;
use super::{DataKey, KeyError, KeyringConfig};
use crate::{
    domain::{DataKeyId, WorkspaceId},
    kms::KmsError,
    metrics::KeyLookup,
};

/// What is wanted of a workspace.
pub(super) type Slot = (WorkspaceId, Wanted);

/// Slots looked at under one lock, of a walk over all: some 100 us where there are 100,000.
pub(super) const SLICE: usize = 250;

/// A data key to unwrap, or one to make. Of the latter only failures are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Wanted {
    /// The first; the first in order too, see [`Slots::take`].
    First,
    /// This one.
    Key(DataKeyId),
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

/// A key. Whoever takes one out of the cache drops it, which overwrites the key, without
/// the lock: callers wait for that.
pub(super) struct Entry {
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

/// What a walk found in one slice.
#[derive(Default)]
pub(super) struct Swept {
    /// Too old to serve.
    pub(super) gone: Vec<Entry>,
    /// How many keys stay.
    pub(super) kept: usize,
    /// The age of the oldest that stays.
    pub(super) oldest: Duration,
    /// After which slot to go on; `None`: that was all.
    pub(super) last: Option<Slot>,
}

/// Bounded; the key used longest ago goes first and is overwritten.
pub(super) struct Cache {
    config: KeyringConfig,
    entries: Slots<Entry>,
    failures: Slots<Failure>,
}

impl Cache {
    pub(super) fn new(config: KeyringConfig) -> Self {
        Self { entries: Slots::new(config.capacity), failures: Slots::new(config.capacity), config }
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

    /// Keeps a key that the KMS unwrapped when asked at `since`; what had to go for it.
    #[must_use = "to be dropped without the lock"]
    pub(super) fn keep(&mut self, slot: Slot, key: Arc<DataKey>, since: Duration) -> Option<Entry> {
        let soft_age = jittered(self.config.soft_age);
        self.entries.put(slot, Entry { key, since, soft_age, refused: None })
    }

    /// Takes keys that are too old to serve out of the slice after a slot. All are to be
    /// looked at: the one used longest ago need not be the oldest.
    #[must_use = "to be dropped without the lock"]
    pub(super) fn sweep(&mut self, after: Option<&Slot>, now: Duration) -> Swept {
        let (mut swept, mut old, mut seen) = (Swept::default(), Vec::new(), 0);
        for (slot, entry) in self.entries.after(after).take(SLICE) {
            let age = now.saturating_sub(entry.since);
            if age >= self.config.hard_age_read {
                old.push(slot.clone());
            } else {
                swept.kept += 1;
                swept.oldest = swept.oldest.max(age);
            }
            seen += 1;
            if seen == SLICE {
                swept.last = Some(slot.clone());
            }
        }
        swept.gone = old.iter().filter_map(|slot| self.entries.pop(slot)).collect();
        swept
    }

    /// The slots of the keys in the slice after a slot: fewer than [`SLICE`] are the last.
    pub(super) fn slice(&self, after: Option<&Slot>) -> Vec<Slot> {
        self.entries.after(after).take(SLICE).map(|(slot, _)| slot.clone()).collect()
    }

    /// Takes out all there is of a workspace.
    #[must_use = "to be dropped without the lock"]
    pub(super) fn evict(&mut self, workspace: &WorkspaceId) -> Vec<Entry> {
        self.failures.take(workspace);
        self.entries.take(workspace)
    }

    /// Draws the consequences of a failure; the key that is given up.
    #[must_use = "to be dropped without the lock"]
    pub(super) fn fail(&mut self, slot: Slot, error: &KeyError, now: Duration) -> Option<Entry> {
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
        let gone = if evict { self.entries.pop(&slot) } else { None };
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
        gone
    }
}

/// Within 10 % of an age, so that keys unwrapped together are not refreshed
/// together.
fn jittered(age: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    age.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, sync::Weak};

    use super::*;
    use crate::domain::KeyMaterial;

    fn slot(number: usize) -> Slot {
        let id = DataKeyId::from_bytes(u128::try_from(number).unwrap().to_be_bytes());
        (WorkspaceId::parse(&format!("ws_{}", number / 3)).unwrap(), Wanted::Key(id))
    }

    /// So many keys, every third of which is too old at `now`, and how to tell whether
    /// they are still there.
    fn filled(keys: usize) -> (Cache, Vec<Weak<DataKey>>, Duration) {
        let config = KeyringConfig::default();
        let capacity = NonZeroUsize::new(keys).unwrap();
        let mut cache = Cache::new(KeyringConfig { capacity, ..config });
        let mut held = vec![];
        for number in 0..keys {
            let material = KeyMaterial::take(&mut [1; 32]).ok().unwrap();
            let key = Arc::new(DataKey::new(DataKeyId::random(), material));
            held.push(Arc::downgrade(&key));
            let age = if number % 3 == 0 { 0 } else { 1 + u64::try_from(number).unwrap() };
            assert!(cache.keep(slot(number), key, Duration::from_millis(age)).is_none());
        }
        (cache, held, config.hard_age_read)
    }

    #[test]
    fn a_walk_in_slices_drops_what_is_old_and_nothing_else() {
        for keys in [1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE, 3 * SLICE + 7] {
            let (mut cache, held, now) = filled(keys);
            let (mut gone, mut kept, mut oldest, mut slices) = (0, 0, Duration::ZERO, 0);
            let mut after = None;
            loop {
                // What is used meanwhile changes the order in which keys were used.
                for number in (slices..keys).step_by(7) {
                    let _ = cache.find(&slot(number), now, Duration::ZERO);
                }
                let swept = cache.sweep(after.as_ref(), now);
                assert!(swept.gone.len() + swept.kept <= SLICE);
                let alive = held.iter().filter(|key| key.strong_count() > 0).count();
                assert_eq!(alive, keys - gone, "overwritten only when dropped");
                gone += swept.gone.len();
                kept += swept.kept;
                oldest = oldest.max(swept.oldest);
                slices += 1;
                after = swept.last;
                drop(swept.gone);
                if after.is_none() {
                    break;
                }
            }
            assert_eq!((gone, kept), (keys.div_ceil(3), keys - keys.div_ceil(3)));
            assert_eq!(slices, keys / SLICE + 1);
            assert!(kept == 0 || oldest == now - Duration::from_millis(2), "{oldest:?}");
            for (number, key) in held.iter().enumerate() {
                let old = number % 3 == 0;
                assert_eq!(key.strong_count(), usize::from(!old), "{number} of {keys}");
                let found = cache.find(&slot(number), Duration::MAX, now);
                assert_eq!(matches!(found, Found::Nothing), old);
            }
        }
    }

    #[test]
    fn what_leaves_the_cache_is_handed_out() {
        let (mut cache, held, now) = filled(6);
        let alive = || held.iter().map(Weak::strong_count).collect::<Vec<_>>();
        let gone = cache.evict(&slot(4).0);
        assert_eq!((gone.len(), alive()), (3, vec![1; 6]));
        drop(gone);
        assert_eq!(alive(), [1, 1, 1, 0, 0, 0]);
        drop(cache.fail(slot(1), &KeyError::Missing, now));
        assert_eq!(alive(), [1, 0, 1, 0, 0, 0]);
        // What was in the place of a new one too.
        let key = |number: usize| held[number].upgrade().unwrap();
        assert!(cache.keep(slot(2), key(0), now).is_some());
        assert_eq!(alive(), [2, 0, 0, 0, 0, 0]);
    }
}
