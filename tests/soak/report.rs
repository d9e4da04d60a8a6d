//! What came of it: a table for people and a line of JSON for programs.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::{
    faults::{Happened, Kind},
    probe::{Availability, Kind as Probe},
    process::Life,
    tally::Tally,
};

/// How much memory a process may gain once it is warm, in KiB.
const GROWTH: u64 = 64 * 1024;

/// How many files more than at the start a process may have open when all
/// callers have left.
const MORE_FILES: u64 = 8;

/// The most files that a process has open while nobody calls.
#[derive(Clone, Copy)]
pub(crate) struct IdleFiles {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl IdleFiles {
    pub(crate) fn grew(self) -> bool {
        self.last > self.first + MORE_FILES
    }
}

/// What the audit files hold.
pub(crate) struct Audited {
    pub(crate) changes: u64,
    pub(crate) resolved: u64,
}

pub(crate) struct Report<'a> {
    pub(crate) seed: u64,
    pub(crate) tally: &'a Tally,
    pub(crate) availability: &'a Availability,
    /// While the faults went on.
    pub(crate) seconds: usize,
    pub(crate) happened: &'a [Happened],
    pub(crate) lives: &'a [Life],
    pub(crate) idle_files: IdleFiles,
    pub(crate) audited: Audited,
    /// Of processes and logs.
    pub(crate) findings: &'a [String],
}

/// Of one kind of fault.
#[derive(Default)]
struct Row {
    times: u64,
    /// Seconds without reads, and without writes, that nothing excuses.
    away: [u64; 2],
    /// Seconds without either while the store was away.
    excused: u64,
    recovery: Duration,
}

