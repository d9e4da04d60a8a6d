//! Deleted secrets: hidden, brought back, purged.

use std::{collections::BTreeMap, time::Duration};

use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto;

use super::{Stage, WS, new_value};
use crate::support::{
    platform::{
        Client, Platform, assert_refused, create, delete, get, list, reason, resolve, spiffe_id,
        update, value, with,
    },
    redis_server::until,
};

fn undelete(name: &str) -> proto::UndeleteSecretRequest {
    let (workspace, name) = (WS.to_owned(), name.to_owned());
    proto::UndeleteSecretRequest { workspace, name, ..Default::default() }
}

fn permanent(name: &str) -> proto::DeleteSecretRequest {
    proto::DeleteSecretRequest { permanent: true, ..delete(WS, name) }
}

fn versions(name: &str) -> proto::ListSecretVersionsRequest {
    proto::ListSecretVersionsRequest { workspace: WS.to_owned(), name: name.to_owned() }
}

fn with_deleted() -> proto::ListSecretsRequest {
    proto::ListSecretsRequest { show_deleted: true, show_system_managed: true, ..list(WS) }
}

async fn listed(client: &mut Client, request: proto::ListSecretsRequest) -> Vec<proto::Secret> {
    client.list_secrets(request).await.unwrap().into_inner().secrets
}

/// Names; with a star those that are deleted.
fn told(secrets: &[proto::Secret]) -> Vec<String> {
    let star = |secret: &proto::Secret| if secret.delete_time.is_some() { "*" } else { "" };
    secrets.iter().map(|secret| format!("{}{}", secret.name, star(secret))).collect()
}

