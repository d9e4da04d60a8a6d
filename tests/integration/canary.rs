//! After every call and on every error path, with the most verbose logging,
//! neither a secret value nor a data key is anywhere but in the answer of a
//! Resolve or Render: not in output, logs, audit lines, traces, errors, nor in Redis's
//! memory, files and command stream.

mod documents;
mod faults;
mod import;
mod keys;
mod refusals;
mod streams;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use prost::Message;
use tonic::{Code, Response, Status};
use workflow_secrets::grpc::proto::{
    AcquireRefreshLeaseRequest, ListAuditEventsRequest, ListSecretUsageRequest,
    ListSecretVersionsRequest, Owner, ReleaseRefreshLeaseRequest, RollbackSecretRequest,
    UndeleteSecretRequest,
};

use super::support::{
    needles::Needles,
    otlp_sink::OtlpSink,
    platform::{
        Client, Platform, Replica, create, delete, get, list, reason, resolve, update, value,
    },
    raw_redis::RawRedis,
    redis_server::{Options, RedisServer, until},
};

/// Values to look for. None passes for a name or an id, so that it is refused
/// wherever it does not belong.
pub(crate) const CANARIES: [&str; 3] = [
    "canary-one/7Qx2Vt9LmW4zR8kP+sT1=",
    "canary \"two\"\n\tBq5\\Yh3Jd8'; Zoë, 🔑 %7b{Nw6Gc0Fs}</end>",
    "canary-three/ for updates: Xu4Ke8Ro2Ia6Pv1Tz9",
];

/// Verbose, by all variables that are known to make libraries talk.
const LOUD: [(&str, &str); 5] = [
    ("RUST_LOG", "trace"),
    ("RUST_BACKTRACE", "full"),
    ("AWS_LOG_LEVEL", "trace"),
    ("OTEL_LOG_LEVEL", "debug"),
    ("SMITHY_LOG", "trace"),
];

/// Whatever callers were told, except resolved and rendered values.
#[derive(Default)]
pub(crate) struct Told(Vec<u8>);

