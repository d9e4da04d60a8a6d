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
//! | `<prefix>:health`, in a cluster `<prefix>:{<number>}:health` | never there | target of probes |
//!
//! [`masters`] says where the master of a slot is: at a fixed address, where
//! sentinels say, or where the nodes of a cluster say. All else is the same.
//!
//! The rights that an ACL user needs are in `deploy/redis-rights.acl`; that of
//! sentinels, in `deploy/sentinel-rights.acl`.

mod call;
mod config;
mod connection;
mod health;
mod link;
mod lookout;
mod masters;
mod node;
mod pages;
mod scripts;
mod shred;
mod slots;
mod url;
mod whole_slots;

use std::{io::Write as _, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use redis::{Cmd, Pipeline, RedisWrite as _, Value};
use tokio::time::Instant;

use self::{
    call::{Call, commit_arguments, committed},
    masters::Masters,
    node::Lane,
    scripts::{COMMIT, Lua, SCAN, SHRED},
    slots::{Tags, slot},
};
pub use self::{
    config::{ClientCertificate, KeyPrefix, Password, PasswordSource, RedisConfig},
    connection::StartError,
    url::RedisUrl,
};
use super::{Batch, Commit, Key, Record, Shredded, Store, StoreError, WorkspacesCursor};
use crate::domain::{RequestId, Revision, WorkspaceId};

const REQUEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

const NOT_UNDERSTOOD: StoreError = StoreError::Malformed("answer of Redis");

/// Records in Redis: one, one that sentinels watch over, or a cluster.
///
/// A call takes at most the response timeout and then fails with
/// [`StoreError::Unavailable`]. A lost connection is replaced in the
/// background; reads are then tried once more, commits never, since the first
/// attempt may have been carried out. What a Redis refused, since it is no
/// master or the slot is elsewhere, was not carried out: reads and commits are
/// then sent to the right one.
///
/// Only masters are asked. One that the sentinels have replaced, or the cluster,
/// and that does not know it, is asked for as long as it takes to learn of that,
/// about 1 s; its answers may be old until then. If it is cut off from them
/// together with this process, that lasts until the cut is healed (of a cluster
/// node, until its node timeout), and what it acknowledged is lost then, unless
/// the replicas demanded are all there are.
pub struct RedisStore {
    config: Arc<RedisConfig>,
    masters: Masters,
    /// Of a cluster.
    tags: Option<Tags>,
    commit: Lua,
    scan: Lua,
    shred: Lua,
}

impl RedisStore {
    /// Finds the masters, connects and checks that each keeps what it
    /// acknowledges: version 7.0 or later, a master, `maxmemory-policy
    /// noeviction`, an append-only file if demanded (otherwise a warning is
    /// logged). The same is checked of each later connection, which may lead to
    /// another server. Masters of a cluster may be out of reach, but not all.
    ///
    /// # Errors
    /// There is no connection, or this Redis is refused.
    pub async fn connect(config: RedisConfig) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let (masters, durable) = Masters::connect(Arc::clone(&config)).await?;
        if !durable {
            tracing::warn!(
                "Redis has no append-only file (appendonly no): \
                 SECRETS WRITTEN SINCE ITS LAST SNAPSHOT ARE LOST WHEN IT STOPS"
            );
        }
        let [commit, scan, shred] = [COMMIT, SCAN, SHRED].map(Lua::new);
        let tags = config.url.is_cluster().then(Tags::find);
        Ok(Self { config, masters, tags, commit, scan, shred })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config.response_timeout
    }

    fn key(&self, workspace: &WorkspaceId, rest: &str) -> String {
        self.key_parts(workspace, rest).concat()
    }

    fn key_parts<'a>(&'a self, workspace: &'a WorkspaceId, rest: &'a str) -> [&'a str; 5] {
        [self.config.prefix.as_str(), ":{", workspace.as_str(), "}:", rest]
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
        let lane = if call.replicas > 0 { Lane::Confirmed } else { Lane::Calls };
        let replies = call.run(&self.masters, (lane, false), self.deadline()).await?;
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

    fn revision_command(&self, workspace: &WorkspaceId) -> Cmd {
        self.command("GET", workspace, "revision", &[])
    }

    /// A command about a key of a workspace. Its room is taken at once: growing, it would
    /// be moved several times.
    fn command(&self, name: &str, workspace: &WorkspaceId, rest: &str, fields: &[Key]) -> Cmd {
        let key = self.key_parts(workspace, rest);
        let bytes = fields.iter().map(|field| field.as_str().len());
        let bytes = bytes.chain(key.map(str::len)).chain([name.len()]).sum();
        let mut command = Cmd::with_capacity(fields.len() + 2, bytes);
        command.arg(name);
        let mut place = command.writer_for_next_arg();
        for part in key {
            // A buffer in memory takes all.
            let _ = place.write_all(part.as_bytes());
        }
        drop(place);
        for field in fields {
            command.arg(field.as_str());
        }
        command
    }

    /// Sends a command that may be carried out twice.
    async fn ask(&self, slot: u16, lane: Lane, command: Cmd) -> Result<Value, StoreError> {
        let add = |pipeline: &mut Pipeline| _ = pipeline.add_command(command.clone());
        let mut replies = self.ask_all(slot, lane, add).await?.into_iter();
        replies.next().ok_or(NOT_UNDERSTOOD)
    }

    /// The same for several, in one round trip and in this order. Where the first is
    /// answered, others may be refused: while a slot moves, each key does by itself.
    async fn ask_all(
        &self,
        slot: u16,
        lane: Lane,
        commands: impl Fn(&mut Pipeline) + Send + Sync,
    ) -> Result<Vec<Value>, StoreError> {
        Ok(pin!(self.masters.send(slot, (lane, true), self.deadline(), commands)).await?)
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        if keys.is_empty() {
            return Ok((self.revision(workspace).await?, Vec::new()));
        }
        let (slot, lane) = (slot(workspace.as_str()), Lane::Calls);
        let commands = |pipeline: &mut Pipeline| {
            pipeline.add_command(self.command("HMGET", workspace, "records", keys));
            pipeline.add_command(self.revision_command(workspace));
        };
        let replies = pin!(self.ask_all(slot, lane, commands)).await?;
        let Ok([values, number]) = <[Value; 2]>::try_from(replies) else {
            return Err(NOT_UNDERSTOOD);
        };
        let number = match number {
            Value::ServerError(_) => self.ask(slot, lane, self.revision_command(workspace)).await?,
            number => number,
        };
        match values {
            Value::Array(values) if values.len() == keys.len() => {
                let records = values.into_iter().map(record).collect::<Result<_, _>>()?;
                Ok((revision(number)?, records))
            }
            _ => Err(NOT_UNDERSTOOD),
        }
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        batch.check()?;
        let mut keys =
            ["records", "index", "revision"].map(|key| self.key(workspace, key)).to_vec();
        keys.extend(batch.request.as_ref().map(|(id, _)| self.request_key(workspace, id)));
        let replicas = if batch.hasty { 0 } else { self.config.min_replicas };
        let arguments = commit_arguments(&batch, replicas > 0);
        let slot = slot(workspace.as_str());
        let call = Call { lua: &self.commit, slot, keys, arguments, replicas };
        let (reply, acknowledged) = self.write(call).await?;
        let result = committed(reply, &batch.operations)?;
        if matches!(result.0, Commit::Done | Commit::Replayed(_)) {
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
        let command = self.revision_command(workspace);
        revision(self.ask(slot(workspace.as_str()), Lane::Calls, command).await?)
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.request_key(workspace, id));
        match self.ask(slot(workspace.as_str()), Lane::Calls, command).await? {
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
            slot: slot(workspace.as_str()),
            keys: vec![self.key(workspace, "records"), self.key(workspace, "index")],
            arguments: vec![from, to, count(limit).to_string().into_bytes()],
            replicas: 0,
        };
        let replies = call.run(&self.masters, (Lane::Scans, true), self.deadline()).await?;
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
        match self.ask(slot(workspace.as_str()), Lane::Scans, command).await? {
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
        self.page(cursor).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.probe_any().await
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

fn revision(number: Value) -> Result<Option<Revision>, StoreError> {
    match number {
        Value::Nil => Ok(None),
        number => match text(number)?.parse() {
            Ok(number) => Ok(Some(Revision::from_u64(number))),
            Err(_) => Err(StoreError::Malformed("revision of a workspace")),
        },
    }
}

fn record(value: Value) -> Result<Option<Record>, StoreError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Record::from_stored(bytes).map(Some),
        _ => Err(NOT_UNDERSTOOD),
    }
}

fn text(value: Value) -> Result<String, StoreError> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| NOT_UNDERSTOOD),
        _ => Err(NOT_UNDERSTOOD),
    }
}
