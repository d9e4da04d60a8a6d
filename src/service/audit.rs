//! The audit stream: who did what to which secret.
//!
//! | Call | Lines |
//! |---|---|
//! | Create, Get, Update, Delete, Undelete, Rollback, ListSecretVersions, AcquireRefreshLease, ReleaseRefreshLease | one, with the secret, also if it is not granted or fails |
//! | List, Check, and each call of KeyService | one, without a secret; two of Reencrypt and Rewrap, with outcome `started` and at the end |
//! | ListSecretUsage | one, with the secret if it asks for one |
//! | ListAuditEvents | one, with the secret if the call names one |
//! | Resolve | one per credential, with the outcome of the call |
//! | Resolve that is not granted | one; with the secret if the call names only one |
//! | Render | one per name in the document and one per credential, with the outcome of the call |
//! | Prepare | one, without a secret, and one per secret whose value was found |
//! | Redact | when it opens, one per name, or one without a secret for all; when it ends, one per secret whose value was found |
//! | Render, Prepare or Redact that is not granted or asks for too much | one, without a secret |
//! | fields or metadata refused before anything is looked up | one, without workspace and secret |
//! | no call: the store has gone back | one per workspace, within seconds of the call that saw it |
//! | no identity | none, or anybody could fill the stream: the log tells of them |
//! | a message that does not decode or is too large; `UNIMPLEMENTED`; a call whose deadline has passed when it comes | none |
//! | `OVERLOADED`, `RATE_LIMITED` | none, or a flood would fill the stream: the log tells of them |
//!
//! A call that comes to its deadline leaves its lines, with `TIMEOUT`. A change
//! goes on if its commit was begun by then; its line tells what became of it. A
//! call given up by its client goes on if it is a change; any other leaves its
//! lines only if they were handed in by then. Without them no value leaves.
//!
//! Each line is a JSON object in pure ASCII (other characters as `\u` escapes,
//! so that no log shipper splits or reorders a line). Fields, those not known
//! left out:
//!
//! | Field | Holds |
//! |---|---|
//! | `time` | RFC 3339, UTC, milliseconds |
//! | `action` | `create`, `get`, `update`, `delete`, `undelete`, `rollback`, `list`, `list_versions`, `list_usage`, `list_audit_events`, `resolve`, `render`, `check`, `prepare`, `redact`, `acquire_lease`, `release_lease`, `describe_keys`, `rotate_data_key`, `reencrypt`, `rewrap_data_keys` or `shred`; `store_regressed` |
//! | `outcome` | `ok`; `validated`: `validate_only`, nothing was stored; `found`: the value was, in a template or stream; `older` or `shredded_data_back` of `store_regressed`; or the reason of the error (`NOT_GRANTED`, ...) |
//! | `caller` | SPIFFE id of the client's certificate, `workflow-secrets` for no call; in every line |
//! | `actor` | the person behind the call, as the caller tells it; not proven |
//! | `workspace`, `secret`, `version` | what was touched |
//! | `alias` | resolve, render: the key under which the value was returned |
//! | `matches` | prepare, redact: how often the value was found |
//! | `workflow_id`, `run_id` | resolve, render, redact: as the caller tells them |
//! | `holder` | acquire_lease: for whom, as the caller tells it |
//! | `trace_id` | W3C trace id, as the caller tells it |
//!
//! No field has a type for secret values. Names, ids and actors are as callers
//! tell them: whoever puts a value where a name belongs finds it here.
//!
//! A line whose call was told [`AuditUnavailable`] may still have been written,
//! or be written later. After a failed write the stream may hold part of a
//! line; the next line starts on a line of its own.

mod output;

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::output::Output;
use super::access::Caller;
use crate::{
    domain::{
        Actor, Alias, CallerId, LeaseHolder, RunId, SecretName, Timestamp, TraceId, WorkflowId,
        WorkspaceId,
    },
    metrics::Metrics,
};