impl Told {
    /// Keeps an answer or an error with all its parts.
    pub(crate) fn keep<T: Message>(
        &mut self,
        outcome: Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        match outcome {
            Ok(response) => {
                self.0.extend(format!("{:?}", response.metadata()).bytes());
                self.0.extend(response.get_ref().encode_to_vec());
                Ok(response.into_inner())
            }
            Err(status) => {
                self.0.extend(format!("{status:?} {:?}\n", status.metadata()).bytes());
                self.0.extend(status.message().bytes());
                self.0.extend(status.details());
                for value in status.metadata().clone().into_headers().values() {
                    self.0.extend(value.as_bytes());
                }
                Err(status)
            }
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Keeps an error and checks which one it is.
    #[track_caller]
    pub(crate) fn refused<T: Message>(
        &mut self,
        outcome: Result<Response<T>, Status>,
        code: Code,
        why: &str,
    ) {
        let status = self.keep(outcome).err().expect(why);
        assert_eq!(reason(&status), (code, why.to_owned()), "{status:?}");
    }
}

/// All commands that Redis gets.
struct Monitor(Arc<Mutex<Vec<u8>>>);

impl Monitor {
    /// Listens until Redis closes the connection.
    async fn start(redis: &RedisServer) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let seen = Arc::new(Mutex::new(vec![]));
        let keep = Arc::clone(&seen);
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                keep.lock().unwrap().extend_from_slice(&buffer[..len]);
            }
        });
        let monitor = Self(seen);
        until(|| monitor.seen().starts_with(b"+OK")).await;
        monitor
    }

    fn seen(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

/// The platform under test and what has been seen of it.
pub(crate) struct Stage {
    pub(crate) platform: Platform,
    pub(crate) otlp: OtlpSink,
    pub(crate) told: Told,
    monitors: Vec<Monitor>,
    /// Replicas in the order of their start; the first is the one to call.
    pub(crate) replicas: Vec<Replica>,
}

impl Stage {
    async fn set() -> Self {
        let redis = Options::default().durable().set("rdbcompression", &["no"]);
        let platform = Platform::start_with(redis).await;
        let monitors = vec![Monitor::start(&platform.redis).await];
        let otlp = OtlpSink::start().await;
        let mut stage =
            Self { platform, otlp, told: Told::default(), monitors, replicas: Vec::new() };
        stage.replica(&["--log-format", "json", "--max-preparations-per-minute", "600"]).await;
        stage.replica(&["--log-format", "text", "--max-preparations-per-minute", "600"]).await;
        stage
    }

    /// One more replica, as talkative as it gets.
    pub(crate) async fn replica(&mut self, flags: &[&str]) {
        let url = self.otlp.url();
        let loud = ["--log", "trace"];
        let collected =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("OTEL_METRIC_EXPORT_INTERVAL", "500")];
        let quota = ["--max-secrets-per-workspace", "4"];
        let flags = [&loud[..], &quota[..], flags].concat();
        let replica = self.platform.launch_in(&[&LOUD[..], &collected].concat(), &flags);
        replica.ready(&self.platform).await;
        self.replicas.push(replica);
    }

    /// A client of the first replica.
    pub(crate) async fn client(&self, caller: &str) -> Client {
        self.platform.client(&self.replicas[0], caller).await
    }

    /// Redis ends as in a crash and starts again.
    pub(crate) async fn restart_redis(&mut self) {
        self.platform.redis.restart().await;
        self.monitors.push(Monitor::start(&self.platform.redis).await);
    }

    /// All places in which neither values nor data keys may be.
    fn places(&self) -> Vec<(String, Vec<u8>)> {
        let mut places = vec![
            ("answers and errors".to_owned(), self.told.0.clone()),
            ("traces and metrics".to_owned(), self.otlp.kept()),
        ];
        for (i, replica) in self.replicas.iter().enumerate() {
            places.push((format!("stderr {i}"), replica.stderr().into_bytes()));
            if !replica.stdout().is_empty() {
                places.push((format!("audit {i}"), replica.stdout().into_bytes()));
            }
        }
        for (i, monitor) in self.monitors.iter().enumerate() {
            places.push((format!("MONITOR {i}"), monitor.seen()));
        }
        let mut raw = RawRedis::connect(&self.platform.redis);
        let keys = raw.keys();
        let dumps: Vec<Vec<u8>> = keys.iter().map(|key| raw.command(&[b"DUMP", key])).collect();
        places.push(("DUMP".to_owned(), dumps.concat()));
        places.push(("memory".to_owned(), raw.everything()));
        let slow: redis::Value = raw.command(&[b"SLOWLOG", b"GET", b"-1"]);
        places.push(("SLOWLOG".to_owned(), format!("{slow:?}").into_bytes()));
        raw.command::<()>(&[b"SAVE"]);
        let [_, directory]: [String; 2] = raw.command(&[b"CONFIG", b"GET", b"dir"]);
        files(Path::new(&directory), &mut places);
        for end in ["dump.rdb", ".aof"] {
            assert!(places.iter().any(|(place, _)| place.ends_with(end)), "no {end}");
        }
        places
    }
}

/// All files below a directory that hold anything.
pub(crate) fn files(directory: &Path, places: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, places);
        } else {
            let content = fs::read(&path).unwrap();
            if !content.is_empty() {
                places.push((path.display().to_string(), content));
            }
        }
    }
}

/// The canaries, and distinctive parts of them, as a log that breaks or trims
/// lines would leave them.
pub(crate) fn canaries<'a>() -> impl Iterator<Item = (&'static str, &'a [u8])> {
    const PARTS: [(&str, &str); 4] = [
        ("part of one", "7Qx2Vt9LmW4zR8kP"),
        ("part of two", "Bq5\\Yh3Jd8'; Zoë, 🔑"),
        ("end of two", "%7b{Nw6Gc0Fs}</end>"),
        ("part of three", "Xu4Ke8Ro2Ia6Pv1Tz9"),
    ];
    let whole = ["one", "two", "three"].into_iter().zip(CANARIES);
    whole.chain(PARTS).map(|(name, text)| (name, text.as_bytes()))
}

