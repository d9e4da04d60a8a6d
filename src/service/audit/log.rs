//! The stream itself: who writes it, and how calls share a write.

use std::{
    collections::HashMap,
    io::{self, Write},
    mem,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Handle, Id},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    AuditEvent,
    line::{LINE, encode},
    output::Output,
};
use crate::metrics::Metrics;

type Written = Result<(), AuditUnavailable>;

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
    /// A write not done so long after it was handed over fails.
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

const GONE: AuditUnavailable = AuditUnavailable("writer gone");

/// The audit stream. A thread of its own writes; calls that wait at the same time
/// share one write.
///
/// To wake that thread, and be woken by it, costs more than to write a line. So the
/// lines that come on one runtime until it has looked at all that is ready are handed
/// over together.
pub struct AuditLog {
    lot: Lot,
    /// What is not handed over yet, of each runtime.
    gathered: Arc<Mutex<HashMap<Id, Vec<Call>>>>,
    /// Bounds the queue by bytes.
    room: Arc<Semaphore>,
    config: AuditConfig,
    metrics: Metrics,
}

/// The lines of one call, and who waits for them.
struct Call {
    lines: Vec<u8>,
    room: OwnedSemaphorePermit,
    ack: oneshot::Sender<Written>,
}

/// The lines of several calls.
struct Entry {
    lines: Vec<Vec<u8>>,
    bytes: usize,
    ack: oneshot::Sender<Written>,
    _room: Vec<OwnedSemaphorePermit>,
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
        let room = Arc::new(Semaphore::new(config.queue_bytes));
        let lot = Lot { queue, batch_bytes: config.batch_bytes };
        Ok(Self { lot, gathered: Arc::default(), room, config, metrics: Metrics::none() })
    }

    /// The same, its failures counted.
    #[must_use]
    pub fn measured(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Writes one line per event. Returns once the operating system has taken
    /// them all. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`AuditUnavailable`], at the latest the configured deadline after it was handed
    /// over: the sink blocks or refuses the write, or the queue is full.
    pub async fn write(&self, events: Vec<AuditEvent>) -> Written {
        let mut lines = Vec::with_capacity(events.len() * LINE);
        for event in &events {
            encode(event, &mut lines).map_err(|_| AuditUnavailable("line not encoded"))?;
        }
        let written = self.hand_in(lines).await;
        self.counted(written)
    }

    /// Waits until everything handed in before is written: for an orderly exit,
    /// and before a change, which must not be made while its line cannot be
    /// written. Fails also while the last write failed.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn flush(&self) -> Written {
        let (ack, written) = oneshot::channel();
        {
            let mut gathered = lock(&self.gathered);
            // Those of all runtimes, before its own: all that was handed in is in the queue.
            for calls in mem::take(&mut *gathered).into_values() {
                tokio::spawn(tell(
                    self.lot.hand_over(calls),
                    Instant::now() + self.config.deadline,
                ));
            }
            self.lot.queue(Entry { lines: Vec::new(), bytes: 0, ack, _room: Vec::new() });
        }
        let written = in_time(written, Instant::now() + self.config.deadline).await;
        self.counted(written)
    }

    fn counted(&self, written: Written) -> Written {
        if written.is_err() {
            self.metrics.audit_failure();
        }
        written
    }

    async fn hand_in(&self, lines: Vec<u8>) -> Written {
        // A call larger than the whole queue fits an empty one.
        let most = self.config.queue_bytes.min(lines.len());
        let room = Arc::clone(&self.room)
            .try_acquire_many_owned(u32::try_from(most).unwrap_or(u32::MAX))
            .map_err(|_| AuditUnavailable("queue full"))?;
        let (ack, written) = oneshot::channel();
        self.gather(Call { lines, room, ack });
        // Whoever hands it over minds the time: that it comes to that late is no fault of
        // the sink.
        written.await.unwrap_or(Err(GONE))
    }

    /// Puts a call to those that its runtime hands over next.
    fn gather(&self, call: Call) {
        let runtime = Handle::current();
        let id = runtime.id();
        let first = {
            let mut gathered = lock(&self.gathered);
            let calls = gathered.entry(id).or_default();
            calls.push(call);
            calls.len() == 1
        };
        if first {
            let (gathered, lot) = (Arc::clone(&self.gathered), self.lot.clone());
            let mut gathering = Gathering { gathered, lot, id, done: false };
            let deadline = self.config.deadline;
            // Behind all that is ready to run.
            runtime.spawn(async move {
                let handed = gathering.hand_over();
                tell(handed, Instant::now() + deadline).await;
            });
        }
    }
}

/// What one runtime gathers. It is handed over even if the task that has this never
/// runs: the runtime may end.
struct Gathering {
    gathered: Arc<Mutex<HashMap<Id, Vec<Call>>>>,
    lot: Lot,
    id: Id,
    done: bool,
}

impl Gathering {
    fn hand_over(&mut self) -> Vec<Waiting> {
        self.done = true;
        // Queued under the lock: a flush finds each line here or there.
        let mut gathered = lock(&self.gathered);
        self.lot.hand_over(gathered.remove(&self.id).unwrap_or_default())
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        if !self.done {
            self.hand_over();
        }
    }
}

async fn in_time(written: oneshot::Receiver<Written>, until: Instant) -> Written {
    match timeout_at(until, written).await {
        Ok(outcome) => outcome.unwrap_or(Err(GONE)),
        Err(_) => Err(AuditUnavailable("write timed out")),
    }
}

/// No step under this lock leaves anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to the writer.
#[derive(Clone)]
struct Lot {
    queue: mpsc::UnboundedSender<Entry>,
    batch_bytes: usize,
}

/// Who waits for an entry.
type Waiting = (oneshot::Receiver<Written>, Vec<oneshot::Sender<Written>>);

impl Lot {
    /// Queues the lines of these calls, in their order, as few entries.
    fn hand_over(&self, calls: Vec<Call>) -> Vec<Waiting> {
        let mut handed = Vec::new();
        let mut calls = calls.into_iter().peekable();
        while calls.peek().is_some() {
            let (mut lines, mut room, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
            let mut bytes = 0;
            while bytes < self.batch_bytes || lines.is_empty() {
                let Some(call) = calls.next() else { break };
                bytes += call.lines.len();
                lines.push(call.lines);
                room.push(call.room);
                waiting.push(call.ack);
            }
            let (ack, written) = oneshot::channel();
            self.queue(Entry { lines, bytes, ack, _room: room });
            handed.push((written, waiting));
        }
        handed
    }

    fn queue(&self, entry: Entry) {
        // If the writer is gone, so is its end of the entry, which tells.
        let _ = self.queue.send(entry);
    }
}

/// Tells each call what became of its lines.
async fn tell(handed: Vec<Waiting>, until: Instant) {
    for (written, waiting) in handed {
        let outcome = in_time(written, until).await;
        for ack in waiting {
            // The call may have given up.
            let _ = ack.send(outcome);
        }
    }
}

/// Group commit: whatever waits when a write starts shares it.
fn write_batches(
    mut entries: mpsc::UnboundedReceiver<Entry>,
    mut output: Output,
    batch_bytes: usize,
) {
    let (mut failing, mut left) = (false, None);
    while let Some(first) = left.take().or_else(|| entries.blocking_recv()) {
        let mut lines = first.lines.concat();
        let mut waiting = vec![(first.ack, first._room)];
        while let Ok(next) = entries.try_recv() {
            if lines.len() + next.bytes > batch_bytes {
                left = Some(next);
                break;
            }
            next.lines.iter().for_each(|more| lines.extend_from_slice(more));
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

#[cfg(test)]
mod tests;
