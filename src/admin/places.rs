//! Places for connections that are to end soon.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A bounded number of places.
///
/// Nobody is turned away: when all are taken, the peer that has the most of them
/// loses the one it has had longest. So whoever floods takes places from itself,
/// and many who flood together from whoever stays longest.
pub(super) struct Places {
    most: usize,
    guests: Mutex<Guests>,
}

#[derive(Default)]
struct Guests {
    next: u64,
    /// By the order in which they came.
    here: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

impl Places {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, guests: Mutex::default() })
    }

    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Stay {
        let mut guests = self.lock();
        if guests.here.len() >= self.most {
            guests.send_off();
        }
        let (number, over) = (guests.next, CancellationToken::new());
        guests.next += 1;
        guests.here.insert(number, (peer, over.clone()));
        Stay { places: Arc::clone(self), number, over }
    }

    fn lock(&self) -> MutexGuard<'_, Guests> {
        // No step under the lock leaves the guests half changed.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guests {
    fn send_off(&mut self) {
        let mut counts = HashMap::new();
        for (peer, _) in self.here.values() {
            *counts.entry(*peer).or_insert(0_usize) += 1;
        }
        let most = counts.values().max().copied();
        let of_many = |(_, (peer, _)): &(&u64, &(IpAddr, _))| counts.get(peer).copied() == most;
        let longest = self.here.iter().find(of_many).map(|(number, _)| *number);
        if let Some((_, over)) = longest.and_then(|number| self.here.remove(&number)) {
            over.cancel();
        }
    }
}

/// A place, given back when dropped.
pub(super) struct Stay {
    places: Arc<Places>,
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
        self.places.lock().here.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_most_places_makes_room() {
        let places = Places::new(4);
        let peer = |last| IpAddr::from([10, 0, 0, last]);
        let over = |stays: &[Stay]| stays.iter().map(|s| s.over.is_cancelled()).collect::<Vec<_>>();
        let mut stays: Vec<_> = [1, 2, 2, 3].map(|last| places.enter(peer(last))).into();
        assert_eq!(over(&stays), [false; 4]);
        stays.push(places.enter(peer(3)));
        assert_eq!(over(&stays), [false, true, false, false, false]);
        stays.push(places.enter(peer(3)));
        assert_eq!(over(&stays), [false, true, false, true, false, false]);
        // Once each has one, the oldest goes.
        drop(stays.pop());
        stays.extend([4, 5].map(|last| places.enter(peer(last))));
        assert_eq!(over(&stays), [true, true, false, true, false, false, false]);
        // Who was sent off takes nobody's place along.
        assert_eq!(places.lock().here.len(), 4);
        stays.truncate(2);
        assert!(stays.iter().all(|stay| stay.over.is_cancelled()));
        drop(stays);
        assert!(places.lock().here.is_empty());
    }
}