/// What a call did to one secret, or tried to; to a whole workspace, if it is
/// a List; or how it was refused.
#[derive(Debug, Clone)]
pub struct AuditEvent {
    /// When.
    pub time: Timestamp,
    /// Who.
    pub caller: CallerId,
    /// The person behind the caller, unproven.
    pub actor: Option<Actor>,
    /// Where; `None` if fields of the call were refused.
    pub workspace: Option<WorkspaceId>,
    /// Which secret; `None` also for List, and for a Resolve of several that is
    /// not granted.
    pub secret: Option<SecretName>,
    /// Which version was read or written.
    pub version: Option<u64>,
    /// What.
    pub action: Action,
    /// `ok`; `validated`, if nothing was to be stored; or the reason of the
    /// error.
    pub outcome: &'static str,
    /// Resolve, Render: the key of the value in the answer.
    pub alias: Option<Alias>,
    /// Prepare, Redact: how often the secret's value was found.
    pub matches: Option<u64>,
    /// Resolve, Render, Redact: for which workflow.
    pub workflow_id: Option<WorkflowId>,
    /// Resolve, Render, Redact: for which run.
    pub run_id: Option<RunId>,
    /// AcquireRefreshLease: for whom.
    pub holder: Option<LeaseHolder>,
    /// The trace the call belongs to.
    pub trace_id: Option<TraceId>,
}

impl AuditEvent {
    /// An event of which nothing else is known yet.
    pub fn new(time: Timestamp, caller: &Caller, action: Action, outcome: &'static str) -> Self {
        let Caller { id, actor, trace_id, .. } = caller.clone();
        Self {
            time,
            caller: id,
            actor,
            workspace: None,
            secret: None,
            version: None,
            action,
            outcome,
            alias: None,
            matches: None,
            workflow_id: None,
            run_id: None,
            holder: None,
            trace_id,
        }
    }
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// CreateSecret.
    Create,
    /// GetSecret.
    Get,
    /// UpdateSecret.
    Update,
    /// DeleteSecret.
    Delete,
    /// UndeleteSecret.
    Undelete,
    /// RollbackSecret.
    Rollback,
    /// No call: the end of a deleted secret. In trails only.
    Purge,
    /// ListSecrets.
    List,
    /// ListSecretVersions.
    ListVersions,
    /// ListAuditEvents.
    ListAuditEvents,
    /// ResolveSecrets.
    Resolve,
    /// AcquireRefreshLease.
    AcquireLease,
    /// ReleaseRefreshLease.
    ReleaseLease,
    /// ListSecretUsage.
    ListUsage,
    /// RenderTemplate.
    Render,
    /// CheckReferences.
    Check,
    /// PrepareTemplate.
    Prepare,
    /// Redact.
    Redact,
    /// DescribeWorkspaceKeys.
    DescribeKeys,
    /// RotateDataKey.
    RotateDataKey,
    /// ReencryptWorkspace.
    Reencrypt,
    /// RewrapDataKeys.
    RewrapDataKeys,
    /// ShredWorkspace.
    Shred,
    /// No call: the store has gone back behind what was seen of it.
    StoreRegressed,
}

impl Action {
    /// The word in the audit stream.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Undelete => "undelete",
            Self::Rollback => "rollback",
            Self::Purge => "purge",
            Self::List => "list",
            Self::ListVersions => "list_versions",
            Self::ListAuditEvents => "list_audit_events",
            Self::Resolve => "resolve",
            Self::AcquireLease => "acquire_lease",
            Self::ReleaseLease => "release_lease",
            Self::ListUsage => "list_usage",
            Self::Render => "render",
            Self::Check => "check",
            Self::Prepare => "prepare",
            Self::Redact => "redact",
            Self::DescribeKeys => "describe_keys",
            Self::RotateDataKey => "rotate_data_key",
            Self::Reencrypt => "reencrypt",
            Self::RewrapDataKeys => "rewrap_data_keys",
            Self::Shred => "shred",
            Self::StoreRegressed => "store_regressed",
        }
    }
}

/// The audit stream could not be written to in time; the same call may succeed
/// later. Whether the lines were or will be written is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("audit stream unavailable: {0}")]
pub struct AuditUnavailable(&'static str);

/// Where the audit stream goes.
pub enum AuditSink {
    /// Standard output, unbuffered. Nothing else may write there.
    Stdout,
    /// A regular file, created with mode 0600, only ever appended to, and
    /// opened again when the path names another file or none (log rotation).
    File(PathBuf),
    /// Any writer, taken to be unbuffered.
    Writer(Box<dyn Write + Send>),
}

/// Limits of the audit stream.
#[derive(Debug, Clone, Copy)]
pub struct AuditConfig {
    /// A write not done by then fails.
    pub deadline: Duration,
    /// Lines waiting to be written, in bytes; more are refused at once.
    pub queue_bytes: usize,
    /// Once a shared write has this many bytes, no further call joins it.
    pub batch_bytes: usize,
}

impl Default for AuditConfig {
    /// 1 s, 8 MiB and 256 KiB.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(1),
            queue_bytes: 8 * 1024 * 1024,
            batch_bytes: 256 * 1024,
        }
    }
}