#[tokio::test]
async fn a_deleted_secret_comes_back_as_it_was() {
    for stage in Stage::both(&[]).await {
        let mut clients = stage.clients("platform").await;
        let mut executor = stage.client("executor").await;
        clients[0].create_secret(create(WS, "KEY", "value-1")).await.unwrap();
        let change = with(new_value("KEY", "value-2"), |r| {
            r.description = Some("about".to_owned());
            r.expire_time = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
        });
        let before = clients[0].update_secret(change).await.unwrap().into_inner();

        let stale = proto::DeleteSecretRequest { etag: "x".to_owned(), ..delete(WS, "KEY") };
        assert_refused(clients[0].delete_secret(stale).await, Code::Aborted, "ETAG_MISMATCH");
        let request = proto::DeleteSecretRequest {
            etag: before.etag.clone(),
            request_id: "delete".to_owned(),
            ..delete(WS, "KEY")
        };
        for client in &mut clients {
            client.delete_secret(request.clone()).await.unwrap();
        }
        // Another request under that id is another one.
        let other = proto::DeleteSecretRequest { permanent: true, ..request };
        let outcome = clients[0].delete_secret(other).await;
        assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");

        // No call finds it.
        let client = clients.last_mut().unwrap();
        let gone = "SECRET_NOT_FOUND";
        assert_refused(client.get_secret(get(WS, "KEY")).await, Code::NotFound, gone);
        assert_refused(client.update_secret(new_value("KEY", "x")).await, Code::NotFound, gone);
        assert_refused(client.delete_secret(delete(WS, "KEY")).await, Code::NotFound, gone);
        assert_refused(client.delete_secret(permanent("KEY")).await, Code::NotFound, gone);
        let outcome = client.list_secret_versions(versions("KEY")).await;
        assert_refused(outcome, Code::NotFound, gone);
        let back = proto::RollbackSecretRequest {
            workspace: WS.to_owned(),
            name: "KEY".to_owned(),
            version: 1,
            ..Default::default()
        };
        assert_refused(client.rollback_secret(back).await, Code::NotFound, gone);
        for pin in ["KEY", "KEY@1", "KEY@2"] {
            let outcome = executor.resolve_secrets(resolve(WS, &[pin])).await;
            assert_refused(outcome, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
        }
        assert!(listed(client, list(WS)).await.is_empty());
        let shown = listed(client, with_deleted()).await;
        assert_eq!(told(&shown), ["KEY*"]);
        let (delete_time, purge_time) =
            (shown[0].delete_time.unwrap(), shown[0].purge_time.unwrap());
        assert_eq!(purge_time.seconds - delete_time.seconds, 7 * 24 * 60 * 60);
        let expected = proto::Secret {
            etag: shown[0].etag.clone(),
            delete_time: Some(delete_time),
            purge_time: Some(purge_time),
            ..before.clone()
        };
        assert_eq!(shown[0], expected);
        assert_ne!(shown[0].etag, before.etag);
        if stage.redis {
            let count = |kind| stage.keys(kind).unwrap().len();
            assert_eq!(["m/", "v/", "h/", "d/"].map(count), [0, 0, 2, 1]);
        }

        // It is for those who may manage it to bring it back.
        for caller in ["executor", "operator", "sheets", "stranger"] {
            let outcome = stage.client(caller).await.undelete_secret(undelete("KEY")).await;
            assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        }
        let request =
            proto::UndeleteSecretRequest { request_id: "undelete".to_owned(), ..undelete("KEY") };
        let after = client.undelete_secret(request.clone()).await.unwrap().into_inner();
        let expected = proto::Secret {
            etag: after.etag.clone(),
            update_time: after.update_time,
            updated_by: spiffe_id("platform"),
            ..before.clone()
        };
        assert_eq!(after, expected);
        assert!(![&before.etag, &shown[0].etag].contains(&&after.etag));
        for client in &mut clients {
            let again = client.undelete_secret(request.clone()).await.unwrap().into_inner();
            assert_eq!(again, after);
            assert_eq!(client.get_secret(get(WS, "KEY")).await.unwrap().into_inner(), after);
            assert_eq!(told(&listed(client, with_deleted()).await), ["KEY"]);
        }
        let asked = ["KEY=now", "KEY@1=then"];
        let answer = executor.resolve_secrets(resolve(WS, &asked)).await.unwrap().into_inner();
        assert_eq!(["now", "then"].map(|alias| value(&answer, alias)), ["value-2", "value-1"]);
        if stage.redis {
            let count = |kind| stage.keys(kind).unwrap().len();
            assert_eq!(["m/", "v/", "h/", "d/"].map(count), [1, 1, 1, 0]);
        }
        // No state of it from before is the current one.
        for etag in [before.etag, shown[0].etag.clone()] {
            let request = with(new_value("KEY", "x"), |r| r.etag = etag.clone());
            let outcome = clients[0].update_secret(request).await;
            assert_refused(outcome, Code::Aborted, "ETAG_MISMATCH");
        }
        let lines = stage.replicas.iter().flat_map(|replica| replica.audit());
        let undeleted =
            lines.filter(|line| line["action"] == "undelete" && line["outcome"] == "ok");
        let told: Vec<_> = undeleted.map(|line| line["version"].clone()).collect();
        assert!(!told.is_empty() && told.iter().all(|version| version == 2));
    }
}

#[tokio::test]
async fn a_name_may_be_used_again() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        let mut executor = stage.client("executor").await;
        let mut uids = vec![];
        for text in ["first", "second", "third"] {
            let secret = client.create_secret(create(WS, "KEY", text)).await.unwrap().into_inner();
            assert_eq!(secret.version, 1);
            uids.push(secret.uid);
            client.delete_secret(delete(WS, "KEY")).await.unwrap();
        }
        client.create_secret(create(WS, "KEY", "fourth")).await.unwrap();
        for request in [
            undelete("KEY"),
            proto::UndeleteSecretRequest { uid: uids[0].clone(), ..undelete("KEY") },
        ] {
            let outcome = client.undelete_secret(request).await;
            let status = assert_refused(outcome, Code::AlreadyExists, "SECRET_EXISTS");
            assert_eq!(status.get_error_details().resource_info().unwrap().resource_name, "KEY");
        }
        assert_eq!(
            told(&listed(&mut client, with_deleted()).await),
            ["KEY", "KEY*", "KEY*", "KEY*"]
        );

        // The one deleted last, unless another is named.
        client.delete_secret(permanent("KEY")).await.unwrap();
        let mut resolves = async |text: &str| {
            let answer = executor.resolve_secrets(resolve(WS, &["KEY"])).await.unwrap();
            assert_eq!(value(&answer.into_inner(), "KEY"), text);
        };
        let back = client.undelete_secret(undelete("KEY")).await.unwrap().into_inner();
        assert_eq!(back.uid, uids[2]);
        resolves("third").await;
        client.delete_secret(delete(WS, "KEY")).await.unwrap();
        let named = proto::UndeleteSecretRequest { uid: uids[0].clone(), ..undelete("KEY") };
        assert_eq!(client.undelete_secret(named.clone()).await.unwrap().into_inner().uid, uids[0]);
        resolves("first").await;

        client.delete_secret(permanent("KEY")).await.unwrap();
        let outcome = client.undelete_secret(named.clone()).await;
        assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
        let elsewhere = proto::UndeleteSecretRequest { name: "OTHER".to_owned(), ..named };
        let outcome = client.undelete_secret(elsewhere).await;
        assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
        for uid in ["canary", &uids[1].to_uppercase(), &uids[1].replace('-', "")] {
            let request = proto::UndeleteSecretRequest { uid: uid.to_owned(), ..undelete("KEY") };
            let outcome = client.undelete_secret(request).await;
            let status = assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
            assert!(!format!("{status:?}").contains("canary"));
        }
        assert_eq!(told(&listed(&mut client, with_deleted()).await), ["KEY*", "KEY*"]);
    }
}

