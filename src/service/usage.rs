//! Who uses a secret: noted by Resolve and its kin without waiting, and written
//! behind.
//!
//! What was noted lies in memory until the next write, a few seconds later; a
//! crash loses it. `u/NAME` holds the usage of a secret, `w/NAME` that of a name
//! under which there is none: runs want it in vain. A write finds out which, so
//! that usage follows a secret that is created or deleted.
//!
//! Anybody who may resolve can invent names and workspaces. So a workspace
//! remembers about [`MAX_WANTED`] names that do not exist, and nothing is
//! written of a workspace that has never held a secret.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{StreamExt as _, stream};

use super::{Error, Secrets, change::ATTEMPTS};
use crate::{
    domain::{Revision, SecretName, Timestamp, Usage, WorkflowId, WorkspaceId},
    store::{Batch, Commit, Expect, Key, Operation, Record, Write, codec},
};

/// Names without a secret that a workspace remembers, unless replicas add new
/// ones at the same moment; of more, about those that were asked for last.
const MAX_WANTED: usize = 1_000;

/// Of how many of them the least recent give way to new ones.
const SAMPLE: usize = 200;

/// Names of one batch.
const BATCH: usize = 100;

/// Workspaces written at once.
const AT_ONCE: usize = 8;

/// Names and workflows noted, 100 bytes each or two, until they are written.
/// Further ones are not noted.
const MAX_NOTED: usize = 100_000;

/// By name.
type Uses = HashMap<SecretName, Usage>;

/// What was noted and is not yet written.
pub(super) struct UsageLog {
    noted: Mutex<Noted>,
    most: usize,
}

#[derive(Default)]
struct Noted {
    workspaces: HashMap<WorkspaceId, Uses>,
    /// Names and workflows in there.
    count: usize,
    /// Calls of which something was not noted.
    unnoted: u64,
}

impl Default for UsageLog {
    fn default() -> Self {
        Self { noted: Mutex::default(), most: MAX_NOTED }
    }
}

impl UsageLog {
    /// One that notes nothing.
    pub(super) fn off() -> Self {
        Self { noted: Mutex::default(), most: 0 }
    }

