//! Who asks for a secret, and when.

use std::collections::BTreeMap;

use super::{Timestamp, WorkflowId};

/// When runs last asked for a secret: at all, and of which workflows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    last: Option<Timestamp>,
    workflows: BTreeMap<WorkflowId, Timestamp>,
}

impl Usage {
    /// Workflows that are remembered; of more, those that asked last.
    pub const MAX_WORKFLOWS: usize = 100;

    /// Notes that a run asked then.
    pub fn add(&mut self, workflow: Option<&WorkflowId>, time: Timestamp) {
        self.last = self.last.max(Some(time));
        let Some(workflow) = workflow else { return };
        match self.workflows.get_mut(workflow) {
            Some(last) => *last = time.max(*last),
            None => {
                self.workflows.insert(workflow.clone(), time);
                self.forget_first();
            }
        }
    }

    /// Takes over what another has noted; the later of two times counts.
    pub fn merge(&mut self, other: &Self) {
        self.last = self.last.max(other.last);
        for (workflow, time) in &other.workflows {
            self.add(Some(workflow), *time);
        }
    }

    /// When a run asked last, of whichever workflow.
    pub fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// The workflows, by id, each with the time of its last run that asked.
    pub fn workflows(&self) -> impl ExactSizeIterator<Item = (&WorkflowId, Timestamp)> {
        self.workflows.iter().map(|(workflow, time)| (workflow, *time))
    }

    fn forget_first(&mut self) {
        if self.workflows.len() > Self::MAX_WORKFLOWS {
            let first = self.workflows.iter().min_by_key(|(_, time)| **time);
            if let Some(first) = first.map(|(workflow, _)| workflow.clone()) {
                self.workflows.remove(&first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn workflow(number: u32) -> WorkflowId {
        WorkflowId::parse(&format!("wf-{number}")).expect("an id")
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp::new(seconds, 0).expect("in range")
    }

    #[test]
    fn the_last_hundred_workflows_are_remembered() {
        let mut usage = Usage::default();
        for number in 0..150_u32 {
            usage.add(Some(&workflow(number)), time(i64::from(number)));
            // The first is in use all the time.
            usage.add(Some(&workflow(0)), time(i64::from(number)));
        }
        let mut left: Vec<_> = usage.workflows().map(|(id, _)| id.clone()).collect();
        let mut expected: Vec<_> = (51..150).chain([0]).map(workflow).collect();
        left.sort();
        expected.sort();
        assert_eq!(left, expected);
        usage.add(None, time(1_000));
        assert_eq!((usage.last(), usage.workflows().len()), (Some(time(1_000)), 100));
    }

    proptest! {
        #[test]
        fn merging_finds_the_latest_in_any_order(
            notes in prop::collection::vec((0..8_u32, 0..1_000_i64), 0..40),
            split in 0..40_usize,
        ) {
            let noted = |notes: &[(u32, i64)]| {
                let mut usage = Usage::default();
                for (number, seconds) in notes {
                    // Workflow 0 stands for none.
                    let workflow = (*number > 0).then(|| workflow(*number));
                    usage.add(workflow.as_ref(), time(*seconds));
                }
                usage
            };
            let (one, two) = notes.split_at(split.min(notes.len()));
            let (mut forth, mut back) = (noted(one), noted(two));
            let (one, two) = (forth.clone(), back.clone());
            forth.merge(&two);
            back.merge(&one);
            prop_assert_eq!(&forth, &noted(&notes));
            prop_assert_eq!(&forth, &back);
            let latest = notes.iter().map(|(_, seconds)| time(*seconds)).max();
            prop_assert_eq!(forth.last(), latest);
        }
    }
}
