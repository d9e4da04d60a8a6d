//! Earlier values: kept, listed, pinned, brought back.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use tokio::task::JoinSet;
use tonic::{Code, IntoRequest, metadata::MetadataValue};
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto;

use super::{Stage, WS, new_value};
use crate::support::{
    platform::{
        Client, assert_refused, create, delete, get, reason, resolve, spiffe_id, update, value,
        with,
    },
    raw_redis::RawRedis,
};

fn versions(name: &str) -> proto::ListSecretVersionsRequest {
    proto::ListSecretVersionsRequest { workspace: WS.to_owned(), name: name.to_owned() }
}

fn rollback(name: &str, version: u64) -> proto::RollbackSecretRequest {
    let (workspace, name) = (WS.to_owned(), name.to_owned());
    proto::RollbackSecretRequest { workspace, name, version, ..Default::default() }
}

async fn listed(client: &mut Client, name: &str) -> Vec<proto::SecretVersion> {
    client.list_secret_versions(versions(name)).await.unwrap().into_inner().versions
}

async fn numbers(client: &mut Client, name: &str) -> Vec<u64> {
    listed(client, name).await.iter().map(|version| version.version).collect()
}

/// The value of a pin such as `KEY@2`.
async fn pinned(executor: &mut Client, pin: &str) -> proto::ResolvedSecret {
    let answer = executor.resolve_secrets(resolve(WS, &[&format!("{pin}=k")])).await.unwrap();
    answer.into_inner().secrets["k"].clone()
}