    /// Notes that a run asked for these names, whether or not there are such
    /// secrets.
    pub(super) fn asked<'n>(
        &self,
        workspace: &WorkspaceId,
        names: impl IntoIterator<Item = &'n SecretName>,
        workflow: Option<&WorkflowId>,
        now: Timestamp,
    ) {
        if self.most == 0 {
            return;
        }
        let mut noted = self.lock();
        let noted = &mut *noted;
        // Then, of the names that are there, only the time is noted.
        let full = noted.count >= self.most;
        noted.unnoted += u64::from(full);
        let workflow = workflow.filter(|_| !full);
        let uses = match noted.workspaces.get_mut(workspace) {
            Some(uses) => uses,
            None if full => return,
            None => noted.workspaces.entry(workspace.clone()).or_default(),
        };
        for name in names {
            let usage = match uses.get_mut(name) {
                Some(usage) => usage,
                None if full => continue,
                None => {
                    noted.count += 1;
                    uses.entry(name.clone()).or_default()
                }
            };
            let before = usage.workflows().len();
            usage.add(workflow, now);
            noted.count += usage.workflows().len() - before;
        }
    }

    /// Puts back what could not be written.
    fn put_back(&self, workspace: &WorkspaceId, uses: Uses) {
        let mut noted = self.lock();
        let noted = &mut *noted;
        for (name, usage) in uses {
            if noted.count >= self.most {
                noted.unnoted += 1;
                return;
            }
            let there = noted.workspaces.entry(workspace.clone()).or_default();
            let new = usize::from(!there.contains_key(&name));
            let place = there.entry(name).or_default();
            let before = place.workflows().len();
            place.merge(&usage);
            noted.count += new + place.workflows().len() - before;
        }
    }

    fn take(&self) -> Noted {
        mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        // No step under the lock leaves a note half made.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the store has of one name.
struct Found {
    secret: Option<Record>,
    used: Option<Record>,
    wanted: Option<Record>,
}

/// The usage of a name as it was last written, with a secret and without one.
pub(super) fn stored_usage(
    name: &SecretName,
    used: Option<&Record>,
    wanted: Option<&Record>,
) -> Usage {
    let mut usage = decoded(name, used);
    usage.merge(&decoded(name, wanted));
    usage
}

/// Usage from its record. One broken record must not keep new usage out.
fn decoded(name: &SecretName, record: Option<&Record>) -> Usage {
    let Some(record) = record else { return Usage::default() };
    codec::decode_usage(name, &record.bytes).unwrap_or_else(|_| {
        tracing::error!(%name, "usage record corrupt: taken for none");
        Usage::default()
    })
}

impl Secrets {
    /// Writes what was noted. What cannot be written now is kept for the next
    /// time, as long as there is room.
    pub async fn write_usage(&self) {
        let Noted { workspaces, unnoted, .. } = self.usage.take();
        if unnoted > 0 {
            tracing::warn!(calls = unnoted, "usage not noted: too much of it at once");
        }
        // One failure to reach the store is enough for this time.
        let down = AtomicBool::new(false);
        stream::iter(workspaces)
            .for_each_concurrent(AT_ONCE, |(workspace, uses)| {
                let down = &down;
                async move { self.write_uses(&workspace, uses, down).await }
            })
            .await;
    }

    async fn write_uses(&self, workspace: &WorkspaceId, mut uses: Uses, down: &AtomicBool) {
        while !uses.is_empty() && !down.load(Ordering::Relaxed) {
            let names: Vec<_> = uses.keys().take(BATCH).cloned().collect();
            let some = names.iter().filter_map(|name| uses.get_key_value(name)).collect();
            match self.write_some(workspace, some).await {
                Err(error @ (Error::StoreUnavailable(_) | Error::StoreFull)) => {
                    if !down.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "usage not written: tried again later");
                    }
                    break;
                }
                Err(Error::ConcurrentUpdate) => break,
                // Again and again it would fail the same way.
                Err(error) => tracing::warn!(%workspace, %error, "usage not written: lost"),
                Ok(()) => {}
            }
            names.iter().for_each(|name| _ = uses.remove(name));
        }
        self.usage.put_back(workspace, uses);
    }

    async fn write_some(
        &self,
        workspace: &WorkspaceId,
        uses: Vec<(&SecretName, &Usage)>,
    ) -> Result<(), Error> {
        for _ in 0..ATTEMPTS {
            let mut keys = vec![Key::active_data_key()];
            for (name, _) in &uses {
                keys.extend([Key::metadata(name), Key::usage(name), Key::wanted(name)]);
            }
            let mut records = self.store.read(workspace, &keys).await?.into_iter();
            let mut next = || records.next().flatten();
            if next().is_none() {
                return Ok(());
            }
            let (mut operations, mut new) = (Vec::new(), Vec::new());
            for (name, usage) in &uses {
                let found = Found { secret: next(), used: next(), wanted: next() };
                if found.secret.is_none() && found.wanted.is_none() {
                    new.push(*name);
                }
                operations.extend(written(name, usage, found));
            }
            operations.extend(self.room(workspace, &uses, &new).await?);
            let batch = Batch { operations, bookkeeping: true, hasty: true, ..Batch::default() };
            if self.store.commit(workspace, batch).await? == Commit::Done {
                return Ok(());
            }
        }
        Err(Error::ConcurrentUpdate)
    }

    /// Makes room for new names without a secret: of those that follow a new one
    /// in the order of names, the least recent give way. To look at a sample
    /// bounds the cost.
    async fn room(
        &self,
        workspace: &WorkspaceId,
        uses: &[(&SecretName, &Usage)],
        new: &[&SecretName],
    ) -> Result<Vec<Operation>, Error> {
        let Some(first) = new.first() else { return Ok(Vec::new()) };
        let there = self.store.keys(workspace, Key::WANTED, MAX_WANTED + BATCH).await?.len();
        let excess = (there + new.len()).saturating_sub(MAX_WANTED);
        if excess == 0 {
            return Ok(Vec::new());
        }
        let after = Key::wanted(first);
        let mut sample = self.store.scan(workspace, Key::WANTED, Some(&after), SAMPLE).await?;
        if sample.len() < SAMPLE {
            let more = SAMPLE - sample.len();
            sample.extend(self.store.scan(workspace, Key::WANTED, None, more).await?);
        }
        let written: HashSet<_> = uses.iter().map(|(name, _)| Key::wanted(name)).collect();
        let mut old: HashMap<_, _> =
            sample.into_iter().filter(|(key, _)| !written.contains(key)).collect();
        let last = |key: &Key, record: &Record| {
            let name = SecretName::parse(key.as_str().strip_prefix(Key::WANTED)?).ok()?;
            codec::decode_usage(&name, &record.bytes).ok()?.last()
        };
        let mut by_age: Vec<_> =
            old.iter().map(|(key, one)| (last(key, one), key.clone())).collect();
        by_age.sort();
        by_age.truncate(excess);
        let evict = |(_, key): (_, Key)| {
            let expect = old.remove(&key).map(|record| Expect::Revision(record.revision));
            Operation { key, expect, write: Write::Delete }
        };
        Ok(by_age.into_iter().map(evict).collect())
    }
}

