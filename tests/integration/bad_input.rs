//! Every field of every request at its limit and one past it: the field is
//! named, what was sent is not echoed, and nothing is stored.

use prost_types::Timestamp;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto::{self, Credential, Owner};

use super::support::platform::{
    Client, Platform, Replica, assert_refused, create, delete, get, list, reason, resolve, update,
    with,
};

const WS: &str = "ws";

/// Stands in all that is refused, and must come back nowhere.
const CANARY: &str = "canary";

/// The canary and more, this many characters in all.
fn canary(length: usize) -> String {
    CANARY.to_owned() + &"x".repeat(length - CANARY.len())
}

fn time(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

fn owner(integration: &str, connection_id: &str) -> Option<Owner> {
    let (integration, connection_id) = (integration.to_owned(), connection_id.to_owned());
    Some(Owner { integration, connection_id })
}

/// A service that holds one secret, `KEY`.
struct Service {
    platform: Platform,
    replica: Replica,
    client: Client,
    executor: Client,
    changes: String,
}

impl Service {
    async fn start() -> Self {
        let platform = Platform::start().await;
        let replica = platform.replica_with(&["--log", "trace"]).await;
        let mut client = platform.client(&replica, "platform").await;
        let executor = platform.client(&replica, "executor").await;
        client.create_secret(create(WS, "KEY", "value")).await.unwrap();
        let changes = changes(&platform);
        Self { platform, replica, client, executor, changes }
    }

    /// The six calls on one secret, with the field that holds its name.
    async fn calls(&mut self, ws: &str, name: &str) -> [(&'static str, Result<(), Status>); 6] {
        let client = &mut self.client;
        let change = with(update(ws, name), |r| r.description = Some(String::new()));
        [
            ("name", client.create_secret(create(ws, name, "value")).await.map(drop)),
            ("name", client.get_secret(get(ws, name)).await.map(drop)),
            ("name", client.update_secret(change).await.map(drop)),
            ("", client.list_secrets(list(ws)).await.map(drop)),
            (
                "credentials[0].secret",
                self.executor.resolve_secrets(resolve(ws, &[name])).await.map(drop),
            ),
            ("name", client.delete_secret(delete(ws, name)).await.map(drop)),
        ]
    }

    async fn create(&mut self, request: proto::CreateSecretRequest) -> Result<(), Status> {
        self.client.create_secret(request).await.map(drop)
    }

    async fn update(&mut self, request: proto::UpdateSecretRequest) -> Result<(), Status> {
        self.client.update_secret(request).await.map(drop)
    }

    async fn resolve(&mut self, request: proto::ResolveSecretsRequest) -> Result<(), Status> {
        self.executor.resolve_secrets(request).await.map(drop)
    }

    /// Nothing was stored since the start, and nothing refused was written
    /// down anywhere.
    fn assert_untouched(&self) {
        assert_eq!(changes(&self.platform), self.changes);
        assert!(!self.replica.stdout().contains(CANARY));
        assert!(!self.replica.stderr().contains(CANARY));
        let invalid = |line: &serde_json::Value| line["outcome"] == "INVALID_FIELD";
        assert!(self.replica.audit().iter().any(invalid), "refusals are audited");
    }
}

/// How much Redis was changed so far.
fn changes(platform: &Platform) -> String {
    let info = platform.redis.cli(&["INFO", "persistence"]);
    let line = info.lines().find(|line| line.starts_with("rdb_changes_since_last_save:"));
    line.unwrap().to_owned()
}

/// Asserts that exactly these fields are named, and nothing is echoed.
#[track_caller]
fn assert_named(outcome: Result<(), Status>, code: Code, why: &str, fields: &[&str]) {
    let status = assert_refused(outcome.map(Response::new), code, why);
    let details = status.get_error_details();
    let violations = details.bad_request().expect("a BadRequest").field_violations.iter();
    let named: Vec<_> = violations.clone().map(|violation| violation.field.as_str()).collect();
    assert_eq!(named, fields, "{status:?}");
    assert!(violations.clone().all(|violation| !violation.description.is_empty()));
    assert!(!format!("{status:?} {details:?}").contains(CANARY), "{status:?}");
}

#[track_caller]
fn assert_invalid(outcome: Result<(), Status>, fields: &[&str]) {
    assert_named(outcome, Code::InvalidArgument, "INVALID_FIELD", fields);
}

#[tokio::test]
async fn workspace_and_name_of_every_call() {
    let mut service = Service::start().await;
    let (over, edge) = (canary(129), "w".repeat(128));
    for bad in
        ["", "_canary", "-canary", "canary/a", "{canary}", "canary a", "canary\n", "canaryé", &over]
    {
        for (_, outcome) in service.calls(bad, "KEY").await {
            assert_invalid(outcome, &["workspace"]);
        }
    }
    let reserved = ["__proto__", "constructor", "prototype"];
    let malformed =
        ["", "9canary", "canary-a", "canary.a", "canary a", "canary\0", "çanary", &over];
    for bad in malformed.into_iter().chain(reserved) {
        for (field, outcome) in service.calls(WS, bad).await {
            match field {
                "" => outcome.unwrap(),
                _ => assert_invalid(outcome, &[field]),
            }
        }
    }
    service.assert_untouched();

    let longest = "N".repeat(128);
    for (workspace, name) in [("0", "_"), (&edge, &longest), ("a-_Z", "Proto"), (WS, "_proto__")] {
        for (_, outcome) in service.calls(workspace, name).await {
            outcome.unwrap();
        }
    }
}

#[tokio::test]
async fn fields_of_create() {
    type Fault = (&'static str, fn(&mut proto::CreateSecretRequest));
    let mut service = Service::start().await;
    let faults: &[Fault] = &[
        ("value", |r| r.value.clear()),
        ("description", |r| r.description = canary(1_025)),
        ("owner.integration", |r| r.owner = owner("", "c")),
        ("owner.integration", |r| r.owner = owner("_canary", "c")),
        ("owner.integration", |r| r.owner = owner("canary sheets", "c")),
        ("owner.integration", |r| r.owner = owner(&canary(65), "c")),
        ("owner.connection_id", |r| r.owner = owner("google_sheets", "")),
        ("owner.connection_id", |r| r.owner = owner("google_sheets", "canary/1")),
        ("owner.connection_id", |r| r.owner = owner("google_sheets", &canary(129))),
        // Past, the epoch, and what is no time.
        ("expire_time", |r| r.expire_time = time(1_700_000_000, 0)),
        ("expire_time", |r| r.expire_time = time(0, 0)),
        ("expire_time", |r| r.expire_time = time(-62_135_596_800, 0)),
        ("expire_time", |r| r.expire_time = time(-62_135_596_801, 0)),
        ("expire_time", |r| r.expire_time = time(253_402_300_800, 0)),
        ("expire_time", |r| r.expire_time = time(i64::MAX, 0)),
        ("expire_time", |r| r.expire_time = time(i64::MIN, 0)),
        ("expire_time", |r| r.expire_time = time(4_000_000_000, -1)),
        ("expire_time", |r| r.expire_time = time(4_000_000_000, 1_000_000_000)),
        ("request_id", |r| r.request_id = "canary 1".to_owned()),
        ("request_id", |r| r.request_id = "canary/1".to_owned()),
        ("request_id", |r| r.request_id = "canaryé".to_owned()),
        ("request_id", |r| r.request_id = canary(129)),
    ];
    for (field, fault) in faults {
        for validate_only in [false, true] {
            let request = with(create(WS, "NEW", CANARY), |r| r.validate_only = validate_only);
            assert_invalid(service.create(with(request, fault)).await, &[field]);
        }
    }
    let large = create(WS, "NEW", &canary(65_537));
    assert_named(
        service.create(large).await,
        Code::ResourceExhausted,
        "VALUE_TOO_LARGE",
        &["value"],
    );

    // All faults of a message are told at once.
    let everything = with(create("canary ", "canary-", ""), |r| {
        r.description = canary(1_025);
        r.owner = owner("_canary", "canary/");
        r.expire_time = time(0, -1);
        r.request_id = "canary ".to_owned();
    });
    let fields = ["value", "workspace", "name", "description", "owner.integration"];
    let more = ["owner.connection_id", "expire_time", "request_id"];
    assert_invalid(service.create(everything).await, &[&fields[..], &more].concat());
    service.assert_untouched();

    let edges: &[fn(&mut proto::CreateSecretRequest)] = &[
        |r| r.value = "x".repeat(65_536),
        |r| r.value = "\0".to_owned(),
        |r| r.value = "é".repeat(32_768),
        // Characters, not bytes.
        |r| r.description = "🔑".repeat(1_024),
        |r| r.expire_time = time(253_402_300_799, 999_999_999),
        |r| r.request_id = "._:-".repeat(32),
    ];
    for (number, edge) in edges.iter().enumerate() {
        let name = format!("EDGE{number}");
        service.create(with(create(WS, &name, "value"), edge)).await.unwrap();
    }
    // Well-formed, so that the policy has the next word.
    let owned = with(create(WS, "OWNED", "value"), |r| r.owner = owner(&"i".repeat(64), "c"));
    let status = service.create(owned).await.unwrap_err();
    assert_eq!(reason(&status), (Code::PermissionDenied, "NOT_GRANTED".to_owned()));
    let mut sheets = service.platform.client(&service.replica, "sheets").await;
    let longest = owner("google_sheets", &"c".repeat(128));
    let owned = with(create(WS, "OWNED", "value"), |r| r.owner.clone_from(&longest));
    assert_eq!(sheets.create_secret(owned).await.unwrap().into_inner().owner, longest);
}

#[tokio::test]
async fn fields_of_update_and_delete() {
    type Fault = (&'static str, fn(&mut proto::UpdateSecretRequest));
    let mut service = Service::start().await;
    let faults: &[Fault] = &[
        ("value", |r| r.value = Some(String::new())),
        // Nothing to change.
        ("value", |r| r.value = None),
        ("description", |r| r.description = Some(canary(1_025))),
        ("owner.integration", |r| r.owner = owner(&canary(65), "c")),
        ("owner.connection_id", |r| r.owner = owner("slack", &canary(129))),
        ("expire_time", |r| r.expire_time = time(1_700_000_000, 0)),
        ("expire_time", |r| r.expire_time = time(0, 1)),
        ("expire_time", |r| r.expire_time = time(0, -1)),
        ("expire_time", |r| r.expire_time = time(253_402_300_800, 0)),
        ("expire_time", |r| r.expire_time = time(4_000_000_000, 1_000_000_000)),
        ("request_id", |r| r.request_id = "canary 1".to_owned()),
        ("request_id", |r| r.request_id = canary(129)),
        // A person's secret has no owner.
        ("owner", |r| r.owner = owner("canary", "canary")),
    ];
    let change = |name: &str| with(update(WS, name), |r| r.value = Some(CANARY.to_owned()));
    for (field, fault) in faults {
        for validate_only in [false, true] {
            let request = with(change("KEY"), |r| r.validate_only = validate_only);
            assert_invalid(service.update(with(request, fault)).await, &[field]);
        }
    }
    let large = with(change("KEY"), |r| r.value = Some(canary(65_537)));
    assert_named(
        service.update(large).await,
        Code::ResourceExhausted,
        "VALUE_TOO_LARGE",
        &["value"],
    );
    let everything = with(update("canary ", "canary-"), |r| {
        r.value = Some(String::new());
        r.description = Some(canary(1_025));
        r.expire_time = time(0, -1);
        r.owner = owner("_canary", "canary/");
        r.request_id = "canary ".to_owned();
    });
    let fields = ["value", "workspace", "name", "description", "expire_time"];
    let more = ["owner.integration", "owner.connection_id", "request_id"];
    assert_invalid(service.update(everything).await, &[&fields[..], &more].concat());
    // An etag of any form is a mismatch, not a fault; nor is it echoed.
    let stale = with(change("KEY"), |r| r.etag = canary(4_096));
    let status = service.update(stale).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Aborted, "ETAG_MISMATCH".to_owned()));
    assert!(!format!("{status:?}").contains(CANARY));

    for id in ["canary 1".to_owned(), canary(129)] {
        let request = proto::DeleteSecretRequest { request_id: id, ..delete(WS, "KEY") };
        let outcome = service.client.delete_secret(request).await.map(drop);
        assert_invalid(outcome, &["request_id"]);
    }
    let request_id = "canary ".to_owned();
    let everything = proto::DeleteSecretRequest { request_id, ..delete("canary ", "canary-") };
    let outcome = service.client.delete_secret(everything).await.map(drop);
    assert_invalid(outcome, &["workspace", "name", "request_id"]);
    service.assert_untouched();

    let edges: &[fn(&mut proto::UpdateSecretRequest)] = &[
        |r| r.value = Some("x".repeat(65_536)),
        |r| r.description = Some("🔑".repeat(1_024)),
        |r| r.expire_time = time(253_402_300_799, 999_999_999),
        |r| r.expire_time = time(0, 0),
        |r| r.request_id = "r".repeat(128),
    ];
    for edge in edges {
        service.update(with(change("KEY"), edge)).await.unwrap();
    }
}

#[tokio::test]
async fn fields_of_list_and_resolve() {
    let mut service = Service::start().await;
    for page_size in [-1, i32::MIN] {
        let request = proto::ListSecretsRequest { page_size, ..list(WS) };
        let outcome = service.client.list_secrets(request).await.map(drop);
        assert_invalid(outcome, &["page_size"]);
    }
    for token in ["canary".to_owned(), canary(4_096), "canary\0é".to_owned()] {
        let request = proto::ListSecretsRequest { page_token: token, ..list(WS) };
        let outcome = service.client.list_secrets(request).await.map(drop);
        assert_invalid(outcome, &["page_token"]);
    }
    let everything = proto::ListSecretsRequest { page_size: -1, ..list("canary ") };
    let outcome = service.client.list_secrets(everything).await.map(drop);
    assert_invalid(outcome, &["workspace", "page_size"]);

    type Fault = (&'static str, fn(&mut proto::ResolveSecretsRequest));
    let faults: &[Fault] = &[
        ("workflow_id", |r| r.workflow_id = canary(129)),
        ("workflow_id", |r| r.workflow_id = "canary\n".to_owned()),
        ("run_id", |r| r.run_id = canary(129)),
        ("run_id", |r| r.run_id = "canaryé".to_owned()),
        ("credentials", |r| r.credentials.clear()),
        ("credentials[1].secret", |r| r.credentials.push(credential("", "a"))),
        ("credentials[1].secret", |r| r.credentials.push(credential("canary-", "a"))),
        ("credentials[1].secret", |r| r.credentials.push(credential("constructor", "a"))),
        ("credentials[1].alias", |r| r.credentials.push(credential("KEY", "canary.a"))),
        ("credentials[1].alias", |r| r.credentials.push(credential("KEY", &canary(129)))),
        ("credentials[1].alias", |r| r.credentials.push(credential("KEY", "__proto__"))),
        ("credentials[1].alias", |r| r.credentials.push(credential("KEY", "constructor"))),
        ("credentials[1].alias", |r| r.credentials.push(credential("KEY", "prototype"))),
        // Twice the same key: by alias, by default, and by both.
        ("credentials[1].alias", |r| r.credentials.push(credential("KEY", ""))),
        ("credentials[1].alias", |r| r.credentials.push(credential("OTHER", "KEY"))),
    ];
    for (field, fault) in faults {
        let request = with(resolve(WS, &["KEY"]), fault);
        assert_invalid(service.resolve(request).await, &[field]);
    }
    // A name and an alias both bad, and the third in line twice.
    let everything = with(resolve("canary ", &["canary-=canary-", "KEY", "canary."]), |r| {
        r.workflow_id = canary(129);
        r.run_id = canary(129);
    });
    let fields = ["workspace", "workflow_id", "run_id", "credentials[0].secret"];
    let more = ["credentials[0].alias", "credentials[2].secret"];
    assert_invalid(service.resolve(everything).await, &[&fields[..], &more].concat());
    let twice = resolve(WS, &["KEY=a", "KEY=b", "KEY=a", "KEY=b", "KEY=a"]);
    let fields = [2, 3, 4].map(|i| format!("credentials[{i}].alias"));
    assert_invalid(service.resolve(twice).await, &fields.each_ref().map(String::as_str));

    let aliases = |count: usize| {
        let credentials = (0..count).map(|i| credential("KEY", &format!("alias{i}")));
        proto::ResolveSecretsRequest { credentials: credentials.collect(), ..resolve(WS, &[]) }
    };
    let outcome = service.resolve(aliases(101)).await;
    assert_named(outcome, Code::ResourceExhausted, "TOO_MANY_CREDENTIALS", &["credentials"]);
    // As many faults as fit in a trailer are listed, the rest is counted.
    let bad = with(aliases(100), |r| r.credentials.iter_mut().for_each(|c| c.secret = canary(129)));
    let status = service.resolve(bad).await.unwrap_err();
    assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
    let details = status.get_error_details();
    let listed = details.bad_request().unwrap().field_violations.len();
    let unlisted: usize = details.error_info().unwrap().metadata["unlisted"].parse().unwrap();
    assert_eq!(listed + unlisted, 100);
    service.assert_untouched();

    service.resolve(aliases(100)).await.unwrap();
    let edge = with(resolve(WS, &["KEY"]), |r| {
        r.workflow_id = " ~".repeat(64);
        r.run_id = "r".repeat(128);
        r.credentials.push(credential("KEY", &"a".repeat(128)));
    });
    service.resolve(edge).await.unwrap();
}

fn credential(secret: &str, alias: &str) -> Credential {
    Credential {
        secret: secret.to_owned(),
        alias: alias.to_owned(),
        version: 0,
        ..Default::default()
    }
}
