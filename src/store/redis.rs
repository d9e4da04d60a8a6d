//! The Redis engine.
//!
//! All keys of a workspace share the hash tag `{workspace}`, so that Redis
//! Cluster keeps them on one node:
//!
//! | Key | Type | Holds |
//! |---|---|---|
//! | `<prefix>:{ws}:records` | hash | record key -> revision (8 bytes, big-endian), bytes |
//! | `<prefix>:{ws}:index` | sorted set | record keys, all of score 0, for byte order |
//! | `<prefix>:{ws}:revision` | string | number of the workspace's last change |
//! | `<prefix>:{ws}:request:<id>` | string, expires after 24 h | outcome of a request |
//! | `<prefix>:health` | never there | target of the health probe |
//!
//! The rights that an ACL user needs are in `deploy/redis-rights.acl`; for a
//! database other than 0, `+select` too.

mod call;
mod config;
mod connection;
mod link;
mod scripts;
mod shred;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use redis::{Cmd, Pipeline, Value};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use self::{
    call::{Call, commit_arguments, committed},
    link::{DISK_FAILS, Failure, Link},
    scripts::{COMMIT, Lua, SCAN, SHRED},
};
pub use self::{
    config::{ClientCertificate, KeyPrefix, Password, PasswordSource, RedisConfig, RedisUrl},
    connection::StartError,
};
use super::{Batch, Commit, Key, Record, Shredded, Store, StoreError, WorkspacesCursor};
use crate::domain::{RequestId, Revision, WorkspaceId};

const REQUEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys that one step of SCAN looks at.
const SCAN_COUNT: usize = 1_000;

const NOT_UNDERSTOOD: StoreError = StoreError::Malformed("answer of Redis");

/// Records in Redis.
///
/// A call takes at most the response timeout and then fails with
/// [`StoreError::Unavailable`]. A lost connection is replaced in the
/// background; reads are then tried once more, commits never, since the first
/// attempt may have been carried out.
pub struct RedisStore {
    config: Arc<RedisConfig>,
    link: Link,
    /// For scans: their answers are large, and nothing else waits behind them.
    scans: Link,
    replicated: Option<Replicated>,
    commit: Lua,
    scan: Lua,
    shred: Lua,
}

/// Where commits run if replicas must confirm them.
///
/// WAIT covers the writes of its own connection and blocks it. On the shared
/// connection it would hold all reads up, hence one of its own; and a commit is
/// sent only after the one before has its answer, hence the semaphore: a commit
/// that finds no time before its deadline is then not sent at all.
struct Replicated {
    link: Link,
    turn: Semaphore,
}