#[track_caller]
fn unresolved<T>(outcome: Result<tonic::Response<T>, tonic::Status>) -> Vec<(String, String)> {
    let status = assert_refused(outcome, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    let details = status.get_error_details();
    let violations = details.precondition_failure().unwrap().violations.clone();
    violations.into_iter().map(|violation| (violation.r#type, violation.subject)).collect()
}

#[tokio::test]
async fn each_new_value_keeps_those_before() {
    for stage in Stage::both(&["--max-versions", "3"]).await {
        let mut clients = stage.clients("platform").await;
        let mut executors = stage.clients("executor").await;
        let mut sealed = vec![];
        for version in 1..=6 {
            let client = &mut clients[version % stage.replicas.len()];
            let actor = MetadataValue::try_from(format!("writer-{version}")).unwrap();
            let text = format!("value-{version}");
            if version == 1 {
                let mut request = create(WS, "KEY", &text).into_request();
                request.metadata_mut().insert("x-actor", actor);
                client.create_secret(request).await.unwrap();
            } else {
                let mut request = new_value("KEY", &text).into_request();
                request.metadata_mut().insert("x-actor", actor);
                client.update_secret(request).await.unwrap();
            }
            // Changes of anything else make no version.
            let about = with(update(WS, "KEY"), |r| r.description = Some(text.clone()));
            client.update_secret(about).await.unwrap();
            let later = Timestamp { seconds: 4_000_000_000, nanos: 0 };
            let expiring = with(update(WS, "KEY"), |r| r.expire_time = Some(later));
            client.update_secret(expiring).await.unwrap();
            if stage.redis {
                sealed.push(RawRedis::connect(&stage.platform.redis).record(WS, "v/KEY"));
            }
        }
        for client in &mut clients {
            let all = listed(client, "KEY").await;
            let told: Vec<_> =
                all.iter().map(|v| (v.version, v.created_by.as_str(), v.current)).collect();
            assert_eq!(
                told,
                [
                    (6, "writer-6", true),
                    (5, "writer-5", false),
                    (4, "writer-4", false),
                    (3, "writer-3", false)
                ]
            );
            let times: Vec<_> = all.iter().map(|v| v.create_time.unwrap()).collect();
            assert!(times.windows(2).all(|pair| {
                (pair[0].seconds, pair[0].nanos) > (pair[1].seconds, pair[1].nanos)
            }));
            let secret = client.get_secret(get(WS, "KEY")).await.unwrap().into_inner();
            assert_ne!(secret.update_time, Some(times[0]), "of the value, not of the last change");
        }
        // Each is what it was, byte for byte; those without room are gone.
        if let Some(keys) = stage.keys("h/") {
            let secret = clients[0].get_secret(get(WS, "KEY")).await.unwrap().into_inner();
            let expected: Vec<_> = (3..=5).map(|n| format!("h/{}/{n:020}", secret.uid)).collect();
            assert_eq!(keys, expected);
            let mut raw = RawRedis::connect(&stage.platform.redis);
            for (key, sealed) in expected.iter().zip(&sealed[2..]) {
                assert!(raw.record(WS, key) == *sealed);
            }
        }

        for executor in &mut executors {
            for version in 3..=6 {
                let found = pinned(executor, &format!("KEY@{version}")).await;
                let text = format!("value-{version}");
                assert_eq!((found.version, found.value.as_str()), (version, text.as_str()));
                assert_eq!(found.name, "KEY");
            }
            // Several at once, among others without.
            let asked = ["KEY", "KEY@3=three", "KEY@6=six", "KEY@5=five", "KEY@5=fifth"];
            let answer = executor.resolve_secrets(resolve(WS, &asked)).await.unwrap().into_inner();
            for (alias, text) in [
                ("KEY", "value-6"),
                ("three", "value-3"),
                ("six", "value-6"),
                ("five", "value-5"),
                ("fifth", "value-5"),
            ] {
                assert_eq!(value(&answer, alias), text);
            }
            // All or nothing, and each is named.
            let asked = ["KEY", "KEY@2=a", "KEY@7=b", "NONE@1=c", &format!("KEY@{}=d", u64::MAX)];
            let causes = unresolved(executor.resolve_secrets(resolve(WS, &asked)).await);
            let cause = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
            let gone = cause("VERSION_MISSING", "KEY");
            assert_eq!(causes, [cause("MISSING", "NONE"), gone.clone(), gone.clone(), gone]);
        }
        let lines = stage.replicas[0].audit();
        let pins = lines.iter().filter(|l| l["action"] == "resolve" && l["alias"] == "fifth");
        assert!(pins.clone().count() == 1 && pins.clone().all(|line| line["version"] == 5));

        // Deleted, all go; created again, it has no past.
        clients[0].delete_secret(delete(WS, "KEY")).await.unwrap();
        let outcome = clients[0].list_secret_versions(versions("KEY")).await;
        assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
        clients[0].create_secret(create(WS, "KEY", "anew")).await.unwrap();
        assert_eq!(numbers(&mut clients[0], "KEY").await, [1]);
        let causes = unresolved(executors[0].resolve_secrets(resolve(WS, &["KEY@5"])).await);
        assert_eq!(causes.len(), 1);
    }
}

#[tokio::test]
async fn the_number_kept_may_change() {
    for mut stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        client.create_secret(create(WS, "KEY", "value-1")).await.unwrap();
        for version in 2..=13 {
            client.update_secret(new_value("KEY", &format!("value-{version}"))).await.unwrap();
        }
        // 10 by default.
        assert_eq!(numbers(&mut client, "KEY").await, (3..=13).rev().collect::<Vec<_>>());

        for (keep, left) in [("100", 3..=14), ("2", 13..=15), ("0", 16..=16), ("1", 16..=17)] {
            stage.restart(&["--max-versions", keep]).await;
            let mut client = stage.client("platform").await;
            let mut executor = stage.client("executor").await;
            client.update_secret(new_value("KEY", &format!("value-{}", left.end()))).await.unwrap();
            assert_eq!(
                numbers(&mut client, "KEY").await,
                left.clone().rev().collect::<Vec<_>>(),
                "{keep}"
            );
            for version in left.clone() {
                let found = pinned(&mut executor, &format!("KEY@{version}")).await;
                assert_eq!(found.value, format!("value-{version}"));
            }
            if let Some(keys) = stage.keys("h/") {
                assert_eq!(keys.len() + 1, left.count(), "{keep}");
            }
        }
    }
}

#[tokio::test]
async fn an_earlier_value_becomes_the_newest() {
    for stage in Stage::both(&["--max-versions", "2"]).await {
        let mut client = stage.client("platform").await;
        let mut executors = stage.clients("executor").await;
        let created =
            client.create_secret(create(WS, "KEY", "value-1")).await.unwrap().into_inner();
        client.update_secret(new_value("KEY", "value-2")).await.unwrap();
        let later = Timestamp { seconds: 4_000_000_000, nanos: 7 };
        let change = with(new_value("KEY", "value-3"), |r| {
            r.description = Some("about".to_owned());
            r.expire_time = Some(later);
        });
        let third = client.update_secret(change).await.unwrap().into_inner();

        let mut request = proto::RollbackSecretRequest {
            etag: third.etag.clone(),
            request_id: "once".to_owned(),
            ..rollback("KEY", 1)
        }
        .into_request();
        request.metadata_mut().insert("x-actor", MetadataValue::from_static("zoe"));
        let first = client.rollback_secret(request).await.unwrap().into_inner();
        // With what the secret has now, not with what it had then.
        let expected = proto::Secret {
            version: 4,
            etag: first.etag.clone(),
            update_time: first.update_time,
            updated_by: "zoe".to_owned(),
            ..third.clone()
        };
        assert_eq!(first, expected);
        assert_ne!(first.etag, third.etag);
        assert_eq!(first.uid, created.uid);
        for executor in &mut executors {
            let found = pinned(executor, "KEY").await;
            assert_eq!((found.version, found.value.as_str()), (4, "value-1"));
            assert_eq!(found.expire_time, Some(later));
            assert_eq!(pinned(executor, "KEY@3").await.value, "value-3");
        }
        // It is a new value: the oldest has made room, that which came back.
        let all = listed(&mut client, "KEY").await;
        assert_eq!(all.iter().map(|v| v.version).collect::<Vec<_>>(), [4, 3, 2]);
        assert_eq!(all[0].created_by, "zoe");

        // The same request is answered, not carried out.
        let again = proto::RollbackSecretRequest {
            etag: third.etag.clone(),
            request_id: "once".to_owned(),
            ..rollback("KEY", 1)
        };
        for other in &mut stage.clients("platform").await {
            let answer = other.rollback_secret(again.clone()).await.unwrap().into_inner();
            assert_eq!(answer, first);
        }
        let other = proto::RollbackSecretRequest { version: 2, ..again };
        let outcome = client.rollback_secret(other).await;
        assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");

        let stale = proto::RollbackSecretRequest { etag: third.etag, ..rollback("KEY", 3) };
        assert_refused(client.rollback_secret(stale).await, Code::Aborted, "ETAG_MISMATCH");
        for version in [1, 4, 5] {
            let outcome = client.rollback_secret(rollback("KEY", version)).await;
            let status = assert_refused(outcome, Code::NotFound, "VERSION_NOT_FOUND");
            let details = status.get_error_details();
            assert_eq!(details.resource_info().unwrap().resource_name, format!("KEY/{version}"));
        }
        let outcome = client.rollback_secret(rollback("KEY", 0)).await;
        assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
        let outcome = client.rollback_secret(rollback("NONE", 1)).await;
        assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
        assert_eq!(client.get_secret(get(WS, "KEY")).await.unwrap().into_inner(), first);

        let lines = stage.replicas.last().unwrap().audit();
        let told = lines.iter().filter(|line| line["action"] == "rollback");
        let told: Vec<_> = told.map(|line| (&line["outcome"], &line["version"])).collect();
        assert_eq!(told[0].0, "ok");
        assert_eq!(told[0].1, 4);
    }
}

#[tokio::test]
async fn versions_are_for_whom_they_concern() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        client.create_secret(create(WS, "KEY", "value-1")).await.unwrap();
        client.update_secret(new_value("KEY", "value-2")).await.unwrap();
        let owner = Some(proto::Owner {
            integration: "google_sheets".to_owned(),
            connection_id: "c1".to_owned(),
        });
        let mut sheets = stage.client("sheets").await;
        let owned = |text: &str| {
            with(new_value("TOKEN", text), |r| {
                r.allow_missing = true;
                r.owner = owner.clone();
            })
        };
        for text in ["token-1", "token-2", "token-3"] {
            sheets.update_secret(owned(text)).await.unwrap();
        }
        // A revoked token does not linger.
        assert_eq!(numbers(&mut sheets, "TOKEN").await, [3]);
        if let Some(keys) = stage.keys("h/") {
            assert_eq!(keys.len(), 1, "{keys:?}");
        }
        let outcome = sheets.rollback_secret(rollback("TOKEN", 2)).await;
        assert_refused(outcome, Code::NotFound, "VERSION_NOT_FOUND");
        let mut executor = stage.client("executor").await;
        assert_eq!(pinned(&mut executor, "TOKEN@3").await.value, "token-3");
        let causes = unresolved(executor.resolve_secrets(resolve(WS, &["TOKEN@2"])).await);
        assert_eq!(causes[0].0, "VERSION_MISSING");

        let outcome = client.rollback_secret(rollback("TOKEN", 2)).await;
        assert_refused(outcome, Code::PermissionDenied, "SYSTEM_MANAGED");
        let outcome = sheets.rollback_secret(rollback("KEY", 1)).await;
        assert_refused(outcome, Code::PermissionDenied, "USER_MANAGED");
        for caller in ["executor", "operator", "stranger"] {
            let outcome = stage.client(caller).await.rollback_secret(rollback("KEY", 1)).await;
            assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        }
        for caller in ["executor", "stranger"] {
            let mut other = stage.client(caller).await;
            let outcome = other.list_secret_versions(versions("KEY")).await;
            assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        }
        for caller in ["sheets", "slack"] {
            let mut other = stage.client(caller).await;
            let outcome = other.list_secret_versions(versions("KEY")).await;
            assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
        }
        let mut slack = stage.client("slack").await;
        let outcome = slack.list_secret_versions(versions("TOKEN")).await;
        assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
        let mut operator = stage.client("operator").await;
        assert_eq!(numbers(&mut operator, "KEY").await, [2, 1]);
        assert_eq!(listed(&mut operator, "KEY").await[0].created_by, spiffe_id("platform"));
        assert_eq!(pinned(&mut executor, "KEY").await.value, "value-2");
    }
}

