//! How calls share a write, and that none is lost on its way.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
};

use futures_util::{future::join_all, poll};
use tokio::runtime::Builder;

use super::*;
use crate::{
    domain::{CallerId, Deadline, Timestamp},
    service::{access::Caller, audit::Action},
};

/// Each write.
#[derive(Clone, Default)]
struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

impl Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log(batch_bytes: usize) -> (AuditLog, Writes) {
    let writes = Writes::default();
    let config =
        AuditConfig { deadline: Duration::from_secs(20), batch_bytes, ..AuditConfig::default() };
    let log = AuditLog::start(AuditSink::Writer(Box::new(writes.clone())), config).unwrap();
    (log, writes)
}

fn event(second: i64) -> AuditEvent {
    let id = CallerId::parse("spiffe://td/executor").unwrap();
    let caller = Caller { id, actor: None, trace_id: None, deadline: Deadline::NONE };
    AuditEvent::new(Timestamp::new(second, 0).unwrap(), &caller, Action::List, "ok")
}

fn line(second: i64) -> Vec<u8> {
    let mut line = Vec::new();
    encode(&event(second), &mut line).unwrap();
    line
}

#[tokio::test]
async fn calls_that_are_ready_together_are_written_together() {
    let (log, writes) = log(usize::MAX);
    let written = join_all((0..50).map(|second| log.write(vec![event(second)]))).await;
    assert!(written.iter().all(Result::is_ok));
    assert_eq!(*lock(&writes.0), [(0..50).flat_map(line).collect::<Vec<u8>>()]);
    // And not for ever.
    log.write(vec![event(50)]).await.unwrap();
    assert_eq!(lock(&writes.0).len(), 2);
}

#[tokio::test]
async fn no_call_joins_a_write_that_is_large_already() {
    let (log, writes) = log(line(0).len() * 2);
    join_all((0..5).map(|second| log.write(vec![event(second)]))).await;
    let sizes: Vec<_> = lock(&writes.0).iter().map(|write| write.len() / line(0).len()).collect();
    assert_eq!(sizes, [2, 2, 1]);
}

#[tokio::test]
async fn a_runtime_that_is_late_blames_no_sink_for_it() {
    let config = AuditConfig { deadline: Duration::from_millis(200), ..AuditConfig::default() };
    let sink = AuditSink::Writer(Box::new(Writes::default()));
    let log = AuditLog::start(sink, config).unwrap();
    let mut write = pin!(log.write(vec![event(0)]));
    assert!(poll!(&mut write).is_pending());
    // Nothing else gets its turn for longer than a write may take.
    thread::sleep(config.deadline * 2);
    write.await.unwrap();
}

#[test]
fn what_a_runtime_gathered_before_its_end_is_written() {
    let (log, writes) = log(usize::MAX);
    let ends = Builder::new_current_thread().enable_all().build().unwrap();
    let mut write = Box::pin(log.write(vec![event(0)]));
    assert!(ends.block_on(async { poll!(pin!(&mut write)) }).is_pending());
    drop(ends);
    // Nobody is told; the line is written all the same.
    let other = Builder::new_current_thread().enable_all().build().unwrap();
    other.block_on(log.write(vec![event(1)])).unwrap();
    assert_eq!(lock(&writes.0).concat(), [line(0), line(1)].concat());
    assert_eq!(other.block_on(write), Err(GONE));
}

#[test]
fn whatever_was_handed_in_before_a_flush_is_written_by_its_end() {
    let (log, writes) = log(usize::MAX);
    let handed_in = AtomicUsize::new(0);
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            runtime().block_on(async {
                for _ in 0..5_000 {
                    let mut write = pin!(log.write(vec![event(0)]));
                    // A flush may have taken it along by then.
                    let written = poll!(&mut write);
                    handed_in.fetch_add(1, Ordering::SeqCst);
                    match written {
                        Poll::Ready(written) => written.unwrap(),
                        Poll::Pending => write.await.unwrap(),
                    }
                }
            });
        });
        let flusher = runtime();
        while !writer.is_finished() {
            let before = handed_in.load(Ordering::SeqCst);
            flusher.block_on(log.flush()).unwrap();
            let written: usize = lock(&writes.0).iter().map(Vec::len).sum();
            assert!(written >= before * line(0).len());
        }
    });
}

#[test]
fn a_flush_takes_along_what_another_runtime_has_not_handed_over() {
    let (log, writes) = log(usize::MAX);
    let [one, other] =
        [(); 2].map(|()| Builder::new_current_thread().enable_all().build().unwrap());
    let mut write = Box::pin(log.write(vec![event(0)]));
    // It is handed in, and then nobody drives its runtime any more.
    assert!(one.block_on(async { poll!(pin!(&mut write)) }).is_pending());
    assert!(lock(&writes.0).is_empty());
    other.block_on(log.flush()).unwrap();
    assert_eq!(*lock(&writes.0), [line(0)]);
    other.block_on(write).unwrap();
}