/// The audit stream. A thread of its own writes; calls that wait at the same
/// time share one write.
pub struct AuditLog {
    queue: mpsc::UnboundedSender<Entry>,
    /// Bounds the queue by bytes.
    room: Arc<Semaphore>,
    capacity: u32,
    deadline: Duration,
    metrics: Metrics,
}

/// The lines of one call.
struct Entry {
    lines: Vec<u8>,
    ack: oneshot::Sender<Result<(), AuditUnavailable>>,
    _room: OwnedSemaphorePermit,
}

impl AuditLog {
    /// Opens the sink and starts the writer, which ends when the log is
    /// dropped and its queue is written.
    ///
    /// # Errors
    /// The file cannot be opened or is not a regular file, or the thread cannot
    /// be started.
    pub fn start(sink: AuditSink, config: AuditConfig) -> Result<Self, io::Error> {
        let output = Output::open(sink)?;
        let (queue, entries) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_batches(entries, output, config.batch_bytes))?;
        let capacity = u32::try_from(config.queue_bytes).unwrap_or(u32::MAX);
        let room = Arc::new(Semaphore::new(config.queue_bytes));
        let (deadline, metrics) = (config.deadline, Metrics::none());
        Ok(Self { queue, room, capacity, deadline, metrics })
    }

    /// The same, its failures counted.
    #[must_use]
    pub fn measured(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Writes one line per event. Returns once the operating system has taken
    /// them all.
    ///
    /// # Errors
    /// [`AuditUnavailable`], at the latest at the configured deadline: the sink
    /// blocks or refuses the write, or the queue is full.
    pub async fn write(&self, events: Vec<AuditEvent>) -> Result<(), AuditUnavailable> {
        let mut lines = Vec::new();
        for event in &events {
            encode(event, &mut lines).map_err(|_| AuditUnavailable("line not encoded"))?;
        }
        self.submit(lines).await
    }

    /// Waits until everything handed in before is written: for an orderly exit,
    /// and before a change, which must not be made while its line cannot be
    /// written. Fails also while the last write failed.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn flush(&self) -> Result<(), AuditUnavailable> {
        self.submit(Vec::new()).await
    }

    async fn submit(&self, lines: Vec<u8>) -> Result<(), AuditUnavailable> {
        let written = self.hand_in(lines).await;
        if written.is_err() {
            self.metrics.audit_failure();
        }
        written
    }

    async fn hand_in(&self, lines: Vec<u8>) -> Result<(), AuditUnavailable> {
        // A call larger than the whole queue fits an empty one.
        let size = u32::try_from(lines.len()).unwrap_or(u32::MAX).min(self.capacity);
        let room = Arc::clone(&self.room)
            .try_acquire_many_owned(size)
            .map_err(|_| AuditUnavailable("queue full"))?;
        let (ack, written) = oneshot::channel();
        let gone = AuditUnavailable("writer gone");
        self.queue.send(Entry { lines, ack, _room: room }).map_err(|_| gone)?;
        match tokio::time::timeout(self.deadline, written).await {
            Ok(outcome) => outcome.unwrap_or(Err(gone)),
            Err(_) => Err(AuditUnavailable("write timed out")),
        }
    }
}

