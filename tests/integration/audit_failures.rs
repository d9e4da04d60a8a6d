//! The audit stream of a running replica: blocked, broken, rotated, complete.

use std::{
    fs,
    io::{BufRead as _, BufReader, pipe},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tonic::{Code, Request};
use tonic_health::pb::health_check_response::ServingStatus;
use workflow_secrets::grpc::proto::secrets_service_client::SecretsServiceClient;

use super::support::{
    documents::{Open, check_json, open, prepare, redact, render_text},
    platform::{
        Client, Platform, Replica, SERVICE, assert_refused, assert_unavailable, create, delete,
        get, list, reason, resolve, spiffe_id, update, value,
    },
    redis_server::Options,
};

/// 1 s for the stream; the rest is for a busy machine.
const DEADLINE: Duration = Duration::from_secs(3);

const SECRET: &str = "a value that nobody may see";

async fn platform_with_secret() -> Platform {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", SECRET)).await.unwrap();
    platform
}

async fn check_refused_in_time(executor: &mut Client) {
    let start = Instant::now();
    let outcome = executor.resolve_secrets(resolve("ws", &["KEY"])).await;
    assert!(!format!("{:?}", outcome.as_ref().err()).contains(SECRET));
    assert_unavailable(outcome, "AUDIT_UNAVAILABLE");
    assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
}

#[tokio::test]
async fn no_value_leaves_while_nobody_reads_the_stream() {
    let platform = platform_with_secret().await;
    let (reader, stdout) = pipe().unwrap();
    let replica = platform.replica_to(stdout).await;
    let mut executor = platform.client(&replica, "executor").await;
    let mut writer = platform.client(&replica, "platform").await;

    // Lines enough to fill the pipe, 100 a call.
    let names: Vec<_> = (0..100).map(|i| format!("KEY=alias_{i}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut answered = 0;
    let status = loop {
        match executor.resolve_secrets(resolve("ws", &names)).await {
            Ok(_) => answered += names.len(),
            Err(status) => break status,
        }
        assert!(answered < 10_000, "the pipe is never full");
    };
    assert_eq!(reason(&status), (Code::Unavailable, "AUDIT_UNAVAILABLE".to_owned()));
    check_refused_in_time(&mut executor).await;
    let changed = writer.create_secret(create("ws", "NEW", SECRET)).await;
    assert_unavailable(changed, "AUDIT_UNAVAILABLE");
    // A refusal keeps its own reason.
    let denied = writer.resolve_secrets(resolve("ws", &["KEY"])).await;
    assert_refused(denied, Code::PermissionDenied, "NOT_GRANTED");
    for name in ["", SERVICE] {
        assert_eq!(replica.health(&platform, name).await, Some(ServingStatus::Serving));
    }

    let lines = thread::spawn(|| {
        let lines = BufReader::new(reader).lines().map(|line| line.unwrap());
        lines.map(|line| serde_json::from_str(&line).unwrap()).collect::<Vec<Value>>()
    });
    let start = Instant::now();
    let answer = loop {
        match executor.resolve_secrets(resolve("ws", &["KEY=last"])).await {
            Ok(answer) => break answer.into_inner(),
            Err(status) => assert!(start.elapsed() < DEADLINE, "{status:?}"),
        }
    };
    assert_eq!(value(&answer, "last"), SECRET);
    drop(replica);
    let lines = lines.join().unwrap();
    let of = |field: &str, text: &str| lines.iter().filter(|line| line[field] == text).count();
    // Also the lines of calls that were refused meanwhile come in the end.
    assert!(of("alias", "alias_99") > answered / 100);
    assert!(of("alias", "last") >= 1);
    assert_eq!(of("outcome", "NOT_GRANTED"), 1);
    assert_eq!(of("secret", "NEW"), 1);
}

#[tokio::test]
async fn no_value_leaves_when_the_reader_is_gone() {
    let platform = platform_with_secret().await;
    let (reader, stdout) = pipe().unwrap();
    let replica = platform.replica_to(stdout).await;
    let mut executor = platform.client(&replica, "executor").await;
    executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
    drop(reader);
    for _ in 0..3 {
        check_refused_in_time(&mut executor).await;
    }
    assert_eq!(replica.health(&platform, "").await, Some(ServingStatus::Serving));
    assert_eq!(replica.stderr().matches("audit stream cannot be written").count(), 1);
}

#[tokio::test]
async fn no_document_and_no_tally_leaves_when_the_reader_is_gone() {
    let platform = platform_with_secret().await;
    let (reader, stdout) = pipe().unwrap();
    let replica = platform.replica_to(stdout).await;
    let mut executor = platform.client(&replica, "executor").await;
    let mut people = platform.client(&replica, "platform").await;
    let text = format!("<{SECRET}>");
    let found = Open::start(&mut executor, open("ws", &[])).await;
    let nothing = Open::start(&mut executor, open("ws", &["KEY"])).await;
    found.send(text.as_bytes()).await;
    nothing.send(b"<nothing>").await;
    drop(reader);

    let rendered = executor.render_template(render_text("ws", "{{secrets.KEY}}")).await;
    assert!(!format!("{:?}", rendered.as_ref().err()).contains(SECRET));
    assert_unavailable(rendered, "AUDIT_UNAVAILABLE");
    let checked = executor.check_references(check_json("ws", "[\"{{secrets.KEY}}\"]")).await;
    assert_unavailable(checked, "AUDIT_UNAVAILABLE");
    let document = json!([SECRET]).to_string();
    let prepared = people.prepare_template(prepare("ws", &document)).await;
    assert!(!format!("{:?}", prepared.as_ref().err()).contains(SECRET));
    assert_unavailable(prepared, "AUDIT_UNAVAILABLE");
    for names in [&[][..], &["KEY"]] {
        let refused = redact(&mut executor, open("ws", names), &[text.as_bytes()]).await;
        let status = refused.err().expect("not opened");
        assert_eq!(reason(&status), (Code::Unavailable, "AUDIT_UNAVAILABLE".to_owned()));
    }

    // What was opened before gives its text back, but not what was found.
    let Open { requests, mut answers } = found;
    drop(requests);
    let (mut out, mut tally) = (Vec::new(), None);
    let status = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                out.extend_from_slice(&answer.chunk);
                tally = tally.or(answer.tally.clone());
            }
            Ok(None) => panic!("{tally:?}"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), (Code::Unavailable, "AUDIT_UNAVAILABLE".to_owned()));
    assert_eq!((&*out, &tally), (&b"<{{secrets.KEY}}>"[..], &None));
    // Nothing found needs no line.
    let Open { requests, mut answers } = nothing;
    drop(requests);
    while let Some(answer) = answers.message().await.unwrap() {
        tally = answer.tally.clone();
    }
    assert_eq!(tally.expect("a tally").masked, []);
    assert_eq!(replica.health(&platform, "").await, Some(ServingStatus::Serving));
}

#[tokio::test]
async fn a_fifo_is_refused_as_audit_file() {
    let platform = Platform::start_with(Options::default()).await;
    let fifo = platform.file("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut replica = platform.launch(&["--audit", fifo.to_str().unwrap()]);
    assert_eq!(replica.ended(Duration::from_secs(10)).await.code(), Some(64));
    let told = format!("--audit: {}: is not a regular file", fifo.display());
    assert!(replica.stderr().contains(&told), "{}", replica.stderr());
}

#[tokio::test]
async fn the_audit_file_may_be_rotated_by_rename() {
    let platform = platform_with_secret().await;
    let (file, rotated) = (platform.file("audit.jsonl"), platform.file("audit.jsonl.1"));
    let replica = platform.replica_with(&["--audit", file.to_str().unwrap()]).await;
    let mut executor = platform.client(&replica, "executor").await;
    executor.resolve_secrets(resolve("ws", &["KEY=one"])).await.unwrap();
    fs::rename(&file, &rotated).unwrap();
    executor.resolve_secrets(resolve("ws", &["KEY=two"])).await.unwrap();
    executor.resolve_secrets(resolve("ws", &["KEY=three"])).await.unwrap();
    for (file, expected) in [(&rotated, vec!["one"]), (&file, vec!["two", "three"])] {
        let text = fs::read_to_string(file).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let aliases: Vec<_> = lines.map(|line| line["alias"].clone()).collect();
        assert_eq!(aliases, expected);
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(replica.stdout(), "");
}

/// The lines a replica has written since `seen`, without their times.
fn lines_since(replica: &Replica, seen: &mut usize) -> Vec<Value> {
    let all = replica.audit();
    let new = all[*seen..].iter().cloned().map(|mut line| {
        let time = line.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
        line
    });
    let new = new.collect();
    *seen = all.len();
    new
}

#[tokio::test]
async fn every_secret_touched_has_a_line_with_all_that_is_known() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    let mut executor = platform.client(&replica, "executor").await;
    let mut seen = 0;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");

    let mut request = Request::new(create("ws", "A", SECRET));
    request.metadata_mut().insert("x-actor", "alice@example.com".parse().unwrap());
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    writer.create_secret(request).await.unwrap();
    let line = json!({
        "action": "create", "outcome": "ok", "caller": spiffe_id("platform"),
        "actor": "alice@example.com", "trace_id": trace,
        "workspace": "ws", "secret": "A", "version": 1,
    });
    assert_eq!(lines_since(&replica, &mut seen), [line]);

    let mut change = update("ws", "A");
    change.value = Some("other".to_owned());
    writer.update_secret(change).await.unwrap();
    writer.create_secret(create("ws", "B", SECRET)).await.unwrap();
    lines_since(&replica, &mut seen);
    let mut message = resolve("ws", &["A=first", "B", "A=again"]);
    message.workflow_id = "workflow-7".to_owned();
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-actor", "bob".parse().unwrap());
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    executor.resolve_secrets(request).await.unwrap();
    let line = |secret: &str, alias: &str, version: u64| {
        json!({
            "action": "resolve", "outcome": "ok", "caller": spiffe_id("executor"),
            "actor": "bob", "trace_id": trace,
            "workspace": "ws", "secret": secret, "alias": alias, "version": version,
            "workflow_id": "workflow-7", "run_id": "run-1",
        })
    };
    let expected = [line("A", "first", 2), line("B", "B", 1), line("A", "again", 2)];
    assert_eq!(lines_since(&replica, &mut seen), expected);

    // Denied and failed calls, and calls that read or delete.
    let line = |action: &str, outcome: &str, caller: &str, secret: &str| {
        json!({
            "action": action, "outcome": outcome, "caller": spiffe_id(caller),
            "workspace": "ws", "secret": secret,
        })
    };
    writer.resolve_secrets(resolve("ws", &["A", "MISSING"])).await.err().unwrap();
    executor.resolve_secrets(resolve("ws", &["A", "MISSING"])).await.err().unwrap();
    writer.resolve_secrets(resolve("ws", &["A"])).await.err().unwrap();
    let with = |mut line: Value, fields: &[(&str, &str)]| {
        for (field, value) in fields {
            line[field] = (*value).into();
        }
        line
    };
    let run = ("run_id", "run-1");
    let unresolved = |name| {
        let line = line("resolve", "SECRETS_UNRESOLVED", "executor", name);
        with(line, &[("alias", name), run])
    };
    // What is not granted touches no secret: one line, so that nobody can
    // flood the stream.
    let denied = line("resolve", "NOT_GRANTED", "platform", "A");
    let mut none = with(denied.clone(), &[run]);
    none.as_object_mut().unwrap().remove("secret");
    let only = with(denied, &[("alias", "A"), run]);
    let expected = [none, unresolved("A"), unresolved("MISSING"), only];
    assert_eq!(lines_since(&replica, &mut seen), expected);

    executor.create_secret(create("ws", "C", SECRET)).await.unwrap_err();
    writer.create_secret(create("ws", "A", SECRET)).await.unwrap_err();
    let mut change = update("ws", "MISSING");
    change.value = Some("other".to_owned());
    writer.update_secret(change).await.unwrap_err();
    writer.get_secret(get("ws", "MISSING")).await.unwrap_err();
    writer.delete_secret(delete("ws", "B")).await.unwrap();
    let expected = [
        line("create", "NOT_GRANTED", "executor", "C"),
        line("create", "SECRET_EXISTS", "platform", "A"),
        line("update", "SECRET_NOT_FOUND", "platform", "MISSING"),
        line("get", "SECRET_NOT_FOUND", "platform", "MISSING"),
        line("delete", "ok", "platform", "B"),
    ];
    assert_eq!(lines_since(&replica, &mut seen), expected);

    writer.get_secret(get("ws", "A")).await.unwrap();
    writer.list_secrets(list("ws")).await.unwrap();
    writer.get_secret(get("ws", "not a name")).await.unwrap_err();
    // Leaves no line: anybody could fill the stream.
    let nobody = platform.channel(&replica, None).await;
    SecretsServiceClient::new(nobody).get_secret(get("ws", "A")).await.unwrap_err();
    let mut got = line("get", "ok", "platform", "A");
    got["version"] = 2.into();
    let expected = [
        got,
        json!({
            "action": "list", "outcome": "ok", "caller": spiffe_id("platform"),
            "workspace": "ws",
        }),
        json!({"action": "get", "outcome": "INVALID_FIELD", "caller": spiffe_id("platform")}),
    ];
    assert_eq!(lines_since(&replica, &mut seen), expected);
}