#[tokio::test]
async fn an_earlier_value_expires_with_its_secret() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        let mut executor = stage.client("executor").await;
        let soon = SystemTime::now() + Duration::from_secs(2);
        let over = || async move {
            let left = soon.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left + Duration::from_millis(20)).await;
        };
        let expiring = with(create(WS, "A", "a-1"), |r| r.expire_time = Some(soon.into()));
        client.create_secret(expiring).await.unwrap();
        client.create_secret(create(WS, "B", "b-1")).await.unwrap();
        // One is cleared, the other set: what was sealed with the old values is
        // the reverse.
        let cleared = with(new_value("A", "a-2"), |r| r.expire_time = Some(Timestamp::default()));
        client.update_secret(cleared).await.unwrap();
        let set = with(new_value("B", "b-2"), |r| r.expire_time = Some(soon.into()));
        client.update_secret(set).await.unwrap();
        assert_eq!(pinned(&mut executor, "A@1").await.expire_time, None);
        assert_eq!(pinned(&mut executor, "B@1").await.expire_time, Some(soon.into()));

        over().await;
        let found = pinned(&mut executor, "A@1").await;
        assert_eq!((found.value.as_str(), found.expire_time), ("a-1", None));
        let causes = unresolved(executor.resolve_secrets(resolve(WS, &["B@1"])).await);
        assert_eq!(causes, [("EXPIRED".to_owned(), "B".to_owned())]);
        // What came back from before the expiry expires all the same.
        client.rollback_secret(rollback("B", 1)).await.unwrap();
        let causes = unresolved(executor.resolve_secrets(resolve(WS, &["B"])).await);
        assert_eq!(causes[0].0, "EXPIRED");
        client.rollback_secret(rollback("A", 1)).await.unwrap();
        assert_eq!(pinned(&mut executor, "A").await.value, "a-1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pins_hold_while_values_change() {
    for stage in Stage::both(&["--max-versions", "3"]).await {
        let mut client = stage.client("platform").await;
        client.create_secret(create(WS, "KEY", "value-1")).await.unwrap();
        let mut tasks = JoinSet::new();
        for mut writer in stage.clients("platform").await {
            tasks.spawn(async move {
                for _ in 0..40 {
                    let now = writer.get_secret(get(WS, "KEY")).await.unwrap().into_inner();
                    let change =
                        with(new_value("KEY", &format!("value-{}", now.version + 1)), |r| {
                            r.etag = now.etag.clone();
                        });
                    let changed = writer.update_secret(change).await;
                    assert!(changed.is_ok() || reason(&changed.unwrap_err()).1 == "ETAG_MISMATCH");
                }
                0
            });
        }
        for mut executor in stage.clients("executor").await {
            tasks.spawn(async move {
                let mut found = 0;
                for _ in 0..150 {
                    let current = pinned(&mut executor, "KEY").await.version;
                    let pin = current.saturating_sub(2).max(1);
                    let asked = [format!("KEY@{pin}=old"), "KEY=new".to_owned()];
                    let asked: Vec<_> = asked.iter().map(String::as_str).collect();
                    match executor.resolve_secrets(resolve(WS, &asked)).await {
                        Ok(answer) => {
                            let answer = answer.into_inner();
                            assert_eq!(value(&answer, "old"), format!("value-{pin}"));
                            let new = &answer.secrets["new"];
                            assert_eq!(new.value, format!("value-{}", new.version));
                            found += 1;
                        }
                        // It may be dropped between the calls, never be broken.
                        Err(status) => {
                            let (_, why) = reason(&status);
                            let may = ["SECRETS_UNRESOLVED", "CONCURRENT_UPDATE"];
                            assert!(may.contains(&why.as_str()), "{status:?}");
                        }
                    }
                }
                found
            });
        }
        let found: i32 = tasks.join_all().await.into_iter().sum();
        assert!(found > 20, "{found}");
    }
}