/// Group commit: whatever waits when a write starts shares it.
fn write_batches(
    mut entries: mpsc::UnboundedReceiver<Entry>,
    mut output: Output,
    batch_bytes: usize,
) {
    let mut failing = false;
    while let Some(first) = entries.blocking_recv() {
        let mut lines = first.lines;
        let mut waiting = vec![(first.ack, first._room)];
        while lines.len() < batch_bytes
            && let Ok(next) = entries.try_recv()
        {
            lines.extend_from_slice(&next.lines);
            waiting.push((next.ack, next._room));
        }
        let outcome = match lines.is_empty() {
            // A flush: there is nothing to try the sink with.
            true if failing => Err(io::Error::other("the last write failed")),
            true => Ok(()),
            false => output.write(&lines),
        };
        // One record per spell of trouble, not one per call.
        match &outcome {
            Err(error) if !failing => tracing::error!(%error, "audit stream cannot be written"),
            Ok(()) if failing => tracing::info!("audit stream is written again"),
            _ => {}
        }
        failing = outcome.is_err();
        let outcome = outcome.map_err(|_| AuditUnavailable("write failed"));
        for (ack, room) in waiting {
            drop(room);
            // The call may have given up.
            let _ = ack.send(outcome);
        }
    }
}

fn encode(event: &AuditEvent, lines: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        action: &'static str,
        outcome: &'static str,
        caller: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        actor: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        workspace: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        secret: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        alias: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        matches: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        workflow_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        run_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        holder: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace_id: Option<&'a str>,
    }
    let line = Line {
        time: event.time.to_string(),
        action: event.action.as_str(),
        outcome: event.outcome,
        caller: event.caller.as_str(),
        actor: event.actor.as_ref().map(Actor::as_str),
        workspace: event.workspace.as_ref().map(WorkspaceId::as_str),
        secret: event.secret.as_ref().map(SecretName::as_str),
        version: event.version,
        alias: event.alias.as_ref().map(Alias::as_str),
        matches: event.matches,
        workflow_id: event.workflow_id.as_ref().map(WorkflowId::as_str),
        run_id: event.run_id.as_ref().map(RunId::as_str),
        holder: event.holder.as_ref().map(LeaseHolder::as_str),
        trace_id: event.trace_id.as_ref().map(TraceId::as_str),
    };
    line.serialize(&mut serde_json::Serializer::with_formatter(&mut *lines, Ascii))?;
    lines.push(b'\n');
    Ok(())
}

/// Escapes what is not ASCII: a line separator (U+2028) or a change of writing
/// direction in an actor's name would mislead readers of the stream.
struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if character.is_ascii() {
                write!(writer, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Deadline;

    fn event() -> AuditEvent {
        let id = CallerId::parse("spiffe://td/executor").unwrap();
        let caller = Caller { id, actor: None, trace_id: None, deadline: Deadline::NONE };
        let time = Timestamp::new(1_700_000_000, 123_000_000).unwrap();
        AuditEvent::new(time, &caller, Action::List, "INVALID_FIELD")
    }

    fn line(event: &AuditEvent) -> String {
        let mut lines = Vec::new();
        encode(event, &mut lines).unwrap();
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn a_line_has_what_is_known() {
        assert_eq!(
            line(&event()),
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"action\":\"list\",\
             \"outcome\":\"INVALID_FIELD\",\"caller\":\"spiffe://td/executor\"}\n"
        );
        let full = AuditEvent {
            actor: Some(Actor::parse("Zoë \"Z\" \\ \u{1f511}").unwrap()),
            workspace: Some(WorkspaceId::parse("ws_1").unwrap()),
            secret: Some(SecretName::parse("KEY").unwrap()),
            version: Some(u64::MAX),
            action: Action::Resolve,
            outcome: "ok",
            alias: Some(Alias::parse("k").unwrap()),
            matches: Some(3),
            workflow_id: Some(WorkflowId::parse("wf").unwrap()),
            run_id: Some(RunId::parse("run").unwrap()),
            holder: Some(LeaseHolder::parse("pod-1").unwrap()),
            trace_id: Some(TraceId::parse("4bf92f3577b34da6a3ce929d0e0e4736").unwrap()),
            ..event()
        };
        assert_eq!(
            line(&full),
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"action\":\"resolve\",\"outcome\":\"ok\",\
             \"caller\":\"spiffe://td/executor\",\
             \"actor\":\"Zo\\u00eb \\\"Z\\\" \\\\ \\ud83d\\udd11\",\
             \"workspace\":\"ws_1\",\"secret\":\"KEY\",\"version\":18446744073709551615,\
             \"alias\":\"k\",\"matches\":3,\"workflow_id\":\"wf\",\"run_id\":\"run\",\"holder\":\"pod-1\",\
             \"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}\n"
        );
    }
}
