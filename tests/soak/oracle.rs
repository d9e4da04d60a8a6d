//! What each secret may be.
//!
//! One writer owns a secret and makes one change at a time, under one
//! request_id until its outcome is known. So the states of a secret are a row:
//! those acknowledged, and perhaps one whose outcome is not known yet. A call
//! that began when state `n` was the last acknowledged one may see `n` or any
//! later one, up to the one under way when it ends; nothing else.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Mutex, MutexGuard},
};

/// Of one secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Absent,
    /// `life` counts creations, `serial` the values ever written.
    Present {
        life: u64,
        version: u64,
        serial: u64,
    },
}

/// What is found out about an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Right,
    /// An acknowledged change does not show.
    Lost(String),
    /// What it never was.
    Wrong(String),
}

pub(crate) struct Secret {
    pub(crate) workspace: String,
    pub(crate) name: String,
    row: Mutex<Row>,
}

struct Row {
    states: Vec<State>,
    acknowledged: usize,
    /// The serial of each version of each life.
    values: HashMap<(u64, u64), u64>,
    serials: u64,
    lives: u64,
}

impl Row {
    fn last(&self) -> State {
        self.states[self.acknowledged]
    }

    fn propose(&mut self, state: State) -> State {
        assert_eq!(self.states.len(), self.acknowledged + 1, "one change at a time");
        if let State::Present { life, version, serial } = state {
            self.values.insert((life, version), serial);
        }
        self.states.push(state);
        state
    }
}

impl Secret {
    pub(crate) fn new(workspace: &str, name: &str) -> Self {
        let row = Row {
            states: vec![State::Absent],
            acknowledged: 0,
            values: HashMap::new(),
            serials: 0,
            lives: 0,
        };
        Self { workspace: workspace.to_owned(), name: name.to_owned(), row: Mutex::new(row) }
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap()
    }

    /// Of its values, the one with this serial. No other secret has it.
    pub(crate) fn value(&self, serial: u64) -> String {
        let length = if serial % 97 == 96 { 60_000 } else { serial as usize * 131 % 1_500 };
        format!("{}/{}/{serial}/{}", self.workspace, self.name, "x".repeat(length))
    }

    /// The last acknowledged state.
    pub(crate) fn now(&self) -> State {
        self.row().last()
    }

    /// Where a call that begins now begins.
    pub(crate) fn floor(&self) -> usize {
        self.row().acknowledged
    }

    /// A creation under way.
    pub(crate) fn create(&self) -> State {
        let mut row = self.row();
        row.serials += 1;
        row.lives += 1;
        let (life, serial) = (row.lives, row.serials);
        row.propose(State::Present { life, version: 1, serial })
    }

    /// A new value under way.
    pub(crate) fn update(&self) -> State {
        let mut row = self.row();
        row.serials += 1;
        let (State::Present { life, version, .. }, serial) = (row.last(), row.serials) else {
            panic!("nothing to update")
        };
        row.propose(State::Present { life, version: version + 1, serial })
    }

    /// A rollback to an earlier version under way.
    pub(crate) fn roll_back(&self, to: u64) -> State {
        let mut row = self.row();
        let State::Present { life, version, .. } = row.last() else { panic!("no such secret") };
        let serial = row.values[&(life, to)];
        row.propose(State::Present { life, version: version + 1, serial })
    }

    /// Any other change: a deletion, a return, a description.
    pub(crate) fn become_(&self, state: State) -> State {
        self.row().propose(state)
    }

    /// The change under way has been made.
    pub(crate) fn acknowledge(&self) {
        let mut row = self.row();
        row.acknowledged = row.states.len() - 1;
    }

    /// The change under way was refused, and has not been made.
    pub(crate) fn withdraw(&self) {
        let mut row = self.row();
        let keep = row.acknowledged + 1;
        row.states.truncate(keep);
    }

    /// Of a look at the current version by a call that began at `floor`: its
    /// number and value, if there was one.
    pub(crate) fn judge(&self, floor: usize, seen: Option<(u64, &str)>) -> Verdict {
        let matches = |state: &State| match (state, seen) {
            (State::Absent, None) => true,
            (State::Present { version, serial, .. }, Some(seen)) => {
                seen == (*version, self.value(*serial).as_str())
            }
            _ => false,
        };
        self.find(floor, matches, seen.map(|(version, text)| (version, head(text))))
    }

    /// The same of a look that shows no value.
    pub(crate) fn judge_listed(&self, floor: usize, seen: Option<u64>) -> Verdict {
        let matches = |state: &State| match (state, seen) {
            (State::Absent, None) => true,
            (State::Present { version, .. }, Some(seen)) => seen == *version,
            _ => false,
        };
        self.find(floor, matches, seen)
    }