#[tokio::test]
async fn an_earlier_value_opens_in_no_other_place() {
    let stage = Stage::set(true, &[]).await;
    let mut client = stage.client("platform").await;
    let mut executor = stage.client("executor").await;
    for name in ["ONE", "TWO"] {
        client.create_secret(create(WS, name, "value-1")).await.unwrap();
        for text in ["value-2", "value-3"] {
            client.update_secret(new_value(name, text)).await.unwrap();
        }
    }
    let mut raw = RawRedis::connect(&stage.platform.redis);
    let records = raw.records(WS);
    let uids: Vec<_> = {
        let mut uids = vec![];
        for name in ["ONE", "TWO"] {
            uids.push(client.get_secret(get(WS, name)).await.unwrap().into_inner().uid);
        }
        uids
    };
    let key = |secret: usize, version: u64| format!("h/{}/{version:020}", uids[secret]);
    let (first, second) = (&records[&key(0, 1)], &records[&key(0, 2)]);
    let mut flipped = first.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (what, bytes) in [
        ("another version", second),
        ("the current version", &records["v/ONE"]),
        ("another secret's", &records[&key(1, 1)]),
        ("a changed one", &flipped),
        ("no record", &b"0123456789".to_vec()),
    ] {
        raw.set(WS, &key(0, 1), bytes);
        let outcome = executor.resolve_secrets(resolve(WS, &["ONE@1"])).await;
        assert_refused(outcome, Code::DataLoss, "RECORD_CORRUPT");
        let outcome = client.rollback_secret(rollback("ONE", 1)).await;
        assert_refused(outcome, Code::DataLoss, "RECORD_CORRUPT");
        // The others do not suffer.
        assert_eq!(pinned(&mut executor, "ONE@2").await.value, "value-2", "{what}");
        assert_eq!(pinned(&mut executor, "ONE").await.value, "value-3", "{what}");
        raw.restore(WS, &records);
    }
    raw.remove(WS, &key(0, 1));
    let outcome = executor.resolve_secrets(resolve(WS, &["ONE@1"])).await;
    assert_refused(outcome, Code::DataLoss, "RECORD_CORRUPT");
    raw.restore(WS, &records);
    // An earlier value put back in place of the current one is none.
    raw.set(WS, "v/ONE", first);
    let outcome = executor.resolve_secrets(resolve(WS, &["ONE"])).await;
    assert_refused(outcome, Code::DataLoss, "RECORD_CORRUPT");
}

