//! What is kept by slot, bounded.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    ops::Bound::{Excluded, Unbounded},
};

use lru::LruCache;

use super::{Slot, Wanted};
use crate::domain::WorkspaceId;

/// Bounded; what was used longest ago goes first.
///
/// The order of use changes all the time. So that a walk can be interrupted and leave
/// nothing out, and a workspace is found without one, the slots are there in order too.
pub(super) struct Slots<V> {
    values: LruCache<Slot, V>,
    order: BTreeSet<Slot>,
}

impl<V> Slots<V> {
    pub(super) fn new(capacity: NonZeroUsize) -> Self {
        Self { values: LruCache::sparse(capacity), order: BTreeSet::new() }
    }

    /// What is there, which counts as used.
    pub(super) fn get(&mut self, slot: &Slot) -> Option<&V> {
        self.values.get(slot)
    }

    pub(super) fn peek_mut(&mut self, slot: &Slot) -> Option<&mut V> {
        self.values.peek_mut(slot)
    }

    /// What had to go for it: what was there, or was used longest ago.
    pub(super) fn put(&mut self, slot: Slot, value: V) -> Option<V> {
        let gone = self.values.push(slot.clone(), value);
        if let Some((gone, _)) = &gone {
            self.order.remove(gone);
        }
        self.order.insert(slot);
        gone.map(|(_, value)| value)
    }

    pub(super) fn pop(&mut self, slot: &Slot) -> Option<V> {
        self.order.remove(slot);
        self.values.pop(slot)
    }

    /// All of a workspace.
    pub(super) fn take(&mut self, workspace: &WorkspaceId) -> Vec<V> {
        let from = self.order.range((workspace.clone(), Wanted::First)..);
        let all: Vec<_> = from.take_while(|(of, _)| of == workspace).cloned().collect();
        all.iter().filter_map(|slot| self.pop(slot)).collect()
    }

    /// All that follow, in the order of the slots; `None`: from the first on.
    pub(super) fn after(&self, slot: Option<&Slot>) -> impl Iterator<Item = (&Slot, &V)> {
        let slots = self.order.range::<Slot, _>((slot.map_or(Unbounded, Excluded), Unbounded));
        slots.filter_map(|slot| Some((slot, self.values.peek(slot)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::DataKeyId;

    fn slot(workspace: &str, wanted: Wanted) -> Slot {
        (WorkspaceId::parse(workspace).unwrap(), wanted)
    }

    fn all(slots: &Slots<u8>) -> Vec<u8> {
        let all: Vec<_> = slots.after(None).map(|(_, value)| *value).collect();
        assert_eq!((all.len(), all.len()), (slots.values.len(), slots.order.len()));
        all
    }

    #[test]
    fn what_goes_is_in_no_walk() {
        let mut slots = Slots::new(NonZeroUsize::new(2).unwrap());
        let [a, b, c] = ["a", "b", "c"].map(|workspace| slot(workspace, Wanted::First));
        assert_eq!(slots.put(b.clone(), 1), None);
        assert_eq!(slots.put(a.clone(), 2), None);
        assert_eq!(slots.put(b.clone(), 3), Some(1), "what was there");
        assert_eq!(all(&slots), [2, 3]);
        assert_eq!(slots.get(&a), Some(&2));
        assert_eq!(slots.put(c, 4), Some(3), "what was used longest ago");
        assert_eq!(all(&slots), [2, 4]);
        assert_eq!(slots.after(Some(&b)).map(|(_, value)| *value).collect::<Vec<_>>(), [4]);
        assert_eq!((slots.pop(&a), slots.pop(&b)), (Some(2), None));
        assert_eq!(all(&slots), [4]);
    }

    #[test]
    fn a_workspace_goes_as_a_whole_and_alone() {
        let mut slots = Slots::new(NonZeroUsize::new(100).unwrap());
        let ids = [0, 1, 255].map(|byte| DataKeyId::from_bytes([byte; 16]));
        for (workspace, value) in [("ws", 1), ("ws-1", 2), ("ws_", 3), ("wr", 4), ("WS", 5)] {
            slots.put(slot(workspace, Wanted::First), value);
            for id in ids {
                slots.put(slot(workspace, Wanted::Key(id)), value);
                slots.put(slot(workspace, Wanted::Next(id)), value);
            }
        }
        assert_eq!(slots.take(&WorkspaceId::parse("ws").unwrap()), [1; 7]);
        let rest = all(&slots);
        assert!(rest.len() == 4 * 7 && !rest.contains(&1));
    }
}