/// Calls that succeed: each canary created, replaced and resolved.
async fn successes(stage: &mut Stage) {
    let mut people = stage.client("platform").await;
    let mut readers = [
        stage.client("executor").await,
        stage.platform.client(&stage.replicas[1], "executor").await,
    ];
    for (i, canary) in CANARIES.into_iter().enumerate() {
        let workspace = format!("ws{i}");
        let mut request = create(&workspace, "KEY", canary);
        request.validate_only = true;
        stage.told.keep(people.create_secret(request.clone()).await).unwrap();
        request.validate_only = false;
        request.request_id = "once".to_owned();
        stage.told.keep(people.create_secret(request.clone()).await).unwrap();
        stage.told.keep(people.create_secret(request.clone()).await).unwrap();
        for next in CANARIES {
            let mut change = update(&workspace, "KEY");
            change.value = Some(next.to_owned());
            stage.told.keep(people.update_secret(change).await).unwrap();
            for reader in &mut readers {
                let answer = reader.resolve_secrets(resolve(&workspace, &["KEY=k"])).await;
                assert_eq!(value(&answer.unwrap().into_inner(), "k"), next);
            }
        }
        // CANARIES stand in the versions 2 to 4; back comes the first of them.
        let listed = stage.told.keep(people.list_secret_versions(versions(&workspace)).await);
        assert_eq!(listed.unwrap().versions.len(), 4);
        stage.told.keep(people.rollback_secret(rollback(&workspace, 2)).await).unwrap();
        for reader in &mut readers {
            let pins = ["KEY@1=a", "KEY@3=b", "KEY=c"];
            let answer = reader.resolve_secrets(resolve(&workspace, &pins)).await.unwrap();
            let answer = answer.into_inner();
            assert_eq!(
                ["a", "b", "c"].map(|k| value(&answer, k)),
                [canary, CANARIES[1], CANARIES[0]]
            );
        }
        let mut change = update(&workspace, "KEY");
        change.value = Some(canary.to_owned());
        change.allow_missing = true;
        change.request_id = "again".to_owned();
        for _ in 0..2 {
            stage.told.keep(people.update_secret(change.clone()).await).unwrap();
        }
        stage.told.keep(people.get_secret(get(&workspace, "KEY")).await).unwrap();
        stage.told.keep(people.list_secrets(list(&workspace)).await).unwrap();
        refreshed(stage, &workspace, canary).await;
        request.name = "GONE".to_owned();
        request.request_id.clear();
        stage.told.keep(people.create_secret(request).await).unwrap();
        stage.told.keep(people.delete_secret(delete(&workspace, "GONE")).await).unwrap();
        for _ in 0..2 {
            let again = UndeleteSecretRequest {
                workspace: workspace.clone(),
                name: "GONE".to_owned(),
                ..Default::default()
            };
            stage.told.keep(people.undelete_secret(again).await).unwrap();
            let answer = readers[1].resolve_secrets(resolve(&workspace, &["GONE=k"])).await;
            assert_eq!(value(&answer.unwrap().into_inner(), "k"), canary);
            stage.told.keep(people.delete_secret(delete(&workspace, "GONE")).await).unwrap();
        }
        let trail = ListAuditEventsRequest { workspace: workspace.clone(), ..Default::default() };
        let told = stage.told.keep(people.list_audit_events(trail).await).unwrap();
        assert_eq!(told.events.len(), 15);
        let mut deleted = list(&workspace);
        deleted.show_deleted = true;
        let listed = stage.told.keep(people.list_secrets(deleted).await).unwrap();
        assert_eq!(listed.secrets.len(), 2);
    }
}

/// An OAuth token that is refreshed under a lease, and who uses secrets.
async fn refreshed(stage: &mut Stage, workspace: &str, canary: &str) {
    let mut sheets = stage.client("sheets").await;
    let mut request = create(workspace, "OAUTH", canary);
    request.owner =
        Some(Owner { integration: "google_sheets".to_owned(), connection_id: "c".to_owned() });
    stage.told.keep(sheets.create_secret(request).await).unwrap();
    let acquire = AcquireRefreshLeaseRequest {
        workspace: workspace.to_owned(),
        name: "OAUTH".to_owned(),
        holder: "pod-1".to_owned(),
        ..Default::default()
    };
    let lease = stage.told.keep(sheets.acquire_refresh_lease(acquire).await).unwrap();
    for outcome in [None, Some((Code::Aborted, "LEASE_LOST"))] {
        let mut change = update(workspace, "OAUTH");
        change.value = Some(CANARIES[2].to_owned());
        change.fencing_token = Some(lease.fencing_token);
        let updated = sheets.update_secret(change).await;
        match outcome {
            None => _ = stage.told.keep(updated).unwrap(),
            Some((code, why)) => stage.told.refused(updated, code, why),
        }
    }
    let release = ReleaseRefreshLeaseRequest {
        workspace: workspace.to_owned(),
        name: "OAUTH".to_owned(),
        fencing_token: lease.fencing_token,
    };
    stage.told.keep(sheets.release_refresh_lease(release).await).unwrap();
    stage.told.keep(sheets.delete_secret(delete(workspace, "OAUTH")).await).unwrap();
    let usage = ListSecretUsageRequest {
        workspace: workspace.to_owned(),
        name: "KEY".to_owned(),
        ..Default::default()
    };
    let mut operator = stage.client("operator").await;
    stage.told.keep(operator.list_secret_usage(usage).await).unwrap();
}