/// What a write does for one name: its usage goes where it belongs by whether
/// there is such a secret, and is nowhere else.
fn written(name: &SecretName, new: &Usage, found: Found) -> Vec<Operation> {
    let mut usage = stored_usage(name, found.used.as_ref(), found.wanted.as_ref());
    usage.merge(new);
    let expect = |record: Option<&Record>| {
        Some(record.map_or(Expect::Absent, |record| Expect::Revision(record.revision)))
    };
    let (used, wanted) = (Key::usage(name), Key::wanted(name));
    let (there, elsewhere) = match &found.secret {
        Some(_) => ((used, found.used), (wanted, found.wanted)),
        None => ((wanted, found.wanted), (used, found.used)),
    };
    let before = there.1.as_ref();
    let record = Record {
        revision: before.map_or_else(Revision::initial, |before| before.revision.next()),
        bytes: codec::encode_usage(name, &usage),
    };
    let mut operations = vec![
        Operation {
            key: Key::metadata(name),
            expect: expect(found.secret.as_ref()),
            write: Write::Nothing,
        },
        Operation { expect: expect(before), write: Write::Put(record), key: there.0 },
    ];
    if elsewhere.1.is_some() {
        let expect = expect(elsewhere.1.as_ref());
        operations.push(Operation { key: elsewhere.0, expect, write: Write::Delete });
    }
    operations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(number: usize) -> WorkspaceId {
        WorkspaceId::parse(&format!("ws-{number}")).unwrap()
    }

    fn name(number: usize) -> SecretName {
        SecretName::parse(&format!("KEY_{number}")).unwrap()
    }

    fn workflow(number: usize) -> WorkflowId {
        WorkflowId::parse(&format!("wf-{number}")).unwrap()
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp::new(seconds, 0).unwrap()
    }

    /// Names and workflows, counted anew.
    fn places(noted: &Noted) -> usize {
        let usages = noted.workspaces.values().flat_map(HashMap::values);
        usages.map(|usage| 1 + usage.workflows().len()).sum()
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_there_keeps_its_time() {
        let most = 50;
        let log = UsageLog { noted: Mutex::default(), most };
        log.asked(&workspace(0), [&name(0)], None, time(1));
        for number in 1..500 {
            let names = [name(number % 70), name(number % 7)];
            log.asked(&workspace(number % 3), &names, Some(&workflow(number)), time(2));
            let noted = log.lock();
            assert_eq!(noted.count, places(&noted));
            // The call that fills it is noted whole.
            assert!(noted.count <= most + 3, "{}", noted.count);
        }
        assert!(log.lock().unnoted > 400);
        log.asked(&workspace(0), [&name(0)], None, time(9));
        assert_eq!(log.lock().workspaces[&workspace(0)][&name(0)].last(), Some(time(9)));

        // What comes back finds the same bound, and newer notes keep.
        let taken = log.take();
        assert_eq!(log.lock().count, 0);
        assert!(log.lock().workspaces.is_empty());
        log.asked(&workspace(0), [&name(0)], None, time(11));
        for (workspace, uses) in taken.workspaces {
            log.put_back(&workspace, uses);
        }
        let noted = log.lock();
        assert_eq!(noted.count, places(&noted));
        assert!(noted.count <= most + 1 + Usage::MAX_WORKFLOWS);
        assert_eq!(noted.workspaces[&workspace(0)][&name(0)].last(), Some(time(11)));
    }

    #[test]
    fn nothing_is_noted_when_it_is_off() {
        let log = UsageLog::off();
        log.asked(&workspace(0), [&name(0)], Some(&workflow(0)), time(1));
        assert!(log.take().workspaces.is_empty());
    }
}