    fn find<T: Debug>(
        &self,
        floor: usize,
        matches: impl Fn(&State) -> bool,
        seen: Option<T>,
    ) -> Verdict {
        let row = self.row();
        let (before, possible) = row.states.split_at(floor);
        if possible.iter().any(&matches) {
            return Verdict::Right;
        }
        let (workspace, name) = (&self.workspace, &self.name);
        let told = format!("{workspace}/{name}: {seen:?}, possible was {possible:?}");
        if seen.is_none() || before.iter().any(matches) {
            Verdict::Lost(told)
        } else {
            Verdict::Wrong(told)
        }
    }

    /// Of a look at this version, which stood not far below the current one
    /// when the call began.
    pub(crate) fn judge_version(
        &self,
        floor: usize,
        pinned: u64,
        seen: Option<(u64, &str)>,
    ) -> Verdict {
        let row = self.row();
        let possible = &row.states[floor..];
        let told = || {
            let seen = seen.map(|(version, text)| (version, head(text)));
            let (workspace, name) = (&self.workspace, &self.name);
            format!("{workspace}/{name}@{pinned}: {seen:?}, possible was {possible:?}")
        };
        let value = |state: &State| match state {
            State::Present { life, version, .. } if pinned <= *version => {
                row.values.get(&(*life, pinned)).copied()
            }
            _ => None,
        };
        match seen {
            // Ten earlier ones are kept.
            None => {
                let kept = |state: &State| {
                    let State::Present { version, .. } = state else { return false };
                    value(state).is_some() && version - pinned <= 10
                };
                if possible.iter().all(kept) { Verdict::Lost(told()) } else { Verdict::Right }
            }
            Some((version, text)) => {
                let is = |state: &State| {
                    value(state).is_some_and(|serial| self.value(serial).as_str() == text)
                };
                if version == pinned && possible.iter().any(is) {
                    Verdict::Right
                } else {
                    Verdict::Wrong(told())
                }
            }
        }
    }
}

/// Enough of a value to know it by.
fn head(value: &str) -> String {
    value.chars().take(60).collect()
}

/// What the judge is for: shown before each soak, as a judge that lets
/// everything pass finds nothing.
pub(crate) fn prove() {
    let secret = Secret::new("ws", "NAME");
    let lost = |verdict| matches!(verdict, Verdict::Lost(_));
    let wrong = |verdict| matches!(verdict, Verdict::Wrong(_));
    let text = |serial| secret.value(serial);
    let floor = secret.floor();
    secret.create();
    // Under way: both may be.
    assert_eq!(secret.judge(floor, None), Verdict::Right);
    assert_eq!(secret.judge(floor, Some((1, &text(1)))), Verdict::Right);
    secret.acknowledge();
    assert!(lost(secret.judge(secret.floor(), None)));
    // A call that began before still may.
    assert_eq!(secret.judge(floor, None), Verdict::Right);
    secret.update();
    secret.acknowledge();
    let floor = secret.floor();
    assert!(lost(secret.judge(floor, Some((1, &text(1))))));
    assert!(wrong(secret.judge(floor, Some((1, &text(2))))), "another value for that version");
    assert!(wrong(secret.judge(floor, Some((2, &text(1))))));
    assert!(wrong(secret.judge(floor, Some((3, &text(3))))));
    assert!(wrong(secret.judge(floor, Some((2, &Secret::new("ws", "OTHER").value(2))))));
    assert_eq!(secret.judge(floor, Some((2, &text(2)))), Verdict::Right);
    assert_eq!(secret.judge_version(floor, 1, Some((1, &text(1)))), Verdict::Right);
    assert!(wrong(secret.judge_version(floor, 1, Some((1, &text(2))))));
    assert!(lost(secret.judge_version(floor, 1, None)));
    assert_eq!(secret.judge_listed(floor, Some(2)), Verdict::Right);
    assert!(lost(secret.judge_listed(floor, Some(1))));
    // A rollback has the old value and a new number.
    secret.roll_back(1);
    secret.acknowledge();
    assert_eq!(secret.judge(secret.floor(), Some((3, &text(1)))), Verdict::Right);
    secret.become_(State::Absent);
    secret.acknowledge();
    assert!(lost(secret.judge(secret.floor(), Some((3, &text(1))))), "a lost deletion");
    // Refused: as if it had never been.
    secret.create();
    secret.withdraw();
    assert!(!matches!(secret.judge(secret.floor(), Some((1, &text(3)))), Verdict::Right));
}
