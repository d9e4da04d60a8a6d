//! Turns to work, of which nobody has more than a few at once: whoever wants
//! more waits in a line of their own, and keeps nobody else.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Each holder's turns, in the order in which they were asked for. Remembers
/// only holders that have or want some, so it is as small as they are few.
pub struct Turns<K> {
    at_once: u32,
    most: usize,
    lines: Mutex<HashMap<K, Line>>,
}

struct Line {
    turns: Arc<Semaphore>,
    /// What those of more than weight 1 may have of them: they wait here first, and so
    /// do not stand in the way of light ones.
    heavy: Arc<Semaphore>,
    /// Who works and who waits.
    members: usize,
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Turns of weight `at_once` together for each holder, of whom `most` may
    /// work and wait.
    pub fn new(at_once: u32, most: usize) -> Arc<Self> {
        Arc::new(Self { at_once, most, lines: Mutex::new(HashMap::new()) })
    }

    /// Waits for a turn of this weight, from 1 to all that a holder may have. Heavier
    /// ones than 1 have three quarters of the turns among them.
    /// Who stops waiting has left the line. `None`: the line is full.
    pub async fn wait(self: &Arc<Self>, holder: &K, weight: u32) -> Option<Turn<K>> {
        let (member, turns, heavy) = self.join(holder)?;
        let weight = weight.max(1).min(self.at_once);
        let heavy = match weight {
            1 => None,
            _ => Some(heavy.acquire_many_owned(weight.min(self.heavy())).await.ok()?),
        };
        let working = turns.acquire_many_owned(weight).await.ok()?;
        Some(Turn { _working: working, _heavy: heavy, _member: member })
    }

    fn heavy(&self) -> u32 {
        (self.at_once / 4 * 3).max(1)
    }

    fn join(self: &Arc<Self>, holder: &K) -> Option<(Member<K>, Arc<Semaphore>, Arc<Semaphore>)> {
        let mut lines = self.lock();
        let members = lines.get(holder).map_or(0, |line| line.members);
        if members >= self.most {
            return None;
        }
        let permits = |many| Arc::new(Semaphore::new(usize::try_from(many).unwrap_or(usize::MAX)));
        let line = lines.entry(holder.clone()).or_insert_with(|| Line {
            turns: permits(self.at_once),
            heavy: permits(self.heavy()),
            members: 0,
        });
        line.members += 1;
        let (turns, heavy) = (Arc::clone(&line.turns), Arc::clone(&line.heavy));
        Some((Member { all: Arc::clone(self), holder: holder.clone() }, turns, heavy))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Line>> {
        // No step under the lock leaves a line half changed.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn; its end is its drop.
pub struct Turn<K: Clone + Eq + Hash> {
    // In this order: a line goes only when nobody works any more.
    _working: OwnedSemaphorePermit,
    _heavy: Option<OwnedSemaphorePermit>,
    _member: Member<K>,
}

/// One who works or waits.
struct Member<K: Clone + Eq + Hash> {
    all: Arc<Turns<K>>,
    holder: K,
}

impl<K: Clone + Eq + Hash> Drop for Member<K> {
    fn drop(&mut self) {
        let mut lines = self.all.lock();
        if let Some(line) = lines.get_mut(&self.holder) {
            line.members -= 1;
            if line.members == 0 {
                lines.remove(&self.holder);
            }
        }
    }
}

/// Turns of which there are only so many in all, and of these for each holder:
/// however much one of them wants, it has no more than its part of the line.
pub struct Lane<K> {
    each: Arc<Turns<K>>,
    all: Arc<Semaphore>,
}

impl<K: Clone + Eq + Hash> Lane<K> {
    /// `each` turns at once for each holder, of whom `most` may work and wait,
    /// and `all` in all.
    pub fn new(each: u32, all: usize, most: usize) -> Self {
        Self { each: Turns::new(each, most), all: Arc::new(Semaphore::new(all)) }
    }

    /// Waits for a turn. `None`: the holder's line is full.
    pub async fn wait(&self, holder: &K) -> Option<LaneTurn<K>> {
        let own = self.each.wait(holder, 1).await?;
        let work = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(LaneTurn { _work: work, _own: own })
    }
}

/// A turn on a [`Lane`]; its end is its drop.
pub struct LaneTurn<K: Clone + Eq + Hash> {
    _work: OwnedSemaphorePermit,
    _own: Turn<K>,
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Poll};

    use futures_util::poll;

    use super::*;

    /// What comes at once, if anything does.
    async fn now<T>(work: impl Future<Output = T>) -> Option<T> {
        match poll!(pin!(work)) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn each_holder_works_so_much_and_waits_in_a_line_of_its_own() {
        let turns = Turns::new(4, 3);
        let heavy = now(turns.wait(&'a', 3)).await.flatten();
        let light = now(turns.wait(&'a', 1)).await.flatten();
        assert!(heavy.is_some() && light.is_some());
        let mut third = Box::pin(turns.wait(&'a', 1));
        assert!(poll!(&mut third).is_pending());
        assert!(now(turns.wait(&'a', 1)).await.is_some_and(|turn| turn.is_none()), "line full");
        assert!(now(turns.wait(&'b', 100)).await.flatten().is_some(), "others do not wait");
        drop(heavy);
        let Poll::Ready(Some(third)) = poll!(&mut third) else { panic!("not its turn") };
        drop((light, third));
        assert!(turns.lock().is_empty());
    }

    #[tokio::test]
    async fn turns_come_in_order_and_who_gives_up_leaves() {
        let turns = Turns::new(1, 9);
        let first = now(turns.wait(&'a', 1)).await.flatten();
        let mut second = Box::pin(turns.wait(&'a', 1));
        let mut third = Box::pin(turns.wait(&'a', 1));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        drop(first);
        assert!(poll!(&mut third).is_pending(), "the second came first");
        drop(second);
        assert!(poll!(&mut third).is_ready());
        drop(third);
        assert!(turns.lock().is_empty());
    }

    #[tokio::test]
    async fn however_many_heavy_ones_wait_light_ones_have_their_part() {
        let turns = Turns::new(16, 99);
        let first = now(turns.wait(&'a', 8)).await.flatten();
        let mut heavy: Vec<_> = (0..9).map(|_| Box::pin(turns.wait(&'a', 8))).collect();
        for waiting in &mut heavy {
            assert!(poll!(waiting).is_pending());
        }
        let light: Vec<_> = (0..8).map(|_| Box::pin(turns.wait(&'a', 1))).collect();
        for light in light {
            assert!(now(light).await.flatten().is_some(), "before all who wait");
        }
        drop(first);
        let mut working = Vec::new();
        for waiting in &mut heavy {
            if let Poll::Ready(turn) = poll!(waiting) {
                working.push(turn);
            }
        }
        assert_eq!(working.len(), 1);
    }

    #[tokio::test]
    async fn holders_take_turns_however_much_one_wants() {
        let lane = Lane::new(1, 2, usize::MAX);
        let first = now(lane.wait(&'a')).await.flatten();
        let mut more: Vec<_> = (0..100).map(|_| Box::pin(lane.wait(&'a'))).collect();
        for waiting in &mut more {
            assert!(poll!(waiting).is_pending());
        }
        let other = now(lane.wait(&'b')).await.flatten();
        assert!(first.is_some() && other.is_some());
        let mut third = Box::pin(lane.wait(&'c'));
        assert!(poll!(&mut third).is_pending(), "no more than so many at once");
        drop(first);
        assert!(poll!(&mut third).is_ready(), "before the others of the first");
    }
}
