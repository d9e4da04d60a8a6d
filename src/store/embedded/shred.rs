//! Destroys a workspace.

use redb::{ReadableTable as _, WriteTransaction};

use super::{COUNTS, EXPIRIES, RECORDS, REQUESTS, REVISIONS, WORKSPACES, commit::corrupted};
use crate::store::{Key, Record, Shredded, first_revision, kind};

/// Greater than any key of a record and any request id.
const LAST: &str = "\u{10ffff}";

/// Removes all there is of a workspace, but for a tombstone that lies there
/// already.
pub(super) fn shred(
    transaction: &WriteTransaction,
    workspace: &str,
    tombstone: Record,
) -> Result<Shredded, redb::Error> {
    let at = Key::tombstone();
    let at = (workspace, at.as_str());
    let all = || (workspace, "")..=(workspace, LAST);
    let mut records = transaction.open_table(RECORDS)?;
    if let Some(found) = records.get(at)? {
        let tombstone = Record::from_stored(found.value().to_vec()).map_err(corrupted)?;
        return Ok(Shredded { records: 0, tombstone });
    }
    let mut destroyed = 0;
    records.retain_in::<(&str, &str), _>(all(), |_, _| {
        destroyed += 1;
        false
    })?;
    records.insert(at, tombstone.to_stored().as_slice())?;
    transaction.open_table(WORKSPACES)?.insert(workspace, 1)?;
    let mut counts = transaction.open_table(COUNTS)?;
    counts.retain_in::<(&str, &str), _>(all(), |_, _| false)?;
    counts.insert((workspace, kind(at.1)), 1)?;

    let mut revisions = transaction.open_table(REVISIONS)?;
    let last = revisions.get(workspace)?.map(|number| number.value());
    revisions.insert(workspace, last.unwrap_or_else(first_revision).saturating_add(1))?;

    let mut requests = transaction.open_table(REQUESTS)?;
    let mut expiries = transaction.open_table(EXPIRIES)?;
    for entry in requests.range::<(&str, &str)>(all())? {
        let (key, value) = entry?;
        expiries.remove((value.value().0, key.value().0, key.value().1))?;
    }
    requests.retain_in::<(&str, &str), _>(all(), |_, _| false)?;
    Ok(Shredded { records: destroyed, tombstone })
}
