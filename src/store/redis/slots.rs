//! Which master has which keys.

use std::sync::Arc;

use crc::{CRC_16_XMODEM, Crc, NoTable};

use super::{node::Node, url::Address};

/// Last slot of a cluster. All else is taken for a cluster of one master.
pub(super) const LAST: u16 = 16_383;

/// The slot of a hash tag.
pub(super) fn slot(tag: &str) -> u16 {
    Crc::<u16, NoTable>::new(&CRC_16_XMODEM).checksum(tag.as_bytes()) % (LAST + 1)
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

    /// A hash tag whose slot this master has.
    pub(super) fn tag_of(&self, node: &Node) -> Option<String> {
        // Four numbers per slot on average.
        (0..4 * (u32::from(LAST) + 1)).map(|number| number.to_string()).find(|tag| {
            self.owner(slot(tag)).is_some_and(|(owner, _)| owner.address == node.address)
        })
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
}
