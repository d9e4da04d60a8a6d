//! Places of which nobody gets more than a share.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A bounded number of places, of which each holder may take a bounded number.
/// Remembers only holders that have places, so it is as small as they are few.
pub struct Shares<K> {
    most: usize,
    most_each: usize,
    taken: Mutex<Taken<K>>,
}

struct Taken<K> {
    all: usize,
    each: HashMap<K, usize>,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// So many in all, and so many for each holder.
    pub fn new(most: usize, most_each: usize) -> Arc<Self> {
        let taken = Mutex::new(Taken { all: 0, each: HashMap::new() });
        Arc::new(Self { most, most_each, taken })
    }

    /// A place for `holder`, unless all, or all of its share, are taken.
    pub fn take(self: &Arc<Self>, holder: &K) -> Option<Place<K>> {
        let mut taken = self.lock();
        let held = taken.each.get(holder).copied().unwrap_or(0);
        if taken.all >= self.most || held >= self.most_each {
            return None;
        }
        taken.all += 1;
        taken.each.insert(holder.clone(), held + 1);
        Some(Place { shares: Arc::clone(self), holder: holder.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        // No step under the lock leaves the counts half changed.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, given back when dropped.
pub struct Place<K: Clone + Eq + Hash> {
    shares: Arc<Shares<K>>,
    holder: K,
}

impl<K: Clone + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        taken.all -= 1;
        if let Some(held) = taken.each.get_mut(&self.holder) {
            *held -= 1;
            if *held == 0 {
                taken.each.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_its_share_and_all_no_more_than_there_are() {
        let shares = Shares::new(3, 2);
        let (first, second) = (shares.take(&'a'), shares.take(&'a'));
        assert!(first.is_some() && second.is_some());
        assert!(shares.take(&'a').is_none());
        let third = shares.take(&'b');
        assert!(third.is_some());
        assert!(shares.take(&'b').is_none() && shares.take(&'c').is_none());
        drop(first);
        assert!(shares.take(&'c').is_some(), "given back");
        let again = shares.take(&'a');
        assert!(again.is_some());
        drop((again, second, third));
        assert!(shares.lock().each.is_empty() && shares.lock().all == 0);
    }
}