impl RedisStore {
    /// Connects and checks that this Redis keeps what it acknowledges: version
    /// 7.0 or later, a master, `maxmemory-policy noeviction`, an append-only
    /// file if demanded (otherwise a warning is logged). The same is checked of
    /// each later connection, which may lead to another server.
    ///
    /// # Errors
    /// There is no connection, or this Redis is refused.
    pub async fn connect(config: RedisConfig) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let link = Link::start(Arc::clone(&config)).await?;
        if !link.durable() {
            tracing::warn!(
                "Redis has no append-only file (appendonly no): \
                 SECRETS WRITTEN SINCE ITS LAST SNAPSHOT ARE LOST WHEN IT STOPS"
            );
        }
        let scans = Link::start(Arc::clone(&config)).await?;
        let replicated = match config.min_replicas {
            0 => None,
            _ => Some(Replicated {
                link: Link::start(Arc::clone(&config)).await?,
                turn: Semaphore::new(1),
            }),
        };
        let [commit, scan, shred] = [COMMIT, SCAN, SHRED].map(Lua::new);
        Ok(Self { config, link, scans, replicated, commit, scan, shred })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config.response_timeout
    }

    fn key(&self, workspace: &WorkspaceId, rest: &str) -> String {
        format!("{}:{{{workspace}}}:{rest}", self.config.prefix)
    }

    fn request_key(&self, workspace: &WorkspaceId, id: &RequestId) -> String {
        self.key(workspace, &format!("request:{id}"))
    }

    /// Runs a script that writes. Its reply, and whether as many replicas as
    /// demanded have what it wrote.
    async fn write(
        &self,
        call: Call<'_>,
    ) -> Result<(Option<Value>, Result<(), StoreError>), StoreError> {
        let deadline = self.deadline();
        let replies = match self.replicated.as_ref().filter(|_| call.replicas > 0) {
            None => call.run(&self.link, deadline).await?,
            Some(Replicated { link, turn }) => {
                let _turn = timeout_at(deadline, turn.acquire())
                    .await
                    .map_err(|_| StoreError::Unavailable("too many commits wait for replicas"))?;
                call.run(link, deadline).await?
            }
        };
        let mut replies = replies.into_iter();
        let reply = replies.next();
        let demanded = u64::from(call.replicas);
        let acknowledged = match replies.next() {
            Some(Value::Int(count)) => u64::try_from(count).unwrap_or(0),
            _ => 0,
        };
        let enough = if acknowledged < demanded {
            Err(StoreError::NotReplicated { acknowledged, demanded })
        } else {
            Ok(())
        };
        Ok((reply, enough))
    }

    /// Sends a command that may be carried out twice, once more if the
    /// connection broke.
    async fn ask(&self, link: &Link, command: Cmd) -> Result<Value, StoreError> {
        let deadline = self.deadline();
        let mut pipeline = Pipeline::new();
        pipeline.add_command(command);
        let replies = match link.send(&pipeline, deadline).await {
            Err(Failure::Lost(_)) => link.send(&pipeline, deadline).await?,
            other => other?,
        };
        replies.into_iter().next().ok_or(NOT_UNDERSTOOD)
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn read(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<Vec<Option<Record>>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(self.key(workspace, "records"));
        for key in keys {
            command.arg(key.as_str());
        }
        match self.ask(&self.link, command).await? {
            Value::Array(values) if values.len() == keys.len() => {
                values.into_iter().map(record).collect()
            }
            _ => Err(NOT_UNDERSTOOD),
        }
    }

    async fn commit(&self, workspace: &WorkspaceId, batch: Batch) -> Result<Commit, StoreError> {
        batch.check()?;
        let mut keys =
            ["records", "index", "revision"].map(|key| self.key(workspace, key)).to_vec();
        keys.extend(batch.request.as_ref().map(|(id, _)| self.request_key(workspace, id)));
        let replicas = if batch.hasty { 0 } else { self.config.min_replicas };
        let arguments = commit_arguments(&batch, replicas > 0);
        let call = Call { lua: &self.commit, keys, arguments, replicas };
        let (reply, acknowledged) = self.write(call).await?;
        let result = committed(reply, &batch.operations)?;
        if matches!(result, Commit::Done | Commit::Replayed(_)) {
            acknowledged?;
        }
        Ok(result)
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        self.destroy(workspace, &tombstone).await
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.key(workspace, "revision"));
        match self.ask(&self.link, command).await? {
            Value::Nil => Ok(None),
            number => match text(number)?.parse() {
                Ok(number) => Ok(Some(Revision::from_u64(number))),
                Err(_) => Err(StoreError::Malformed("revision of a workspace")),
            },
        }
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.request_key(workspace, id));
        match self.ask(&self.link, command).await? {
            Value::Nil => Ok(None),
            Value::BulkString(outcome) => Ok(Some(outcome)),
            _ => Err(NOT_UNDERSTOOD),
        }
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let [from, to] = bounds(prefix, after);
        let call = Call {
            lua: &self.scan,
            keys: vec![self.key(workspace, "records"), self.key(workspace, "index")],
            arguments: vec![from, to, count(limit).to_string().into_bytes()],
            replicas: 0,
        };
        let deadline = self.deadline();
        let replies = match call.run(&self.scans, deadline).await {
            Err(Failure::Lost(_)) => call.run(&self.scans, deadline).await?,
            other => other?,
        };
        let Some(Value::Array(values)) = replies.into_iter().next() else {
            return Err(NOT_UNDERSTOOD);
        };
        let mut values = values.into_iter();
        let mut found = Vec::new();
        while let (Some(key), Some(value)) = (values.next(), values.next()) {
            let record = record(value)?
                .ok_or(StoreError::Malformed("the index names a record that is not there"))?;
            found.push((Key::from_stored(text(key)?), record));
        }
        Ok(found)
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        let [from, to] = bounds(prefix, None);
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(self.key(workspace, "index")).arg(from).arg(to);
        command.arg("LIMIT").arg(0).arg(count(limit));
        match self.ask(&self.scans, command).await? {
            Value::Array(keys) => {
                keys.into_iter().map(|key| text(key).map(Key::from_stored)).collect()
            }
            _ => Err(NOT_UNDERSTOOD),
        }
    }

    async fn workspaces(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        let cursor = cursor.map_or("0", |cursor| cursor.0.as_str());
        let head = format!("{}:{{", self.config.prefix);
        let tail = "}:records";
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(format!("{head}*{tail}"));
        command.arg("COUNT").arg(SCAN_COUNT).arg("TYPE").arg("hash");
        let Value::Array(reply) = self.ask(&self.scans, command).await? else {
            return Err(NOT_UNDERSTOOD);
        };
        let Ok([next, Value::Array(keys)]) = <[Value; 2]>::try_from(reply) else {
            return Err(NOT_UNDERSTOOD);
        };
        let mut workspaces = Vec::new();
        for key in keys {
            let key = text(key)?;
            // What does not parse is not ours.
            let name = key.strip_prefix(&head).and_then(|key| key.strip_suffix(tail));
            workspaces.extend(name.and_then(|name| WorkspaceId::parse(name).ok()));
        }
        let next = text(next)?;
        Ok((workspaces, (next != "0").then_some(WorkspacesCursor(next))))
    }

    /// Deletes a key that is never there. That changes nothing, yet Redis
    /// refuses it for the same reasons as any write (replica, too few replicas)
    /// except full memory. That, and a failing disk, do not keep secrets from
    /// being resolved.
    async fn health(&self) -> Result<(), StoreError> {
        let links =
            [Some(&self.link), Some(&self.scans), self.replicated.as_ref().map(|r| &r.link)];
        for link in links.into_iter().flatten() {
            let mut command = redis::cmd("DEL");
            command.arg(format!("{}:health", self.config.prefix));
            match self.ask(link, command).await {
                Err(error) if error == DISK_FAILS => {}
                other => {
                    other?;
                }
            }
        }
        Ok(())
    }
}

/// A number that Redis can read.
fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Bounds of ZRANGEBYLEX: what starts with `prefix` and is greater than
/// `after`.
fn bounds(prefix: &str, after: Option<&Key>) -> [Vec<u8>; 2] {
    let from = match after {
        Some(key) if key.as_str() >= prefix => format!("({key}"),
        _ => format!("[{prefix}"),
    };
    // The least bytes above all that start with the prefix. No byte of UTF-8
    // is 255.
    let mut to = [b"(", prefix.as_bytes()].concat();
    match to.last_mut() {
        Some(last) if !prefix.is_empty() => *last += 1,
        _ => to = b"+".to_vec(),
    }
    [from.into_bytes(), to]
}

fn record(value: Value) -> Result<Option<Record>, StoreError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Record::from_stored(&bytes).map(Some),
        _ => Err(NOT_UNDERSTOOD),
    }
}

fn text(value: Value) -> Result<String, StoreError> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| NOT_UNDERSTOOD),
        _ => Err(NOT_UNDERSTOOD),
    }
}
