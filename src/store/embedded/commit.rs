//! Writes batches into a transaction.

use std::collections::BTreeMap;

use redb::{ReadableTable, Table, WriteTransaction};

use super::{COUNTS, EXPIRIES, Pair, RECORDS, REQUESTS, REVISIONS, WORKSPACES};
use crate::store::{
    Batch, Commit, Expect, Key, Record, StoreError, Trail, Write, first_revision, kind,
};

const REQUEST_TTL_SECONDS: i64 = 24 * 60 * 60;

/// Expired request ids that one commit clears away at most: more than it can
/// add, so they do not pile up.
const PURGE: usize = 16;

/// Checks a batch and writes it into the transaction. Whatever comes back but
/// `Done`, the transaction must be aborted.
pub(super) fn apply(
    transaction: &WriteTransaction,
    workspace: &str,
    batch: Batch,
    now: i64,
) -> Result<Commit, redb::Error> {
    let mut records = transaction.open_table(RECORDS)?;
    if records.get((workspace, Key::tombstone().as_str()))?.is_some() {
        return Ok(Commit::Shredded);
    }

    let mut requests = transaction.open_table(REQUESTS)?;
    if let Some((id, _)) = &batch.request
        && let Some(outcome) = remembered(&requests, (workspace, id.as_str()), now)?
    {
        return Ok(Commit::Replayed(outcome));
    }

    let mut workspaces = transaction.open_table(WORKSPACES)?;
    let before = workspaces.get(workspace)?.map_or(0, |count| count.value());
    if batch.expect_empty && before > 0 {
        return Ok(Commit::NotEmpty);
    }

    for operation in &batch.operations {
        let current = match records.get((workspace, operation.key.as_str()))? {
            Some(stored) => {
                Some(Record::from_stored(stored.value().to_vec()).map_err(corrupted)?.revision)
            }
            None => None,
        };
        let met = match operation.expect {
            None => true,
            Some(Expect::Absent) => current.is_none(),
            Some(Expect::Revision(revision)) => current == Some(revision),
        };
        if !met {
            return Ok(Commit::Conflict(operation.key.clone()));
        }
    }

    // Of each kind, how many are added and removed.
    let mut changed = BTreeMap::<&str, (u64, u64)>::new();
    for operation in &batch.operations {
        let at = (workspace, operation.key.as_str());
        let (added, removed) = changed.entry(kind(at.1)).or_default();
        match &operation.write {
            Write::Put(record) => {
                *added += u64::from(records.insert(at, record.to_stored().as_slice())?.is_none());
            }
            Write::Delete => *removed += u64::from(records.remove(at)?.is_some()),
            Write::Nothing => {}
        }
    }
    let mut counts = transaction.open_table(COUNTS)?;
    let mut after = before;
    for (kind, (added, removed)) in changed {
        after = (after + added).saturating_sub(removed);
        let left = count(&mut counts, (workspace, kind), added, removed)?;
        let full = batch.quota.is_some_and(|quota| quota.kind == kind && left > quota.max);
        if added > 0 && full {
            return Ok(Commit::Full);
        }
    }

    if batch.advances() {
        let mut revisions = transaction.open_table(REVISIONS)?;
        let last = revisions.get(workspace)?.map(|number| number.value());
        let number = last.unwrap_or_else(first_revision).saturating_add(1);
        revisions.insert(workspace, number)?;
        if let Some(trail) = &batch.trail {
            let dropped = append(&mut records, &mut counts, workspace, number, trail)?;
            after = (after + 1).saturating_sub(dropped);
        }
    }
    match after {
        0 => workspaces.remove(workspace)?,
        _ => workspaces.insert(workspace, after)?,
    };

    let mut expiries = transaction.open_table(EXPIRIES)?;
    let mut expired = Vec::new();
    for entry in expiries.range(..(now.saturating_add(1), "", ""))?.take(PURGE) {
        let entry = entry?.0;
        let (second, workspace, id) = entry.value();
        expired.push((second, workspace.to_owned(), id.to_owned()));
    }
    for (second, workspace, id) in &expired {
        expiries.remove((*second, workspace.as_str(), id.as_str()))?;
        requests.remove((workspace.as_str(), id.as_str()))?;
    }
    if let Some((id, outcome)) = &batch.request {
        let at = (workspace, id.as_str());
        let expiry = now.saturating_add(REQUEST_TTL_SECONDS);
        // An id that is used anew before it was cleared away.
        if let Some(old) = requests.insert(at, (expiry, outcome.as_slice()))? {
            expiries.remove((old.value().0, at.0, at.1))?;
        }
        expiries.insert((expiry, at.0, at.1), ())?;
    }
    Ok(Commit::Done)
}

/// Appends to the trail; how many old entries made room.
fn append(
    records: &mut Table<'_, Pair, &[u8]>,
    counts: &mut Table<'_, Pair, u64>,
    workspace: &str,
    number: u64,
    trail: &Trail,
) -> Result<u64, redb::Error> {
    let entry = Key::trail(number);
    records.insert((workspace, entry.as_str()), trail.record().to_stored().as_slice())?;
    let kept = count(counts, (workspace, Key::TRAIL), 1, 0)?;
    let surplus = kept.saturating_sub(trail.keep).min(Trail::DROP);
    // The newest entry has the least key.
    let (least, most) = ((workspace, Key::TRAIL), (workspace, Key::TRAIL_END));
    for _ in 0..surplus {
        let oldest = match records.range::<(&str, &str)>(least..most)?.next_back() {
            Some(entry) => entry?.0.value().1.to_owned(),
            None => break,
        };
        records.remove((workspace, oldest.as_str()))?;
    }
    count(counts, (workspace, Key::TRAIL), 0, surplus)?;
    Ok(surplus)
}

/// Counts records of a kind that came and went; how many there are then.
pub(super) fn count(
    counts: &mut Table<'_, Pair, u64>,
    of: (&str, &str),
    added: u64,
    removed: u64,
) -> Result<u64, redb::Error> {
    let before = counts.get(of)?.map_or(0, |count| count.value());
    let after = (before + added).saturating_sub(removed);
    match after {
        0 => counts.remove(of)?,
        _ => counts.insert(of, after)?,
    };
    Ok(after)
}

pub(super) fn remembered(
    requests: &impl ReadableTable<Pair, (i64, &'static [u8])>,
    at: (&str, &str),
    now: i64,
) -> Result<Option<Vec<u8>>, redb::Error> {
    let found = requests.get(at)?;
    Ok(found.and_then(|found| {
        let (expiry, outcome) = found.value();
        (now < expiry).then(|| outcome.to_vec())
    }))
}

pub(super) fn corrupted(_: StoreError) -> redb::Error {
    redb::Error::Corrupted(String::new())
}
