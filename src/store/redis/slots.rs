//! Which master has which keys.

use std::sync::Arc;

use crc::{CRC_16_XMODEM, Crc};

use super::{node::Node, url::Address};

/// Last slot of a cluster. All else is taken for a cluster of one master.
pub(super) const LAST: u16 = 16_383;

const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// The slot of a hash tag.
pub(super) fn slot(tag: &str) -> u16 {
    CRC.checksum(tag.as_bytes()) % (LAST + 1)
}

/// A hash tag of each slot: a number.
pub(super) struct Tags(Vec<Option<u32>>);

impl Tags {
    pub(super) fn find() -> Self {
        let mut tags = vec![None; usize::from(LAST) + 1];
        let mut left = tags.len();
        for number in 0..=u32::MAX {
            let of_slot = tags.get_mut(usize::from(slot(&number.to_string())));
            if let Some(tag @ None) = of_slot {
                *tag = Some(number);
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        Self(tags)
    }

    pub(super) fn of(&self, slot: u16) -> Option<u32> {
        *self.0.get(usize::from(slot))?
    }
}

/// Slots next to each other that have one master.
pub(super) struct Run<N> {
    pub(super) from: u16,
    pub(super) to: u16,
    pub(super) master: N,
}

/// The masters as they were last told. Sorted; slots may be missing.
pub(super) struct Map(Vec<Run<Arc<Node>>>);

impl Map {
    pub(super) fn new(mut runs: Vec<Run<Arc<Node>>>) -> Self {
        runs.sort_by_key(|run| run.from);
        Self(runs)
    }

    /// The master of a slot, and the last of the slots after it that it has
    /// without a gap.
    pub(super) fn owner(&self, slot: u16) -> Option<(&Arc<Node>, u16)> {
        let at = self.0.iter().position(|run| (run.from..=run.to).contains(&slot))?;
        let mut rest = self.0.iter().skip(at);
        let first = rest.next()?;
        let mut end = first.to;
        for run in rest {
            if run.from != end.saturating_add(1) || run.master.address != first.master.address {
                break;
            }
            end = run.to;
        }
        Some((&first.master, end))
    }

    /// Each master once.
    pub(super) fn masters(&self) -> Vec<&Arc<Node>> {
        let mut masters: Vec<&Arc<Node>> = Vec::new();
        for run in &self.0 {
            if masters.iter().all(|known| known.address != run.master.address) {
                masters.push(&run.master);
            }
        }
        masters
    }

    /// Whether this is what is told.
    pub(super) fn is(&self, told: &[Run<Address>]) -> bool {
        self.0.len() == told.len()
            && self.0.iter().zip(told).all(|(run, told)| {
                (run.from, run.to) == (told.from, told.to) && run.master.address == told.master
            })
    }

    /// A slot that this master has.
    pub(super) fn slot_of(&self, node: &Node) -> Option<u16> {
        self.0.iter().find(|run| run.master.address == node.address).map(|run| run.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // As CLUSTER KEYSLOT tells.
        for (tag, expected) in
            [("123456789", 12_739), ("foo", 12_182), ("", 0), ("user1000", 3_443)]
        {
            assert_eq!(slot(tag), expected, "{tag}");
        }
    }

    #[test]
    fn each_slot_has_a_tag() {
        let tags = Tags::find();
        for of in 0..=LAST {
            let tag = tags.of(of).map(|tag| slot(&tag.to_string()));
            assert_eq!(tag, Some(of));
        }
        assert_eq!(tags.of(LAST + 1), None);
    }
}
