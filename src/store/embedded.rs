//! The embedded engine: one file, for `dev` and single-node use.
//!
//! A commit is acknowledged once it is on disk. All access to the file runs on
//! the blocking pool, where a transaction goes on to its end even if nobody
//! waits for it any more.
//!
//! | Table | Key | Holds |
//! |---|---|---|
//! | `records` | workspace, record key | revision (8 bytes, big-endian), bytes |
//! | `workspaces` | workspace | number of its records, at least 1 |
//! | `counts` | workspace, kind of records | number of these, at least 1 |
//! | `revisions` | workspace | number of its last change |
//! | `requests` | workspace, request id | second at which it is forgotten, outcome |
//! | `expiries` | that second, workspace, request id | nothing |

mod commit;
mod shred;

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Bound,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _,
    TableDefinition, TableHandle as _, backends::FileBackend,
};

use self::commit::{apply, count, remembered};
use super::{Batch, Commit, Key, Record, Shredded, Store, StoreError, WorkspacesCursor, kind};
use crate::domain::{Clock, RequestId, Revision, WorkspaceId};

type Pair = (&'static str, &'static str);

const RECORDS: TableDefinition<'_, Pair, &[u8]> = TableDefinition::new("records");
const WORKSPACES: TableDefinition<'_, &str, u64> = TableDefinition::new("workspaces");
const COUNTS: TableDefinition<'_, Pair, u64> = TableDefinition::new("counts");
const REVISIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("revisions");
const REQUESTS: TableDefinition<'_, Pair, (i64, &[u8])> = TableDefinition::new("requests");
const EXPIRIES: TableDefinition<'_, (i64, &str, &str), ()> = TableDefinition::new("expiries");

/// Workspaces of one page.
const PAGE: usize = 1_000;

/// Most memory for cached pages.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Why the file was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process or an earlier store of this one has it open.
    #[error("the store file is in use by another process")]
    InUse,
    /// Others than the owner may read the file or replace it.
    #[error("the store file is not safe from other users: {0}")]
    Unsafe(&'static str),
    /// It is not a file of this engine, or it is damaged.
    #[error("the store file is damaged or of another format")]
    Malformed,
    /// The operating system refused.
    #[error("the store file cannot be opened: {0}")]
    Io(io::ErrorKind),
}

/// Records in one file.
///
/// When the disk is full or fails, the call tells so and the store then answers
/// [`StoreError::Unavailable`] until it is opened again.
pub struct EmbeddedStore {
    database: Arc<Database>,
    clock: Arc<dyn Clock>,
}

impl EmbeddedStore {
    /// Opens the file, or creates it with mode 0600. Blocks; repairs the file
    /// if it was not closed.
    ///
    /// # Errors
    /// The file is open elsewhere, is accessible to group or others, or is no
    /// regular file; its directory is missing or writable by group or others;
    /// or the file is damaged.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let backend = FileBackend::new(open_file(path)?).map_err(refusal)?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)
            .map_err(refusal)?;
        create_tables(&database).map_err(|_| OpenError::Malformed)?;
        Ok(Self { database: Arc::new(database), clock })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.database);
        tokio::task::spawn_blocking(move || work(&database))
            .await
            .map_err(|_| StoreError::Unavailable("embedded store is shutting down"))?
            .map_err(failure)
    }
}

fn open_file(path: &Path) -> Result<File, OpenError> {
    let io = |error: io::Error| OpenError::Io(error.kind());
    let directory = match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    if fs::metadata(directory).map_err(io)?.mode() & 0o022 != 0 {
        return Err(OpenError::Unsafe("group or others may write to its directory"));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = options.create_new(true).open(path).map_err(io)?;
            // Or else the name may be gone after a power failure.
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)?;
            Ok(file)
        }
        Err(error) => Err(io(error)),
        Ok(found) if !found.is_file() => Err(OpenError::Unsafe("it is not a regular file")),
        Ok(found) if found.mode() & 0o077 != 0 => {
            Err(OpenError::Unsafe("group or others have access to it; its mode must be 0600"))
        }
        Ok(_) => options.open(path).map_err(io),
    }
}

fn refusal(error: DatabaseError) -> OpenError {
    match redb::Error::from(error) {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => OpenError::InUse,
        redb::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => {
            OpenError::Io(error.kind())
        }
        _ => OpenError::Malformed,
    }
}

/// So that reads find every table. Files of an earlier version have no counts.
fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let counted = transaction.list_tables()?.any(|table| table.name() == COUNTS.name());
    let (records, mut counts) = (transaction.open_table(RECORDS)?, transaction.open_table(COUNTS)?);
    if !counted {
        for entry in records.iter()? {
            let entry = entry?;
            let (workspace, key) = entry.0.value();
            count(&mut counts, (workspace, kind(key)), 1, 0)?;
        }
    }
    drop((records, counts));
    transaction.open_table(WORKSPACES)?;
    transaction.open_table(REVISIONS)?;
    transaction.open_table(REQUESTS)?;
    transaction.open_table(EXPIRIES)?;
    Ok(transaction.commit()?)
}