#[tokio::test]
async fn some_secrets_are_deleted_for_good() {
    for (flags, deletion) in [
        (["--deleted-retention", "7d"], permanent("KEY")),
        (["--deleted-retention", "0s"], delete(WS, "KEY")),
    ] {
        for stage in Stage::both(&flags).await {
            let mut client = stage.client("platform").await;
            let mut sheets = stage.client("sheets").await;
            client.create_secret(create(WS, "KEY", "value-1")).await.unwrap();
            client.update_secret(new_value("KEY", "value-2")).await.unwrap();
            let owned = with(create(WS, "TOKEN", "token"), |r| {
                r.owner = Some(proto::Owner {
                    integration: "google_sheets".to_owned(),
                    connection_id: "c1".to_owned(),
                });
            });
            sheets.create_secret(owned).await.unwrap();

            client.delete_secret(deletion.clone()).await.unwrap();
            sheets.delete_secret(delete(WS, "TOKEN")).await.unwrap();
            for name in ["KEY", "TOKEN"] {
                let outcome = client.undelete_secret(undelete(name)).await;
                assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
            }
            assert!(listed(&mut client, with_deleted()).await.is_empty());
            if let Some(keys) = stage.keys("") {
                let left: Vec<_> = keys.iter().filter(|key| !key.starts_with("k/")).collect();
                assert!(left.iter().all(|key| key.starts_with("a/")), "{left:?}");
            }
        }
    }
}

#[tokio::test]
async fn deleted_secrets_stand_in_the_order_of_names() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        for name in ["A", "A1", "AA", "A_", "B", "_a", "a"] {
            for _ in 0..2 {
                client.create_secret(create(WS, name, "value")).await.unwrap();
                client.delete_secret(delete(WS, name)).await.unwrap();
            }
        }
        for name in ["A", "A_", "C"] {
            client.create_secret(create(WS, name, "value")).await.unwrap();
        }
        let expected = [
            "A", "A*", "A*", "A1*", "A1*", "AA*", "AA*", "A_", "A_*", "A_*", "B*", "B*", "C",
            "_a*", "_a*", "a*", "a*",
        ];
        for page_size in [1, 2, 3, 4, 5, 16, 17, 18] {
            let mut request = proto::ListSecretsRequest { page_size, ..with_deleted() };
            let (mut found, mut uids) = (vec![], vec![]);
            loop {
                let page = client.list_secrets(request.clone()).await.unwrap().into_inner();
                assert!(page.secrets.len() <= usize::try_from(page_size).unwrap());
                found.extend(told(&page.secrets));
                uids.extend(page.secrets.into_iter().map(|secret| secret.uid));
                if page.next_page_token.is_empty() {
                    break;
                }
                request.page_token = page.next_page_token;
            }
            assert_eq!(found, expected, "pages of {page_size}");
            uids.sort();
            uids.dedup();
            assert_eq!(uids.len(), expected.len());
        }
        assert_eq!(told(&listed(&mut client, list(WS)).await), ["A", "A_", "C"]);

        // A token of one listing is none of the other.
        for show_deleted in [true, false] {
            let request = proto::ListSecretsRequest { page_size: 1, show_deleted, ..list(WS) };
            let page = client.list_secrets(request.clone()).await.unwrap().into_inner();
            let other = proto::ListSecretsRequest {
                page_token: page.next_page_token,
                show_deleted: !show_deleted,
                ..request
            };
            let outcome = client.list_secrets(other).await;
            assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
        }
        // An integration sees none of them, and an operator all.
        let mut sheets = stage.client("sheets").await;
        assert!(listed(&mut sheets, with_deleted()).await.is_empty());
        let mut operator = stage.client("operator").await;
        assert_eq!(told(&listed(&mut operator, with_deleted()).await), expected);
    }
}

