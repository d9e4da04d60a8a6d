//! Places for those who are to leave soon.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A bounded number of places for those who need one briefly.
///
/// Nobody is turned away: when all are taken, the peer that has the most of them loses
/// the one it has had longest. So whoever floods takes places from itself, and many who
/// flood together shorten the stay, but keep nobody out who is quick. Where peers are
/// not told apart, whoever has had a place longest must go.
pub struct Transients<P> {
    most: usize,
    guests: Mutex<Guests<P>>,
}

struct Guests<P> {
    next: u64,
    /// By the order in which they came.
    here: BTreeMap<u64, (P, CancellationToken)>,
    each: HashMap<P, usize>,
}

impl<P: Clone + Eq + Hash> Transients<P> {
    /// So many places.
    pub fn new(most: usize) -> Arc<Self> {
        let guests = Guests { next: 0, here: BTreeMap::new(), each: HashMap::new() };
        Arc::new(Self { most, guests: Mutex::new(guests) })
    }

    /// A place, and whether somebody had to go for it.
    pub fn enter(self: &Arc<Self>, peer: P) -> (Stay<P>, bool) {
        let mut guests = self.lock();
        let crowded = guests.here.len() >= self.most && guests.send_off();
        let (number, over) = (guests.next, CancellationToken::new());
        guests.next += 1;
        *guests.each.entry(peer.clone()).or_default() += 1;
        guests.here.insert(number, (peer, over.clone()));
        (Stay { house: Arc::clone(self), number, over }, crowded)
    }

    fn lock(&self) -> MutexGuard<'_, Guests<P>> {
        // No step under the lock leaves the guests half changed.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Eq + Hash> Guests<P> {
    fn send_off(&mut self) -> bool {
        let most = self.each.values().max();
        let of_many = |(_, (peer, _)): &(&u64, &(P, _))| self.each.get(peer) == most;
        let longest = self.here.iter().find(of_many).map(|(number, _)| *number);
        let over = longest.and_then(|number| self.leave(number));
        over.map(|over| over.cancel()).is_some()
    }

    fn leave(&mut self, number: u64) -> Option<CancellationToken> {
        let (peer, over) = self.here.remove(&number)?;
        if let Some(places) = self.each.get_mut(&peer) {
            *places -= 1;
            if *places == 0 {
                self.each.remove(&peer);
            }
        }
        Some(over)
    }
}

/// A place, given back when dropped.
pub struct Stay<P: Clone + Eq + Hash> {
    house: Arc<Transients<P>>,
    number: u64,
    over: CancellationToken,
}

impl<P: Clone + Eq + Hash> Stay<P> {
    /// Resolves when its holder must go.
    pub fn over(&self) -> WaitForCancellationFutureOwned {
        self.over.clone().cancelled_owned()
    }
}

impl<P: Clone + Eq + Hash> Drop for Stay<P> {
    fn drop(&mut self) {
        // Not there any more if it was sent off.
        self.house.lock().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_for_one_more() {
        let house = Transients::new(2);
        let (first, crowded) = house.enter(());
        assert!(!crowded);
        let (second, _) = house.enter(());
        drop(first);
        let (third, crowded) = house.enter(());
        assert!(!crowded, "a place was given back");
        let (fourth, crowded) = house.enter(());
        assert!(crowded && second.over.is_cancelled());
        assert!(!third.over.is_cancelled() && !fourth.over.is_cancelled());
        assert_eq!(house.lock().here.len(), 2);
        // Who was sent off takes nobody's place along.
        drop(second);
        assert_eq!(house.lock().here.len(), 2);
        drop((third, fourth));
        assert!(house.lock().here.is_empty() && house.lock().each.is_empty());
    }

    #[test]
    fn who_has_most_places_makes_room() {
        let house = Transients::new(4);
        let over = |stays: &[Stay<_>]| {
            stays.iter().map(|stay| stay.over.is_cancelled()).collect::<Vec<_>>()
        };
        let enter = |peer| house.enter(peer).0;
        let mut stays: Vec<_> = ['a', 'b', 'b', 'c'].map(enter).into();
        assert_eq!(over(&stays), [false; 4]);
        stays.push(enter('c'));
        assert_eq!(over(&stays), [false, true, false, false, false]);
        stays.push(enter('c'));
        assert_eq!(over(&stays), [false, true, false, true, false, false]);
        // Once each has one, the oldest goes.
        drop(stays.pop());
        stays.extend(['d', 'e'].map(enter));
        assert_eq!(over(&stays), [true, true, false, true, false, false, false]);
        // Who was sent off takes nobody's place along.
        assert_eq!(house.lock().here.len(), 4);
        stays.truncate(2);
        assert!(stays.iter().all(|stay| stay.over.is_cancelled()));
        drop(stays);
        assert!(house.lock().here.is_empty() && house.lock().each.is_empty());
    }
}