fn versions(workspace: &str) -> ListSecretVersionsRequest {
    ListSecretVersionsRequest { workspace: workspace.to_owned(), name: "KEY".to_owned() }
}

fn rollback(workspace: &str, version: u64) -> RollbackSecretRequest {
    let (workspace, name) = (workspace.to_owned(), "KEY".to_owned());
    RollbackSecretRequest { workspace, name, version, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_and_data_keys_are_nowhere() {
    let mut stage = Stage::set().await;
    successes(&mut stage).await;
    keys::provoke(&mut stage).await;
    import::provoke(&mut stage).await;
    refusals::provoke(&mut stage).await;
    documents::provoke(&mut stage).await;
    faults::provoke(&mut stage).await;

    let open = streams::under_way(&mut stage).await;
    // An orderly end sends the last spans.
    for replica in &mut stage.replicas {
        replica.terminate();
        assert!(replica.ended(Duration::from_secs(30)).await.success());
    }
    streams::cut(&mut stage, open).await;
    let keys = stage.platform.kms.data_keys();
    assert!(keys.len() > 5);
    let keys = keys.iter().map(|key| ("data key", key.as_slice()));
    let needles = Needles::new(canaries().chain(keys));
    let places = stage.places();
    needles.assert_absent(&places);

    // They did talk, and what they said was seen.
    let stderr = stage.replicas[0].stderr();
    for level in ["DEBUG", "INFO", "WARN", "ERROR"] {
        assert!(stderr.contains(level), "{level}: {stderr}");
    }
    // Libraries are never heard below INFO, whatever they would say there.
    for line in stderr.lines().filter(|line| line.starts_with('{')) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let own = line["target"].as_str().unwrap().starts_with("workflow_secrets");
        assert!(own || !["DEBUG", "TRACE"].contains(&line["level"].as_str().unwrap()), "{line}");
    }
    let place = |name: &str| &places.iter().find(|(place, _)| place.contains(name)).unwrap().1;
    let contains = |name: &str, text: &str| {
        String::from_utf8_lossy(place(name)).contains(text).then_some(()).expect(name);
    };
    for method in ["CreateSecret", "RenderTemplate", "CheckReferences", "PrepareTemplate", "Redact"]
    {
        contains("traces", &format!("/workflowsecrets.v1.SecretsService/{method}"));
    }
    for why in ["RECORD_CORRUPT", "VALUES_PASTED", "SHUTTING_DOWN"] {
        contains("answers and errors", why);
    }
    assert!(stage.replicas[0].audit().iter().any(|line| line["outcome"] == "SECRETS_UNRESOLVED"));
    contains("MONITOR 0", "EVALSHA");
    contains("memory", "workflow-secrets:{ws0}:records");

    // Had any been logged or stored, the search would have found it.
    let line = serde_json::json!({"level": "INFO", "fields": {"value": CANARIES[1]}});
    let log = format!("{stderr}{line}\n");
    assert!(needles.found_in(log.as_bytes()).contains(&"two, JSON"));
    let monitor = Monitor::start(&stage.platform.redis).await;
    let mut raw = RawRedis::connect(&stage.platform.redis);
    let key = stage.platform.kms.data_keys()[0];
    for (i, planted) in [CANARIES[0].as_bytes(), CANARIES[1].as_bytes(), &key].iter().enumerate() {
        raw.command::<()>(&[b"SET", format!("planted{i}").as_bytes(), planted]);
    }
    raw.command::<String>(&[b"ECHO", b"all planted"]);
    until(|| monitor.seen().windows(11).any(|seen| seen == b"all planted")).await;
    stage.monitors.push(monitor);
    let last = format!("MONITOR {}", stage.monitors.len() - 1);
    let places = stage.places();
    for name in ["memory", "DUMP", "dump.rdb", "incr.aof", &last] {
        let place = places.iter().find(|(place, _)| place.contains(name)).expect(name);
        let found = needles.found_in(&place.1).join("; ");
        for what in ["one, ", "two, ", "data key, "] {
            assert!(found.contains(what), "{name}: {what} not among {found}");
        }
    }
}
