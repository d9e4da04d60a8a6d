//! The store goes back under a running service: an older snapshot is put in its
//! place.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use workflow_secrets::{
    domain::{Revision, SecretName, WorkspaceId},
    grpc::proto::{
        CheckReferencesRequest, Credential, RenderTemplateRequest, ResolveSecretsRequest,
        ResolveSecretsResponse, ShredWorkspaceRequest, render_template_request::Template,
    },
    service::{GetSecret, audit::AuditSink},
    store::{
        Batch, Commit, Expect, Key, Operation, Record, Store, Write,
        witness::{Regression, ShreddedList, Witness},
    },
};

use crate::{
    cli::{assert_told, cli},
    support::{
        fake_kms::FakeKms,
        manual_clock::ManualClock,
        memory_store::MemoryStore,
        platform::{
            Client, Platform, Replica, create, delete, get, list, reason, resolve, update, value,
            with,
        },
        program,
        redis_server::Options,
        service,
    },
};

const OLD: &str = "k_4f0c1e-old";
const NEW: &str = "k_91b7d2-new";

/// Generous: the machine may be busy.
const LONG: Duration = Duration::from_secs(60);

/// The answer, once the service has found Redis again.
async fn answer(
    client: &Client,
    request: &ResolveSecretsRequest,
) -> Result<ResolveSecretsResponse, Status> {
    let start = std::time::Instant::now();
    loop {
        match client.clone().resolve_secrets(request.clone()).await {
            Err(status) if status.code() == Code::Unavailable && start.elapsed() < LONG => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other.map(tonic::Response::into_inner),
        }
    }
}

