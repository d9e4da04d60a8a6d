//! Calls of the scripts: what is sent, and what the replies mean.

use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::{
    NOT_UNDERSTOOD, REQUEST_TTL, link::Failure, masters::Masters, node::Lane, scripts::Lua,
};
use crate::{
    domain::Revision,
    store::{Batch, Commit, Expect, Operation, StoreError, Trail, Write, first_revision},
};

/// A script with its keys, all of one slot, and arguments.
pub(super) struct Call<'a> {
    pub(super) lua: &'a Lua,
    pub(super) slot: u16,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<Vec<u8>>,
    /// Replicas that must confirm.
    pub(super) replicas: u32,
}

impl Call<'_> {
    /// Runs it, again if the connection broke and it may be carried out twice.
    pub(super) async fn run(
        &self,
        masters: &Masters,
        lane: (Lane, bool),
        deadline: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let send = async |verb, script: &str| {
            let commands = |commands: &mut Pipeline| self.add(commands, verb, script, deadline);
            masters.send(self.slot, lane, deadline, commands).await
        };
        match send("EVALSHA", &self.lua.hash).await {
            // A proof that nothing has run.
            Err(Failure::NoScript) => send("EVAL", self.lua.text).await,
            other => other,
        }
    }

    fn add(&self, commands: &mut Pipeline, verb: &str, script: &str, deadline: Instant) {
        commands.cmd(verb).arg(script).arg(self.keys.len()).arg(&self.keys).arg(&self.arguments);
        if self.replicas > 0 {
            // Half of what is left, so that too few replicas are told as such.
            let patience = deadline.saturating_duration_since(Instant::now()) / 2;
            // 0 would wait for ever.
            let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1);
            commands.cmd("WAIT").arg(self.replicas).arg(millis);
        }
    }
}

/// `ARGV` of the commit script.
pub(super) fn commit_arguments(batch: &Batch, replicated: bool) -> Vec<Vec<u8>> {
    let flag = |set: bool| if set { b"1".to_vec() } else { Vec::new() };
    let mut arguments = vec![
        flag(batch.expect_empty),
        batch.quota.map_or_else(Vec::new, |quota| quota.max.to_string().into_bytes()),
        batch.request.as_ref().map_or_else(Vec::new, |(_, outcome)| outcome.clone()),
        REQUEST_TTL.as_millis().to_string().into_bytes(),
        flag(replicated),
        first_revision().to_string().into_bytes(),
        batch.quota.map_or_else(Vec::new, |quota| quota.kind.as_bytes().to_vec()),
        batch.trail.as_ref().map_or_else(Vec::new, |trail| trail.record().to_stored()),
        batch.trail.as_ref().map_or_else(Vec::new, |trail| trail.keep.to_string().into_bytes()),
        Trail::DROP.to_string().into_bytes(),
        flag(batch.bookkeeping),
    ];
    for operation in &batch.operations {
        arguments.push(operation.key.as_str().as_bytes().to_vec());
        arguments.push(match operation.expect {
            None => Vec::new(),
            Some(Expect::Absent) => b"absent".to_vec(),
            Some(Expect::Revision(revision)) => revision.as_u64().to_be_bytes().to_vec(),
        });
        let (write, value) = match &operation.write {
            Write::Put(record) => ("put", record.to_stored()),
            Write::Delete => ("delete", Vec::new()),
            Write::Nothing => ("nothing", Vec::new()),
        };
        arguments.extend([write.as_bytes().to_vec(), value]);
    }
    arguments
}

/// Reads the reply of the commit script; with the revision that the workspace got.
pub(super) fn committed(
    reply: Option<Value>,
    operations: &[Operation],
) -> Result<(Commit, Option<Revision>), StoreError> {
    let Some(Value::Array(reply)) = reply else {
        return Err(NOT_UNDERSTOOD);
    };
    let mut reply = reply.into_iter();
    let Some(Value::BulkString(word)) = reply.next() else {
        return Err(NOT_UNDERSTOOD);
    };
    let commit = match (word.as_slice(), reply.next()) {
        (b"done", Some(Value::Int(number))) => {
            let number = u64::try_from(number).map_err(|_| NOT_UNDERSTOOD)?;
            return Ok((Commit::Done, (number > 0).then(|| Revision::from_u64(number))));
        }
        (b"replayed", Some(Value::BulkString(outcome))) => Ok(Commit::Replayed(outcome)),
        (b"conflict", Some(Value::Int(index))) => usize::try_from(index)
            .ok()
            .and_then(|index| operations.get(index))
            .map(|operation| Commit::Conflict(operation.key.clone()))
            .ok_or(NOT_UNDERSTOOD),
        (b"not_empty", None) => Ok(Commit::NotEmpty),
        (b"full", None) => Ok(Commit::Full),
        (b"shredded", None) => Ok(Commit::Shredded),
        (b"malformed", None) => Err(StoreError::Malformed("a record is too short")),
        (b"denied", None) => Err(denied()),
        _ => Err(NOT_UNDERSTOOD),
    };
    Ok((commit?, None))
}

/// A right is missing; told before anything was written.
pub(super) fn denied() -> StoreError {
    StoreError::Unavailable("Redis denies access")
}
