//! What is counted.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{oracle::Verdict, site::Outcome};

/// Of each kind of fault found, so many are told in full.
const TOLD: usize = 20;

#[derive(Default)]
pub(crate) struct Tally {
    /// Changes.
    pub(crate) acknowledged: Counter,
    /// Values, and answers without one, that were compared with what may be.
    pub(crate) judged: Counter,
    /// Values handed out by Resolve.
    pub(crate) resolved: Counter,
    /// Acknowledged changes that did not show.
    pub(crate) lost: Findings,
    /// Answers that could not be.
    pub(crate) wrong: Findings,
    /// Errors that nothing explains.
    pub(crate) unexpected: Findings,
    /// Calls that were to be made again, by why.
    away: Mutex<BTreeMap<String, u64>>,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Findings {
    count: Counter,
    told: Mutex<Vec<String>>,
}

impl Findings {
    pub(crate) fn add(&self, what: String) {
        self.count.add(1);
        let mut told = self.told.lock().unwrap();
        if told.len() < TOLD {
            told.push(what);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }

    pub(crate) fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

impl Tally {
    pub(crate) fn judge(&self, call: &str, verdict: Verdict) {
        self.judged.add(1);
        match verdict {
            Verdict::Right => {}
            Verdict::Lost(what) => self.lost.add(format!("{call}: {what}")),
            Verdict::Wrong(what) => self.wrong.add(format!("{call}: {what}")),
        }
    }

    /// The answer, if there is one; all else is counted.
    pub(crate) fn answer<T>(&self, call: &str, outcome: Outcome<T>) -> Option<T> {
        match outcome {
            Outcome::Answer(answer) => return Some(answer),
            Outcome::Away(why) => self.away(&why),
            Outcome::No(reason, text) => self.unexpected(call, &reason, &text),
        }
        None
    }

    pub(crate) fn away(&self, why: &str) {
        *self.away.lock().unwrap().entry(why.to_owned()).or_default() += 1;
    }

    pub(crate) fn unexpected(&self, call: &str, reason: &str, text: &str) {
        // What cannot be read any more is lost.
        let findings = match reason {
            "RECORD_CORRUPT" | "DATA_KEY_MISSING" => &self.lost,
            _ => &self.unexpected,
        };
        findings.add(format!("{call}: {reason}: {text}"));
    }

    pub(crate) fn aways(&self) -> BTreeMap<String, u64> {
        self.away.lock().unwrap().clone()
    }
}
