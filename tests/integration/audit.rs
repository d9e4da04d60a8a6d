//! The audit stream: written before the answer, whole lines, bounded waits.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write},
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::time::timeout;
use workflow_secrets::{
    domain::{Actor, CallerId, RunId, SecretName, Timestamp, WorkspaceId},
    service::audit::{Action, AuditConfig, AuditEvent, AuditLog, AuditSink},
};

/// Far longer than anything here takes: a hung test fails instead.
const PATIENCE: Duration = Duration::from_secs(20);

fn event(run: &str) -> AuditEvent {
    AuditEvent {
        time: Timestamp::new(1_700_000_000, 0).unwrap(),
        caller: CallerId::parse("spiffe://td/executor").unwrap(),
        actor: None,
        workspace: Some(WorkspaceId::parse("ws_1").unwrap()),
        secret: Some(SecretName::parse("KEY").unwrap()),
        version: Some(3),
        action: Action::Resolve,
        outcome: "ok",
        alias: None,
        matches: None,
        workflow_id: None,
        holder: None,
        run_id: Some(RunId::parse(run).unwrap()),
        trace_id: None,
    }
}

fn runs(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|line| line["run_id"].as_str().unwrap().to_owned())
        .collect()
}

fn file_log(path: &std::path::Path) -> AuditLog {
    AuditLog::start(AuditSink::File(path.to_owned()), AuditConfig::default()).unwrap()
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<Vec<u8>>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_line_is_in_the_file_before_the_write_returns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let log = file_log(&path);
    for n in 0..50 {
        log.write(vec![event(&format!("a{n}")), event(&format!("b{n}"))]).await.unwrap();
        let found = runs(&fs::read_to_string(&path).unwrap());
        assert_eq!(found.len(), 2 * (n + 1));
        assert_eq!(found[2 * n..], [format!("a{n}"), format!("b{n}")]);
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_thousand_concurrent_calls_share_writes_and_lose_no_line() {
    let shared = Shared::default();
    let (open, gate) = std::sync::mpsc::channel();
    let sink = AuditSink::Writer(Box::new(Gated { gate: Some(gate), to: shared.clone() }));
    let config = AuditConfig { deadline: PATIENCE, ..AuditConfig::default() };
    let log = Arc::new(AuditLog::start(sink, config).unwrap());
    let started = Arc::new(AtomicUsize::new(0));
    let calls: Vec<_> = (0..1_000)
        .map(|n| {
            let (log, started) = (Arc::clone(&log), Arc::clone(&started));
            tokio::spawn(async move {
                started.fetch_add(1, Ordering::Relaxed);
                log.write(vec![event(&n.to_string())]).await
            })
        })
        .collect();
    // This runtime has one thread: a call that started has run up to its wait.
    while started.load(Ordering::Relaxed) < 1_000 {
        tokio::task::yield_now().await;
    }
    open.send(()).unwrap();
    for call in calls {
        timeout(PATIENCE, call).await.unwrap().unwrap().unwrap();
    }
    let writes = shared.0.lock().unwrap().clone();
    assert!(writes.len() <= 2, "one before the gate opened, one for all others");
    assert!(writes.iter().all(|write| write.ends_with(b"}\n")), "whole lines only");
    let text = String::from_utf8(writes.concat()).unwrap();
    assert_eq!(text.lines().count(), 1_000);
    let mut found: Vec<usize> = runs(&text).iter().map(|run| run.parse().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, (0..1_000).collect::<Vec<_>>());
}

/// Keeps the first write waiting.
struct Gated {
    gate: Option<std::sync::mpsc::Receiver<()>>,
    to: Shared,
}

impl Write for Gated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(gate) = self.gate.take() {
            gate.recv().unwrap();
        }
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_full_pipe_fails_calls_in_time_and_drains_by_itself() {
    let (reader, writer) = io::pipe().unwrap();
    let config = AuditConfig {
        deadline: Duration::from_millis(200),
        queue_bytes: 64 * 1024,
        ..AuditConfig::default()
    };
    let log = AuditLog::start(AuditSink::Writer(Box::new(writer)), config).unwrap();

    // Nobody reads: some calls fit the pipe, then one hits the deadline.
    let mut errors = Vec::new();
    for n in 0..20 {
        let call = log.write((0..100).map(|m| event(&format!("{n}-{m}"))).collect());
        errors.extend(timeout(PATIENCE, call).await.unwrap().err());
    }
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors.first().unwrap(), "audit stream unavailable: write timed out");
    assert_eq!(errors.last().unwrap(), "audit stream unavailable: queue full");
    assert!(log.flush().await.is_err());

    let (lines, received) = std::sync::mpsc::channel();
    let drain = std::thread::spawn(move || {
        for line in BufReader::new(reader).lines() {
            lines.send(line.unwrap()).unwrap();
        }
    });
    let recovered = async {
        while log.write(vec![event("after")]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, recovered).await.unwrap();
    drop(log);
    drain.join().unwrap();
    let lines: Vec<String> = received.into_iter().collect();
    assert!(lines.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert_eq!(runs(&lines.join("\n")).last().unwrap(), "after");
    assert!(lines.iter().any(|line| line.contains("\"0-99\"")), "acknowledged lines are there");
}

/// Takes part of a write, then has no space, as told.
#[derive(Clone, Default)]
struct FullDisk(Arc<Mutex<(Vec<u8>, Option<usize>)>>);

impl Write for FullDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (disk, space) = &mut *self.0.lock().unwrap();
        let taken = space.map_or(bytes.len(), |space| space.min(bytes.len()));
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *space = space.map(|space| space - taken);
        disk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn after_a_torn_line_the_next_is_whole() {
    let disk = FullDisk::default();
    let sink = AuditSink::Writer(Box::new(disk.clone()));
    let log = AuditLog::start(sink, AuditConfig::default()).unwrap();
    log.write(vec![event("before")]).await.unwrap();
    for space in [40, 0, 1] {
        disk.0.lock().unwrap().1 = Some(space);
        let error = log.write(vec![event("lost")]).await.unwrap_err();
        assert_eq!(error.to_string(), "audit stream unavailable: write failed");
    }
    disk.0.lock().unwrap().1 = None;
    log.write(vec![event("after")]).await.unwrap();
    log.write(vec![event("later")]).await.unwrap();

    let text = String::from_utf8(disk.0.lock().unwrap().0.clone()).unwrap();
    assert_eq!(runs(&text), ["before", "after", "later"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(lines[1].len(), 40, "the torn line stands alone: {lines:?}");
}

#[tokio::test]
async fn a_line_torn_by_an_earlier_process_stands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    fs::write(&path, "{\"run_id\":\"old\"}\n{\"run_").unwrap();
    file_log(&path).write(vec![event("new")]).await.unwrap();
    assert_eq!(runs(&fs::read_to_string(&path).unwrap()), ["old", "new"]);
}

#[tokio::test]
async fn rotation_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let rotated = dir.path().join("audit.log.1");
    let log = file_log(&path);
    log.write(vec![event("one")]).await.unwrap();
    fs::rename(&path, &rotated).unwrap();
    log.write(vec![event("two")]).await.unwrap();
    assert_eq!(runs(&fs::read_to_string(&rotated).unwrap()), ["one"]);
    assert_eq!(runs(&fs::read_to_string(&path).unwrap()), ["two"]);

    fs::rename(&path, &rotated).unwrap();
    fs::write(&path, "").unwrap();
    log.write(vec![event("three")]).await.unwrap();
    assert_eq!(runs(&fs::read_to_string(&path).unwrap()), ["three"]);

    // With nowhere to write, calls fail; once there is, they succeed.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(log.write(vec![event("lost")]).await.is_err());
    fs::remove_dir(&path).unwrap();
    log.write(vec![event("four")]).await.unwrap();
    assert_eq!(runs(&fs::read_to_string(&path).unwrap()), ["four"]);
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none").join("audit.log");
    for path in [dir.path().to_owned(), missing, "/dev/null".into()] {
        assert!(AuditLog::start(AuditSink::File(path), AuditConfig::default()).is_err());
    }
}

#[tokio::test]
async fn hostile_actors_stay_on_one_line() {
    for refused in [
        "a\nb",
        "a\rb",
        "\u{85}",
        "\0",
        "\u{1b}[2J",
        "\u{7f}",
        "a\u{2028}b",
        "\u{202e}txt.exe",
        "\u{feff}Zoë",
    ] {
        assert!(Actor::parse(refused).is_err());
    }
    let hostile = ["\"},{\"action\":\"none\"", "\\n\\", "Zoë \u{1f511}", "${jndi:x} %n %s"];
    let shared = Shared::default();
    let sink = AuditSink::Writer(Box::new(shared.clone()));
    let log = AuditLog::start(sink, AuditConfig::default()).unwrap();
    let with =
        |actor: &&str| AuditEvent { actor: Some(Actor::parse(actor).unwrap()), ..event("r") };
    log.write(hostile.iter().map(with).collect()).await.unwrap();

    let text = String::from_utf8(shared.0.lock().unwrap().concat()).unwrap();
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ' || byte == b'\n'));
    let actors: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["actor"].clone())
        .collect();
    assert_eq!(actors, hostile);
}