/// The lines of a replica that tell that the store has gone back, once there
/// are any.
async fn told(replica: &Replica) -> Vec<(String, String)> {
    let start = std::time::Instant::now();
    loop {
        let lines = replica.audit();
        let lines = lines.iter().filter(|line| line["action"] == "store_regressed");
        let word = |line: &Value, field: &str| line[field].as_str().unwrap().to_owned();
        let lines: Vec<_> = lines
            .map(|line| {
                assert_eq!(line["caller"], "workflow-secrets");
                (word(line, "workspace"), word(line, "outcome"))
            })
            .collect();
        if !lines.is_empty() {
            return lines;
        }
        assert!(start.elapsed() < LONG, "not told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn violations(status: &Status) -> Vec<(String, String)> {
    let expected = (Code::FailedPrecondition, "SECRETS_UNRESOLVED".to_owned());
    assert_eq!(reason(status), expected, "{status:?}");
    let details = status.get_error_details();
    let found = details.precondition_failure().unwrap().violations.iter();
    found.map(|one| (one.r#type.clone(), one.subject.clone())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect()
}

fn seen(secret: &str, min_version: u64, uid: &str) -> Credential {
    let (secret, uid) = (secret.to_owned(), uid.to_owned());
    Credential { secret, min_version, uid, ..Default::default() }
}

#[tokio::test]
async fn an_older_snapshot_is_noticed_told_and_refused_to_those_who_know_better() {
    let mut platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    let reader = platform.client(&replica, "executor").await;
    for workspace in ["ws", "calm"] {
        writer.create_secret(create(workspace, "KEY", OLD)).await.unwrap();
        writer.create_secret(create(workspace, "OTHER", "same")).await.unwrap();
        answer(&reader, &resolve(workspace, &["KEY"])).await.unwrap();
    }
    let snapshot = platform.redis.snapshot();
    // Nobody reads after this: it is known by the commit alone.
    writer.update_secret(with(update("ws", "KEY"), |r| r.value = Some(NEW.into()))).await.unwrap();
    platform.redis.restore(&snapshot).await;

    // What there is goes on serving, and is told.
    let answered = answer(&reader, &resolve("ws", &["KEY"])).await.unwrap();
    assert_eq!(value(&answered, "KEY"), OLD);
    answer(&reader, &resolve("calm", &["KEY"])).await.unwrap();
    assert_eq!(told(&replica).await, pairs(&[("ws", "older")]));
    let log = replica.stdout() + &replica.stderr();
    assert!(log.contains("THE STORE HAS GONE BACK"), "{log}");
    assert!([OLD, NEW].iter().all(|value| !log.contains(value)), "{log}");

    // Who has seen more is refused, all at once; who has not is served.
    let other = writer.get_secret(get("ws", "OTHER")).await.unwrap().into_inner();
    let key = &answered.secrets["KEY"];
    assert_eq!((key.version, key.uid.len()), (1, 36));
    let ask = |credentials| ResolveSecretsRequest {
        workspace: "ws".into(),
        credentials,
        ..Default::default()
    };
    let short = vec![seen("KEY", 2, &key.uid), seen("OTHER", 1, &key.uid)];
    let status = answer(&reader, &ask(short.clone())).await.err().unwrap();
    assert_eq!(violations(&status), pairs(&[("STALE", "KEY"), ("REPLACED", "OTHER")]));
    let message = "KEY is at version 1, older than 2 seen before, \
                   OTHER is another secret than the one seen before; nothing was resolved";
    assert_eq!(status.message(), message);
    let render = |credentials| {
        with(RenderTemplateRequest::default(), |r| {
            r.workspace = "ws".into();
            r.template = Some(Template::Text("{{secrets.KEY}}".into()));
            r.credentials = credentials;
        })
    };
    let status = reader.clone().render_template(render(short)).await.err().unwrap();
    assert_eq!(violations(&status), pairs(&[("STALE", "KEY"), ("REPLACED", "OTHER")]));
    let enough = vec![seen("KEY", 1, &key.uid), seen("OTHER", 1, &other.uid)];
    answer(&reader, &ask(enough.clone())).await.unwrap();
    reader.clone().render_template(render(enough)).await.unwrap();
    let status = answer(&reader, &ask(vec![seen("KEY", 0, "no uid")])).await.err().unwrap();
    assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));

    // Once it has caught up, nothing more is told.
    writer.update_secret(with(update("ws", "KEY"), |r| r.value = Some(NEW.into()))).await.unwrap();
    answer(&reader, &ask(vec![seen("KEY", 2, &key.uid)])).await.unwrap();
    let check = with(CheckReferencesRequest::default(), |r| {
        r.workspace = "ws".into();
        r.credentials = vec![seen("KEY", 9, &other.uid)];
    });
    assert!(writer.check_references(check).await.unwrap().into_inner().resolvable);
    assert_eq!(told(&replica).await.len(), 1);
}

#[tokio::test]
async fn what_was_shredded_does_not_come_back() {
    let mut platform = Platform::start_with(Options::default()).await;
    let (first, second) = tokio::join!(platform.replica(), platform.replica());
    let mut writer = platform.client(&first, "platform").await;
    let mut operator = platform.key_client(&first, "operator").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    let readers =
        [platform.client(&first, "executor").await, platform.client(&second, "executor").await];
    for reader in &readers {
        answer(reader, &resolve("ws", &["KEY"])).await.unwrap();
    }
    let snapshot = platform.redis.snapshot();
    let (workspace, confirm) = ("ws".to_owned(), "ws".to_owned());
    operator.shred_workspace(ShredWorkspaceRequest { workspace, confirm }).await.unwrap();
    let gone = |status: Status| {
        let expected = (Code::FailedPrecondition, "WORKSPACE_SHREDDED".to_owned());
        assert_eq!(reason(&status), expected, "{status:?}");
    };
    // The first knows by its own doing, the second by what it was told.
    gone(answer(&readers[1], &resolve("ws", &["KEY"])).await.err().unwrap());
    platform.redis.restore(&snapshot).await;
    let records = "workflow-secrets:{ws}:records";
    let count = || platform.redis.cli(&["HLEN", records]);
    assert_ne!(count(), "1");

    for (reader, replica) in readers.iter().zip([&first, &second]) {
        gone(answer(reader, &resolve("ws", &["KEY"])).await.err().unwrap());
        gone(answer(reader, &resolve("ws", &["MISSING"])).await.err().unwrap());
        assert_eq!(told(replica).await, pairs(&[("ws", "shredded_data_back")]));
    }
    gone(writer.list_secrets(list("ws")).await.err().unwrap());
    gone(writer.delete_secret(delete("ws", "KEY")).await.err().unwrap());
    gone(writer.create_secret(create("ws", "NEW", "value")).await.err().unwrap());
    assert_ne!(count(), "1");

    // Others know it from the list, which is read again when it changes.
    let path = platform.file("shredded");
    fs::write(&path, "# of the audit stream\n\n ws \n").unwrap();
    let listed = platform.replica_with(&["--shredded-workspaces", path.to_str().unwrap()]).await;
    let reader = platform.client(&listed, "executor").await;
    gone(answer(&reader, &resolve("ws", &["KEY"])).await.err().unwrap());
    assert_eq!(told(&listed).await, pairs(&[("ws", "shredded_data_back")]));
    fs::write(&path, "another\n").unwrap();
    let start = std::time::Instant::now();
    while answer(&reader, &resolve("ws", &["KEY"])).await.is_err() {
        assert!(start.elapsed() < LONG, "still on the list");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // And for good.
    for (arguments, code, expected) in [
        (&["--workspace", "ws"][..], 64, "--confirm: is required"),
        (&["--workspace", "ws", "--confirm", "w"], 64, "--confirm: must be the workspace"),
        (&["--workspace", "ws", "--confirm", "ws"], 0, "records destroyed now: "),
        (&["--workspace", "ws", "--confirm", "ws"], 0, "records destroyed now: 0\n"),
    ] {
        let arguments = [&["keys", "shred"], arguments].concat();
        let mut command = cli(&platform, listed.address, "operator", &arguments);
        let piped = std::process::Stdio::piped;
        let child = command.stdout(piped()).stderr(piped()).spawn().unwrap();
        assert_told(&program::outcome(child, LONG).await, code, &[expected]);
    }
    assert_eq!(count(), "1");
    gone(answer(&reader, &resolve("ws", &["KEY"])).await.err().unwrap());
    for reader in &readers {
        gone(answer(reader, &resolve("ws", &["KEY"])).await.err().unwrap());
    }
}

fn ws(name: &str) -> WorkspaceId {
    WorkspaceId::parse(name).unwrap()
}

fn key() -> Key {
    Key::metadata(&SecretName::parse("KEY").unwrap())
}

fn put(expect: Option<Expect>) -> Batch {
    let record = Record { revision: Revision::from_u64(1), bytes: vec![1] };
    let operation = Operation { key: key(), expect, write: Write::Put(record) };
    Batch { operations: vec![operation], ..Batch::default() }
}

fn witness() -> (Arc<MemoryStore>, Witness) {
    let store = Arc::new(MemoryStore::default());
    let witness = Witness::new(store.clone(), Arc::default());
    (store, witness)
}

#[tokio::test]
async fn a_revision_may_only_grow_and_not_by_much() {
    let (store, witness) = witness();
    let look = async |revision| {
        store.set_revision(&ws("ws"), revision);
        witness.read(&ws("ws"), &[Key::tombstone(), key()]).await.unwrap();
        witness.take_regressions().remove(&ws("ws"))
    };
    let older = |seen, found| {
        let found = Some(Revision::from_u64(found));
        Some(Regression::Older { seen: Revision::from_u64(seen), found })
    };
    assert_eq!(look(10).await, None);
    assert_eq!(look(10).await, None);
    assert_eq!(look(11).await, None);
    assert_eq!(look(10).await, older(11, 10));
    // Told once; from then on this is what is known.
    assert_eq!(look(10).await, None);
    assert_eq!(look(9).await, older(10, 9));
    // A workspace begun anew.
    assert_eq!(look(9 + (1 << 32) - 1).await, None);
    assert_eq!(look(1 << 40).await, older(9 + (1 << 32) - 1, 1 << 40));
    store.set_revision(&ws("ws"), 5);
    witness.revision(&ws("ws")).await.unwrap();
    let told = witness.take_regressions();
    assert_eq!(told.get(&ws("ws")).copied(), older(1 << 40, 5));
    witness.keep_untold(told.clone());
    assert_eq!(witness.take_regressions(), told);
    assert!(witness.take_regressions().is_empty());
    // What was seen meanwhile, and is worse, stays.
    let shredded = [(ws("ws"), Regression::Resurrected)].into();
    witness.keep_untold(BTreeMap::clone(&shredded));
    witness.keep_untold(told);
    assert_eq!(witness.take_regressions(), shredded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_at_once_are_no_regression() {
    let (store, witness) = witness();
    let witness = Arc::new(witness);
    store.set_revision(&ws("ws"), 1);
    let tasks = (0..8).map(|n| {
        let witness = witness.clone();
        tokio::spawn(async move {
            for _ in 0..2_000 {
                match n % 2 {
                    0 => drop(witness.commit(&ws("ws"), put(None)).await.unwrap()),
                    _ => drop(witness.read(&ws("ws"), &[key()]).await.unwrap()),
                }
                tokio::task::yield_now().await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert!(witness.take_regressions().is_empty());
}

#[tokio::test]
async fn a_list_counts_while_it_names_a_workspace() {
    let (store, _) = witness();
    let listed = Arc::new(ArcSwap::from_pointee(ShreddedList::from([ws("ws"), ws("never")])));
    let witness = Witness::new(store.clone(), listed.clone());
    assert!(store.commit(&ws("ws"), put(Some(Expect::Absent))).await == Ok(Commit::Done));
    let read = async |name: &str| {
        let keys = [key(), Key::tombstone()];
        let records = witness.read(&ws(name), &keys).await.unwrap();
        records.iter().map(Option::is_some).collect::<Vec<_>>()
    };
    assert_eq!(read("ws").await, [false, true]);
    assert_eq!(read("never").await, [false, true]);
    assert!(witness.commit(&ws("ws"), put(None)).await == Ok(Commit::Shredded));
    assert!(witness.keys(&ws("ws"), "", 9).await.unwrap().is_empty());
    assert!(witness.scan(&ws("ws"), "", None, 9).await.unwrap().is_empty());
    // What was made of it before is not true any more.
    assert!(store.revision(&ws("ws")).await.unwrap().is_some());
    assert_eq!(witness.revision(&ws("ws")).await, Ok(None));
    // Of the one that the store never had there is nothing to tell.
    let told: Vec<_> = witness.take_regressions().into_iter().collect();
    assert_eq!(told, [(ws("ws"), Regression::Resurrected)]);
    listed.store(Arc::default());
    assert_eq!(read("ws").await, [true, false]);
    assert!(witness.take_regressions().is_empty());
}

/// Keeps each write.
#[derive(Clone, Default)]
struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

impl io::Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_whole_store_that_has_gone_back_does_not_fill_the_audit_stream() {
    const WORKSPACES: usize = 250;
    let store = Arc::new(MemoryStore::default());
    let writes = Writes::default();
    let (kms, clock) = (Arc::new(FakeKms::default()), Arc::new(ManualClock::default()));
    let audit = AuditSink::Writer(Box::new(writes.clone()));
    let secrets = service::secrets(store.clone(), kms, clock, audit);
    for revision in [2, 1] {
        for number in 0..WORKSPACES {
            let workspace = ws(&format!("ws{number}"));
            store.set_revision(&workspace, revision);
            let name = SecretName::parse("KEY").unwrap();
            assert!(secrets.get(&service::caller(), GetSecret { workspace, name }).await.is_err());
        }
    }
    writes.0.lock().unwrap().clear();
    secrets.tidy().await;
    let lines = |write: &Vec<u8>| write.iter().filter(|byte| **byte == b'\n').count();
    let written: Vec<_> = writes.0.lock().unwrap().iter().map(lines).collect();
    assert_eq!(written.iter().sum::<usize>(), WORKSPACES);
    assert!(written.iter().all(|lines| *lines <= 100), "{written:?}");
}
