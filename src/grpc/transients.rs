//! Places for those who are to leave soon.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A bounded number of places for those who need one briefly.
///
/// Nobody is turned away: when all are taken, whoever has had a place longest
/// must go. So a flood shortens the stay, but keeps nobody out who is quick.
pub(super) struct Transients {
    most: usize,
    guests: Mutex<Guests>,
}

#[derive(Default)]
struct Guests {
    next: u64,
    /// By the order in which they came.
    here: BTreeMap<u64, CancellationToken>,
}

impl Transients {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, guests: Mutex::default() })
    }

    /// A place, and whether somebody had to go for it.
    pub(super) fn enter(self: &Arc<Self>) -> (Stay, bool) {
        let mut guests = self.lock();
        let longest = if guests.here.len() < self.most { None } else { guests.here.pop_first() };
        let crowded = longest.map(|(_, over)| over.cancel()).is_some();
        let (number, over) = (guests.next, CancellationToken::new());
        guests.next += 1;
        guests.here.insert(number, over.clone());
        (Stay { house: Arc::clone(self), number, over }, crowded)
    }

    fn lock(&self) -> MutexGuard<'_, Guests> {
        // No step under the lock leaves the guests half changed.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, given back when dropped.
pub(super) struct Stay {
    house: Arc<Transients>,
    number: u64,
    over: CancellationToken,
}

impl Stay {
    /// Resolves when its holder must go.
    pub(super) fn over(&self) -> WaitForCancellationFutureOwned {
        self.over.clone().cancelled_owned()
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.house.lock().here.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_for_one_more() {
        let house = Transients::new(2);
        let (first, crowded) = house.enter();
        assert!(!crowded);
        let (second, _) = house.enter();
        drop(first);
        let (third, crowded) = house.enter();
        assert!(!crowded, "a place was given back");
        let (fourth, crowded) = house.enter();
        assert!(crowded && second.over.is_cancelled());
        assert!(!third.over.is_cancelled() && !fourth.over.is_cancelled());
        assert_eq!(house.lock().here.len(), 2);
        // Who was sent off takes nobody's place along.
        drop(second);
        assert_eq!(house.lock().here.len(), 2);
        drop((third, fourth));
        assert!(house.lock().here.is_empty());
    }
}
