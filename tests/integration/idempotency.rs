//! Request ids: within 24 hours, the same request is answered with its first
//! outcome and is not carried out twice.

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::{Code, Request, metadata::MetadataValue};
use workflow_secrets::grpc::proto;

use super::support::platform::{
    Platform, assert_refused, create, delete, get, list, resolve, update, value, with,
};

const WS: &str = "ws";

fn create_as(id: &str, name: &str, text: &str) -> proto::CreateSecretRequest {
    with(create(WS, name, text), |r| r.request_id = id.to_owned())
}

fn update_as(id: &str, name: &str, text: &str) -> proto::UpdateSecretRequest {
    with(update(WS, name), |r| {
        r.request_id = id.to_owned();
        r.value = Some(text.to_owned());
    })
}

fn delete_as(id: &str, name: &str) -> proto::DeleteSecretRequest {
    proto::DeleteSecretRequest { request_id: id.to_owned(), ..delete(WS, name) }
}

fn timestamp(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

#[tokio::test]
async fn a_repeated_request_gets_its_first_answer() {
    let platform = Platform::start().await;
    let (one, two) = (platform.replica().await, platform.replica().await);
    let mut client = platform.client(&one, "platform").await;
    // The retry may reach another replica.
    let mut other = platform.client(&two, "platform").await;

    let first = create_as("id-1", "KEY", "value-1");
    let created = client.create_secret(first.clone()).await.unwrap().into_inner();
    // Times, uid and etag too.
    assert_eq!(other.create_secret(first.clone()).await.unwrap().into_inner(), created);

    // Even by another person: the caller is the same.
    let mut request = Request::new(first.clone());
    request.metadata_mut().insert("x-actor", MetadataValue::from_static("zoe"));
    assert_eq!(other.create_secret(request).await.unwrap().into_inner(), created);

    let second = update_as("id-2", "KEY", "value-2");
    let updated = client.update_secret(second.clone()).await.unwrap().into_inner();
    assert_eq!((updated.version, &updated.uid), (2, &created.uid));
    assert_eq!(other.update_secret(second.clone()).await.unwrap().into_inner(), updated);

    // Without a value, too; and although the etag is no longer current.
    let third = with(update_as("id-3", "KEY", ""), |r| {
        r.value = None;
        r.description = Some("third".to_owned());
        r.expire_time = timestamp(4_000_000_000);
        r.etag = updated.etag.clone();
    });
    let described = client.update_secret(third.clone()).await.unwrap().into_inner();
    assert_eq!(other.update_secret(third).await.unwrap().into_inner(), described);
    let found = other.get_secret(get(WS, "KEY")).await.unwrap().into_inner();
    assert_eq!(found, described);

    client.delete_secret(delete_as("id-4", "KEY")).await.unwrap();
    other.delete_secret(delete_as("id-4", "KEY")).await.unwrap();
    // The first answers stand, though all that they tell of is gone.
    assert_eq!(other.create_secret(first).await.unwrap().into_inner(), created);
    assert_eq!(other.update_secret(second).await.unwrap().into_inner(), updated);
    let outcome = other.get_secret(get(WS, "KEY")).await;
    assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");

    // A late retry of the deletion spares what was created since.
    let again = client.create_secret(create(WS, "KEY", "value-5")).await.unwrap().into_inner();
    client.delete_secret(delete_as("id-4", "KEY")).await.unwrap();
    assert_eq!(client.get_secret(get(WS, "KEY")).await.unwrap().into_inner(), again);

    // An id that failed is free: nothing happened under it.
    let outcome = client.create_secret(create_as("id-6", "KEY", "x")).await;
    assert_refused(outcome, Code::AlreadyExists, "SECRET_EXISTS");
    client.create_secret(create_as("id-6", "OTHER", "x")).await.unwrap();

    // The memory ends by itself.
    for request in ["id-1", "id-2", "id-3", "id-4", "id-6"] {
        let key = format!("workflow-secrets:{{{WS}}}:request:{request}");
        let left: u64 = platform.redis.cli(&["TTL", &key]).parse().unwrap();
        assert!((86_000..=86_400).contains(&left), "{request}: {left} s");
    }
}

#[tokio::test]
async fn another_request_under_a_known_id_is_refused() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;
    let mut sheets = platform.client(&replica, "sheets").await;
    let owner = |connection: &str| {
        let (integration, connection_id) = ("google_sheets".to_owned(), connection.to_owned());
        Some(proto::Owner { integration, connection_id })
    };

    let full = |request: proto::CreateSecretRequest| {
        with(request, |r| {
            r.description = "about".to_owned();
            r.expire_time = timestamp(4_000_000_000);
        })
    };
    let first = full(create_as("create", "KEY", "value"));
    let created = client.create_secret(first.clone()).await.unwrap().into_inner();
    for other in [
        with(first.clone(), |r| r.name = "KEY2".to_owned()),
        with(first.clone(), |r| r.value = "valuf".to_owned()),
        with(first.clone(), |r| r.description = String::new()),
        with(first.clone(), |r| r.expire_time = None),
        with(first.clone(), |r| r.expire_time = timestamp(4_000_000_001)),
    ] {
        let outcome = client.create_secret(other).await;
        assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
    }
    // Nor may another caller, with the same words or its own.
    let mut request = create_as("create", "KEY", "value");
    request.owner = owner("c1");
    let outcome = sheets.create_secret(request).await;
    assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
    // Nor another method.
    let outcome = client.update_secret(update_as("create", "KEY", "value")).await;
    assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let outcome = client.delete_secret(delete_as("create", "KEY")).await;
    assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
    // Another workspace has ids of its own.
    let elsewhere = with(first.clone(), |r| r.workspace = "ws2".to_owned());
    client.create_secret(elsewhere).await.unwrap();

    let first = with(update_as("update", "KEY", "value-2"), |r| {
        r.description = Some("new".to_owned());
        r.etag = created.etag.clone();
    });
    let updated = client.update_secret(first.clone()).await.unwrap().into_inner();
    for other in [
        with(first.clone(), |r| r.name = "KEY2".to_owned()),
        with(first.clone(), |r| r.value = Some("value-3".to_owned())),
        with(first.clone(), |r| r.value = None),
        with(first.clone(), |r| r.description = None),
        with(first.clone(), |r| r.description = Some(String::new())),
        with(first.clone(), |r| r.expire_time = timestamp(0)),
        with(first.clone(), |r| r.expire_time = timestamp(4_000_000_000)),
        with(first.clone(), |r| r.etag = String::new()),
        with(first.clone(), |r| r.allow_missing = true),
        with(first.clone(), |r| r.owner = owner("c1")),
    ] {
        let outcome = client.update_secret(other).await;
        assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
    }
    assert_eq!(client.get_secret(get(WS, "KEY")).await.unwrap().into_inner(), updated);

    let first = delete_as("delete", "KEY");
    client.delete_secret(first.clone()).await.unwrap();
    for other in [
        proto::DeleteSecretRequest { name: "KEY2".to_owned(), ..first.clone() },
        proto::DeleteSecretRequest { etag: updated.etag.clone(), ..first.clone() },
    ] {
        let outcome = client.delete_secret(other).await;
        assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
    }
    let outcome = sheets.delete_secret(first).await;
    assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn validation_stores_and_remembers_nothing() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;

    let rehearsal = with(create_as("id", "KEY", "value-1"), |r| {
        r.validate_only = true;
        r.description = "about".to_owned();
    });
    let preview = client.create_secret(rehearsal.clone()).await.unwrap().into_inner();
    assert_eq!((preview.name.as_str(), preview.version), ("KEY", 1));
    assert_eq!((preview.description.as_str(), preview.workspace.as_str()), ("about", WS));
    assert_eq!((preview.uid.as_str(), preview.etag.as_str()), ("", ""));
    // No record, no data key, no request id: and no KMS call for nothing.
    assert_eq!(platform.redis.cli(&["DBSIZE"]), "0");
    assert_eq!(platform.redis.calls("evalsha") + platform.redis.calls("eval"), 0);

    // The same id is free for the real one, of any content.
    let created = client.create_secret(create_as("id", "KEY", "value-2")).await.unwrap();
    let created = created.into_inner();
    // What would fail fails in rehearsal, under a known id too.
    let outcome = client.create_secret(rehearsal).await;
    assert_refused(outcome, Code::AlreadyExists, "SECRET_EXISTS");

    let rehearsal = with(update_as("id-2", "KEY", "value-3"), |r| {
        r.validate_only = true;
        r.etag = created.etag.clone();
    });
    let preview = client.update_secret(rehearsal.clone()).await.unwrap().into_inner();
    assert_eq!((preview.version, preview.etag.as_str()), (2, ""));
    let missing = with(rehearsal.clone(), |r| r.name = "MISSING".to_owned());
    let outcome = client.update_secret(missing).await;
    assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
    let stale = with(rehearsal, |r| r.etag = "stale".to_owned());
    assert_refused(client.update_secret(stale).await, Code::Aborted, "ETAG_MISMATCH");
    let absent = with(update_as("id-3", "MISSING", "value"), |r| {
        r.validate_only = true;
        r.allow_missing = true;
    });
    let preview = client.update_secret(absent).await.unwrap().into_inner();
    assert_eq!((preview.version, preview.uid.as_str()), (1, ""));

    let page = client.list_secrets(list(WS)).await.unwrap().into_inner();
    assert_eq!(page.secrets, [created]);
    let mut executor = platform.client(&replica, "executor").await;
    let answer = executor.resolve_secrets(resolve(WS, &["KEY"])).await.unwrap().into_inner();
    assert_eq!(value(&answer, "KEY"), "value-2");
    client.update_secret(update_as("id-2", "KEY", "other")).await.unwrap();
    // Its audit lines tell a rehearsal from the real thing.
    let outcomes = replica.audit().into_iter().filter(|line| line["outcome"] == "validated");
    assert_eq!(outcomes.count(), 3);
}