#[tokio::test]
async fn a_rendered_run_may_pin_versions_too() {
    for stage in Stage::both(&["--max-versions", "1"]).await {
        let mut client = stage.client("platform").await;
        let mut executor = stage.client("executor").await;
        client.create_secret(create(WS, "KEY", "value-1")).await.unwrap();
        for text in ["value-2", "value-3"] {
            client.update_secret(new_value("KEY", text)).await.unwrap();
        }
        let credentials = |version| {
            let (secret, alias) = ("KEY".to_owned(), "k".to_owned());
            vec![proto::Credential { secret, alias, version, ..Default::default() }]
        };
        for (version, found) in
            [(0, Some("value-3")), (3, Some("value-3")), (2, Some("value-2")), (1, None)]
        {
            let request = with(proto::RenderTemplateRequest::default(), |r| {
                r.workspace = WS.to_owned();
                r.credentials = credentials(version);
                r.template = Some(proto::render_template_request::Template::Text(String::new()));
            });
            let checked = with(proto::CheckReferencesRequest::default(), |r| {
                r.workspace = WS.to_owned();
                r.credentials = credentials(version);
            });
            let checked = executor.check_references(checked).await.unwrap().into_inner();
            assert_eq!(checked.resolvable, found.is_some());
            match (executor.render_template(request).await, found) {
                (Ok(answer), Some(found)) => {
                    assert_eq!(answer.get_ref().context_secrets["k"], found);
                    assert_eq!(checked.references[0].state(), proto::ReferenceState::Ok);
                }
                (outcome, None) => {
                    assert_eq!(
                        unresolved(outcome),
                        [("VERSION_MISSING".to_owned(), "KEY".to_owned())]
                    );
                    let state = proto::ReferenceState::VersionMissing;
                    assert_eq!(checked.references[0].state(), state);
                }
                (Err(status), _) => panic!("{status:?}"),
            }
        }
        let lines = stage.replicas.last().unwrap().audit();
        let told = lines.iter().filter(|line| line["action"] == "render");
        let told: Vec<_> = told.map(|line| line["version"].as_u64()).collect();
        assert_eq!(told, [Some(3), Some(3), Some(2), None]);
    }
}