impl Report<'_> {
    /// By kind of fault; two at once have a row of their own.
    fn rows(&self) -> BTreeMap<String, Row> {
        let mut rows: BTreeMap<String, Row> = BTreeMap::new();
        for (number, fault) in self.happened.iter().enumerate() {
            let row = rows.entry(title(&fault.kinds)).or_default();
            row.times += 1;
            row.recovery = row.recovery.max(fault.recovery.unwrap_or(Duration::MAX));
            let first = self.availability.second_of(fault.began);
            let end = self.availability.second_of(fault.ended);
            // Up to the next fault.
            let next = self.happened.get(number + 1);
            let next = next.map_or(self.seconds, |next| self.availability.second_of(next.began));
            for second in first..next {
                let away = [Probe::Read, Probe::Write]
                    .map(|kind| self.availability.was_away(second, kind));
                if fault.took_the_store() && second <= end {
                    row.excused += u64::from(away[0] || away[1]);
                } else {
                    row.away[0] += u64::from(away[0]);
                    row.away[1] += u64::from(away[1]);
                }
            }
        }
        rows
    }

    /// Why the soak has failed.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let tally = self.tally;
        for (name, findings) in
            [("lost", &tally.lost), ("wrong", &tally.wrong), ("unexpected", &tally.unexpected)]
        {
            failures.extend(findings.told().into_iter().map(|told| format!("{name}: {told}")));
        }
        failures.extend(self.findings.iter().cloned());
        for fault in self.happened.iter().filter(|fault| fault.recovery.is_none()) {
            failures.push(format!("not recovered from {}", title(&fault.kinds)));
        }
        let has_grown = |life: &&Life| {
            life.lives && life.warm.is_some_and(|warm| life.last.rss > warm.rss + GROWTH)
        };
        for life in self.lives.iter().filter(has_grown) {
            failures.push(format!("replica {} has grown: {life:?}", life.replica));
        }
        if self.idle_files.grew() {
            let IdleFiles { first, last } = self.idle_files;
            failures.push(format!("{last} files are open while nobody calls, at first {first}"));
        }
        let (changes, resolved) = (tally.acknowledged.get(), tally.resolved.get());
        if self.audited.changes < changes || self.audited.resolved < resolved {
            let Audited { changes: lines, resolved: values } = self.audited;
            failures.push(format!(
                "{changes} changes and {resolved} values, and audit lines of {lines} and {values}"
            ));
        }
        if tally.acknowledged.get() == 0 || tally.resolved.get() == 0 {
            failures.push("nothing was done".to_owned());
        }
        failures
    }

    pub(crate) fn table(&self) -> String {
        let tally = self.tally;
        let mut lines = vec![
            format!("seed {}, {} s, {} faults", self.seed, self.seconds, self.happened.len()),
            String::new(),
            format!("{:>12}  changes acknowledged", tally.acknowledged.get()),
            format!("{:>12}  values handed out by Resolve", tally.resolved.get()),
            format!("{:>12}  looks compared with what may be", tally.judged.get()),
            format!("{:>12}  lost", tally.lost.count()),
            format!("{:>12}  wrong", tally.wrong.count()),
            format!("{:>12}  unexpected errors", tally.unexpected.count()),
        ];
        let rows = self.rows();
        let sum = |of: fn(&Row) -> u64| rows.values().map(of).sum::<u64>();
        lines.push(format!("{:>12}  unavailable seconds, reads", sum(|row| row.away[0])));
        lines.push(format!("{:>12}  unavailable seconds, writes", sum(|row| row.away[1])));
        lines.push(format!("{:>12}  seconds without, store away", sum(|row| row.excused)));
        lines.push(String::new());
        lines.push(format!(
            "{:<36} {:>5} {:>10} {:>11} {:>10} {:>12}",
            "fault", "times", "away reads", "away writes", "store away", "max recovery"
        ));
        for (name, row) in &rows {
            lines.push(format!(
                "{name:<36} {:>5} {:>9}s {:>10}s {:>9}s {:>12}",
                row.times,
                row.away[0],
                row.away[1],
                row.excused,
                match row.recovery {
                    Duration::MAX => "never".to_owned(),
                    recovery => format!("{:.2}s", recovery.as_secs_f64()),
                },
            ));
        }
        lines.push(String::new());
        lines.push(format!(
            "{:<8} {:>7} {:>24} {:>24}",
            "replica", "lived", "RSS MiB warm/most/last", "files warm/most/last"
        ));
        for life in self.lives.iter().filter(|life| life.warm.is_some()) {
            let warm = life.warm.unwrap_or_default();
            let rss = [warm.rss, life.most.rss, life.last.rss].map(|kib| kib / 1024);
            lines.push(format!(
                "{:<8} {:>6}s {:>24} {:>24}{}",
                life.replica,
                life.lasted.as_secs(),
                format!("{}/{}/{}", rss[0], rss[1], rss[2]),
                format!("{}/{}/{}", warm.fds, life.most.fds, life.last.fds),
                if life.lives { "" } else { "  (ended)" },
            ));
        }
        let IdleFiles { first, last } = self.idle_files;
        lines.push(format!("files open while nobody calls: {first} at first, {last} at the end"));
        lines.push(String::new());
        lines.push(format!("calls to be made again, by why: {:?}", tally.aways()));
        lines.join("\n")
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows();
        let sum = |of: fn(&Row) -> u64| rows.values().map(of).sum::<u64>();
        let faults: BTreeMap<_, _> = rows
            .iter()
            .map(|(name, row)| {
                let recovery = u64::try_from(row.recovery.as_millis()).ok();
                let value = json!({
                    "times": row.times,
                    "unavailable_read_seconds": row.away[0],
                    "unavailable_write_seconds": row.away[1],
                    "store_away_seconds": row.excused,
                    "max_recovery_ms": recovery,
                });
                (name, value)
            })
            .collect();
        let replicas: Vec<_> = self
            .lives
            .iter()
            .filter_map(|life| {
                let warm = life.warm?;
                Some(json!({
                    "replica": life.replica,
                    "seconds": life.lasted.as_secs(),
                    "lives": life.lives,
                    "rss_kib": [warm.rss, life.most.rss, life.last.rss],
                    "fds": [warm.fds, life.most.fds, life.last.fds],
                }))
            })
            .collect();
        json!({
            "seed": self.seed,
            "seconds": self.seconds,
            "acknowledged": self.tally.acknowledged.get(),
            "resolved": self.tally.resolved.get(),
            "judged": self.tally.judged.get(),
            "lost": self.tally.lost.count(),
            "wrong": self.tally.wrong.count(),
            "unexpected": self.tally.unexpected.count(),
            "unavailable_read_seconds": sum(|row| row.away[0]),
            "unavailable_write_seconds": sum(|row| row.away[1]),
            "store_away_seconds": sum(|row| row.excused),
            "again": self.tally.aways(),
            "idle_fds": [self.idle_files.first, self.idle_files.last],
            "faults": faults,
            "replicas": replicas,
            "failures": self.failures().len(),
        })
    }
}

fn title(kinds: &[Kind]) -> String {
    let mut names: Vec<_> = kinds.iter().map(|kind| format!("{kind:?}")).collect();
    names.sort();
    names.join(" + ")
}