/// Retries that overtake each other, over two replicas, in workspaces without
/// a data key yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_at_once_have_one_effect_and_equal_answers() {
    const COPIES: usize = 8;
    let platform = Platform::start().await;
    let replicas = [platform.replica().await, platform.replica().await];
    let mut clients = Vec::new();
    for copy in 0..COPIES {
        clients.push(platform.client(&replicas[copy % 2], "platform").await);
    }

    for round in 0..10 {
        let workspace = format!("ws{round}");
        let mut creations = JoinSet::new();
        for mut client in clients.clone() {
            let mut request = create_as("create", "KEY", "value-1");
            request.workspace = workspace.clone();
            creations.spawn(async move { client.create_secret(request).await });
        }
        let created = all_equal(creations).await.into_inner();

        let mut updates = JoinSet::new();
        for mut client in clients.clone() {
            let mut request = update_as("update", "KEY", "value-2");
            request.workspace = workspace.clone();
            request.etag = created.etag.clone();
            updates.spawn(async move { client.update_secret(request).await });
        }
        let updated = all_equal(updates).await.into_inner();
        assert_eq!((updated.version, &updated.uid), (2, &created.uid));
        let found = clients[0].get_secret(get(&workspace, "KEY")).await.unwrap().into_inner();
        assert_eq!(found, updated);

        let mut deletions = JoinSet::new();
        for mut client in clients.clone() {
            let mut request = delete_as("delete", "KEY");
            request.workspace = workspace.clone();
            deletions.spawn(async move { client.delete_secret(request).await });
        }
        all_equal(deletions).await;
    }
}

/// The answer that all calls got.
async fn all_equal<T: PartialEq + std::fmt::Debug + 'static>(
    mut calls: JoinSet<Result<tonic::Response<T>, tonic::Status>>,
) -> tonic::Response<T> {
    let mut answers = Vec::new();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Some(answer) = tokio::time::timeout_at(deadline, calls.join_next()).await.unwrap() {
        answers.push(answer.unwrap().unwrap());
    }
    let first = answers.pop().unwrap();
    for answer in &answers {
        assert_eq!(answer.get_ref(), first.get_ref());
    }
    first
}