fn failure(error: redb::Error) -> StoreError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        redb::Error::Io(e) if matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
            StoreError::Full
        }
        redb::Error::Corrupted(_) => StoreError::Malformed("embedded store"),
        _ => StoreError::Unavailable("embedded store failed"),
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        let (workspace, keys) = (workspace.clone(), keys.to_vec());
        let (revision, stored) = self
            .run(move |database| {
                let transaction = database.begin_read()?;
                let revisions = transaction.open_table(REVISIONS)?;
                let revision = revisions.get(workspace.as_str())?.map(|number| number.value());
                let records = transaction.open_table(RECORDS)?;
                let mut found = Vec::with_capacity(keys.len());
                for key in &keys {
                    let value = records.get((workspace.as_str(), key.as_str()))?;
                    found.push(value.map(|value| value.value().to_vec()));
                }
                Ok((revision, found))
            })
            .await?;
        let records = stored.into_iter().map(|s| s.map(Record::from_stored).transpose());
        Ok((revision.map(Revision::from_u64), records.collect::<Result<_, _>>()?))
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        batch.check()?;
        let (workspace, now) = (workspace.clone(), self.clock.now().seconds());
        self.run(move |database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let advances = batch.advances();
            let result = apply(&transaction, workspace.as_str(), batch, now)?;
            let mut revision = None;
            if result == Commit::Done {
                if advances {
                    let revisions = transaction.open_table(REVISIONS)?;
                    revision = revisions.get(workspace.as_str())?.map(|number| number.value());
                }
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok((result, revision.map(Revision::from_u64)))
        })
        .await
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        let workspace = workspace.clone();
        self.run(move |database| {
            let revisions = database.begin_read()?.open_table(REVISIONS)?;
            let number = revisions.get(workspace.as_str())?.map(|number| number.value());
            Ok(number.map(Revision::from_u64))
        })
        .await
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        let workspace = workspace.clone();
        self.run(move |database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let shredded = shred::shred(&transaction, workspace.as_str(), tombstone)?;
            transaction.commit()?;
            Ok(shredded)
        })
        .await
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let (workspace, id) = (workspace.clone(), id.clone());
        let now = self.clock.now().seconds();
        self.run(move |database| {
            let requests = database.begin_read()?.open_table(REQUESTS)?;
            remembered(&requests, (workspace.as_str(), id.as_str()), now)
        })
        .await
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let (workspace, prefix) = (workspace.clone(), prefix.to_owned());
        let after = after.filter(|key| key.as_str() >= prefix.as_str()).cloned();
        let stored = self
            .run(move |database| {
                let records = database.begin_read()?.open_table(RECORDS)?;
                let workspace = workspace.as_str();
                let from = match &after {
                    Some(key) => Bound::Excluded((workspace, key.as_str())),
                    None => Bound::Included((workspace, prefix.as_str())),
                };
                let mut found = Vec::new();
                for entry in records.range::<(&str, &str)>((from, Bound::Unbounded))?.take(limit) {
                    let (at, value) = entry?;
                    let (owner, key) = at.value();
                    if owner != workspace || !key.starts_with(&prefix) {
                        break;
                    }
                    found.push((Key::from_stored(key.to_owned()), value.value().to_vec()));
                }
                Ok(found)
            })
            .await?;
        stored.into_iter().map(|(key, s)| Ok((key, Record::from_stored(s)?))).collect()
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        let found = self.scan(workspace, prefix, None, limit).await?;
        Ok(found.into_iter().map(|(key, _)| key).collect())
    }

    async fn workspaces(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        let after = cursor.map_or_else(String::new, |cursor| cursor.0.clone());
        let names = self
            .run(move |database| {
                let workspaces = database.begin_read()?.open_table(WORKSPACES)?;
                let range = (Bound::Excluded(after.as_str()), Bound::Unbounded);
                let mut names = Vec::new();
                for entry in workspaces.range::<&str>(range)?.take(PAGE) {
                    names.push(entry?.0.value().to_owned());
                }
                Ok(names)
            })
            .await?;
        let next = names.get(PAGE - 1).cloned().map(WorkspacesCursor);
        let parse = |name: String| {
            WorkspaceId::parse(&name).map_err(|_| StoreError::Malformed("workspace name"))
        };
        Ok((names.into_iter().map(parse).collect::<Result<_, _>>()?, next))
    }

    /// Commits nothing, which reaches the disk all the same.
    async fn health(&self) -> Result<(), StoreError> {
        self.run(|database| Ok(database.begin_write()?.commit()?)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_failing_one() {
        let io = |kind: io::ErrorKind| failure(redb::Error::Io(kind.into()));
        assert_eq!(io(io::ErrorKind::StorageFull), StoreError::Full);
        assert_eq!(io(io::ErrorKind::QuotaExceeded), StoreError::Full);
        let failed = StoreError::Unavailable("embedded store failed");
        assert_eq!(io(io::ErrorKind::Other), failed);
        assert_eq!(failure(redb::Error::PreviousIo), failed);
        let damaged = failure(redb::Error::Corrupted("page 7".to_owned()));
        assert_eq!(damaged, StoreError::Malformed("embedded store"));
    }
}