/// Those passed over make one kind of secrets come forward faster than the other.
#[tokio::test]
async fn none_is_lost_between_the_two_kinds() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        let ttl = Some(prost_types::Duration { seconds: 3_600, nanos: 0 });
        for (name, ttl) in
            [("A", None), ("B", None), ("C", None), ("K", ttl), ("L", ttl), ("Y", ttl), ("Z", ttl)]
        {
            client.create_secret(with(create(WS, name, "value"), |r| r.ttl = ttl)).await.unwrap();
        }
        for name in ["L", "Y", "Z"] {
            client.delete_secret(delete(WS, name)).await.unwrap();
        }
        for page_size in [1, 2, 3, 4] {
            let mut request = proto::ListSecretsRequest {
                page_size,
                expiring_within: Some(prost_types::Duration { seconds: 7_200, nanos: 0 }),
                ..with_deleted()
            };
            let mut found = vec![];
            loop {
                let page = client.list_secrets(request.clone()).await.unwrap().into_inner();
                found.extend(told(&page.secrets));
                if page.next_page_token.is_empty() {
                    break;
                }
                request.page_token = page.next_page_token;
            }
            assert_eq!(found, ["K", "L*", "Y*", "Z*"], "pages of {page_size}");
        }
    }
}

#[tokio::test]
async fn as_many_may_be_deleted_as_there_may_be() {
    for stage in Stage::both(&["--max-secrets-per-workspace", "2"]).await {
        let mut client = stage.client("platform").await;
        for name in ["A", "B"] {
            client.create_secret(create(WS, name, "value")).await.unwrap();
            client.delete_secret(delete(WS, name)).await.unwrap();
        }
        for name in ["C", "D"] {
            client.create_secret(create(WS, name, "value")).await.unwrap();
        }
        let outcome = client.delete_secret(delete(WS, "C")).await;
        let status = assert_refused(outcome, Code::ResourceExhausted, "QUOTA_EXCEEDED");
        let details = status.get_error_details();
        let told = &details.quota_failure().unwrap().violations[0].description;
        assert!(told.contains("2 deleted secrets"), "{told}");
        let outcome = client.undelete_secret(undelete("A")).await;
        let status = assert_refused(outcome, Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert!(!status.message().contains("deleted"), "{status:?}");
        // Nothing was done.
        client.get_secret(get(WS, "C")).await.unwrap();
        client.delete_secret(permanent("C")).await.unwrap();
        client.undelete_secret(undelete("A")).await.unwrap();
        client.delete_secret(delete(WS, "D")).await.unwrap();
        assert_eq!(
            super::deletion::told(&listed(&mut client, with_deleted()).await),
            ["A", "B*", "D*"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_is_purged_whoever_is_left() {
    for mut stage in Stage::both(&["--deleted-retention", "3s"]).await {
        let mut client = stage.client("platform").await;
        for name in ["A", "B", "C"] {
            client.create_secret(create(WS, name, "value-1")).await.unwrap();
            client.update_secret(new_value(name, "value-2")).await.unwrap();
            client.delete_secret(delete(WS, name)).await.unwrap();
        }
        // One comes back in time, one name is used again.
        client.undelete_secret(undelete("B")).await.unwrap();
        client.create_secret(create(WS, "C", "anew")).await.unwrap();
        // Whoever deleted them is no more.
        if stage.redis {
            stage.replicas.remove(1).kill9();
        } else {
            stage.restart(&["--deleted-retention", "3s"]).await;
        }
        let mut client = stage.client("platform").await;
        for _ in 0..200 {
            if told(&listed(&mut client, with_deleted()).await) == ["B", "C"] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(told(&listed(&mut client, with_deleted()).await), ["B", "C"]);
        let outcome = client.undelete_secret(undelete("A")).await;
        assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
        if stage.redis {
            until(|| stage.keys("d/").unwrap().is_empty()).await;
            assert_eq!(stage.keys("h/").unwrap().len(), 1, "of B");
            let mut index = super::RawRedis::connect(&stage.platform.redis);
            let index: Vec<String> =
                index.command(&[b"ZRANGE", b"workflow-secrets:{ws}:index", b"0", b"-1"]);
            assert_eq!(index, stage.keys("").unwrap());
        }
        let mut executor = stage.client("executor").await;
        let answer = executor.resolve_secrets(resolve(WS, &["B", "B@1=old", "C"])).await;
        let answer = answer.unwrap().into_inner();
        let found = ["B", "old", "C"].map(|alias| value(&answer, alias));
        assert_eq!(found, ["value-2", "value-1", "anew"]);
    }
}

/// Redis tells workspaces in no order: some of these come before the other.
#[tokio::test]
async fn broken_workspaces_do_not_keep_others_from_being_purged() {
    let stage = Stage::set(true, &["--deleted-retention", "1s"]).await;
    let mut client = stage.client("platform").await;
    client.create_secret(create(WS, "KEY", "value")).await.unwrap();
    for number in 0..20 {
        let workspace = format!("broken-{number}");
        client.create_secret(create(&workspace, "KEY", "value")).await.unwrap();
        let index = format!("workflow-secrets:{{{workspace}}}:index");
        stage.platform.redis.cli(&["SET", &index, "x"]);
    }
    client.delete_secret(delete(WS, "KEY")).await.unwrap();
    until(|| stage.keys("h/").unwrap().is_empty()).await;
}

/// Whatever is torn apart by kill -9, each secret is there or deleted, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_never_half_deleted() {
    const NAMES: usize = 12;
    let platform = Platform::start().await;
    let (mut doomed, survivor) = (platform.replica().await, platform.replica().await);
    let mut client = platform.client(&survivor, "platform").await;
    for number in 0..NAMES {
        client.create_secret(create(WS, &format!("K{number}"), "value-1")).await.unwrap();
    }
    let mut writers = JoinSet::new();
    for number in 0..NAMES {
        let mut clients = [
            platform.client(&doomed, "platform").await,
            platform.client(&survivor, "platform").await,
        ];
        writers.spawn(async move {
            let name = format!("K{number}");
            for round in 0..15 {
                let [first, second] = &mut clients;
                // The other replica may be faster, and the first may be gone.
                let deleted = first.delete_secret(delete(WS, &name)).await;
                let back = second.undelete_secret(undelete(&name)).await;
                let text = format!("value-{}", round + 2);
                let updated = second.update_secret(new_value(&name, &text)).await;
                for status in [deleted.err(), back.err(), updated.err()].into_iter().flatten() {
                    let cut = status.get_error_details().error_info().is_none();
                    let known = ["SECRET_NOT_FOUND", "SECRET_EXISTS", "CONCURRENT_UPDATE"];
                    assert!(cut || known.contains(&reason(&status).1.as_str()), "{status:?}");
                }
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    doomed.kill9();
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }

    let all = listed(&mut client, with_deleted()).await;
    let mut seen = BTreeMap::new();
    for secret in &all {
        *seen.entry(secret.name.clone()).or_insert(0) += 1;
        if secret.delete_time.is_some() {
            client.undelete_secret(undelete(&secret.name)).await.unwrap();
        }
    }
    assert!(seen.len() == NAMES && seen.values().all(|count| *count == 1), "{seen:?}");
    let mut executor = platform.client(&survivor, "executor").await;
    for secret in &all {
        let listed = client.list_secret_versions(versions(&secret.name)).await.unwrap();
        for version in listed.into_inner().versions {
            let pin = format!("{}@{}=k", secret.name, version.version);
            let answer = executor.resolve_secrets(resolve(WS, &[&pin])).await.unwrap();
            assert!(value(&answer.into_inner(), "k").starts_with("value-"));
        }
    }
    let about = with(update(WS, "K0"), |r| r.description = Some("fine".to_owned()));
    client.update_secret(about).await.unwrap();
}
