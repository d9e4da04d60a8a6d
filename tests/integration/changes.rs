//! What a change changes: versions, etags, expiry, and who is recorded.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use tokio::task::JoinSet;
use tonic::{Code, IntoRequest, Request, metadata::MetadataValue};
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto;

use super::support::{
    platform::{
        Client, Platform, assert_refused, create, delete, get, reason, resolve, spiffe_id, update,
        with,
    },
    redis_server::RedisServer,
};

const WS: &str = "ws";

fn new_value(name: &str, text: &str) -> proto::UpdateSecretRequest {
    with(update(WS, name), |r| r.value = Some(text.to_owned()))
}

fn described(name: &str, text: &str) -> proto::UpdateSecretRequest {
    with(update(WS, name), |r| r.description = Some(text.to_owned()))
}

fn expiring(name: &str, time: Timestamp) -> proto::UpdateSecretRequest {
    with(update(WS, name), |r| r.expire_time = Some(time))
}

async fn change(
    client: &mut Client,
    request: impl IntoRequest<proto::UpdateSecretRequest>,
) -> proto::Secret {
    client.update_secret(request).await.unwrap().into_inner()
}

async fn read(executor: &mut Client, name: &str) -> proto::ResolvedSecret {
    let answer = executor.resolve_secrets(resolve(WS, &[name])).await.unwrap();
    answer.into_inner().secrets.remove(name).unwrap()
}

#[tokio::test]
async fn an_etag_stands_for_one_state_of_one_secret() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;
    let mut executor = platform.client(&replica, "executor").await;

    let first = client.create_secret(create(WS, "KEY", "value-1")).await.unwrap().into_inner();
    let other = client.create_secret(create(WS, "OTHER", "value-1")).await.unwrap().into_inner();
    assert_eq!(client.get_secret(get(WS, "KEY")).await.unwrap().into_inner(), first);

    // Every change makes another: of the description, the expiry, the value.
    let mut seen = vec![first.etag.clone(), other.etag.clone()];
    let mut last = first.clone();
    let later = Timestamp { seconds: 4_000_000_000, nanos: 5 };
    for request in [
        described("KEY", "about"),
        described("KEY", "about"),
        expiring("KEY", later),
        new_value("KEY", "value-1"),
    ] {
        let request = with(request, |r| r.etag = last.etag.clone());
        last = change(&mut client, request).await;
        assert!(!seen.contains(&last.etag), "{seen:?} has {}", last.etag);
        seen.push(last.etag.clone());
    }
    assert_eq!((last.version, last.description.as_str()), (2, "about"));
    assert_eq!(last.expire_time, Some(later));

    // All others fail: stale ones, another secret's, what is none.
    seen.pop();
    let upper = last.etag.to_uppercase();
    for wrong in seen.iter().map(String::as_str).chain([upper.as_str(), "*", "x", &last.uid]) {
        let etag = wrong.to_owned();
        for request in [new_value("KEY", "x"), described("KEY", "x"), expiring("KEY", later)] {
            let request = with(request, |r| r.etag = etag.clone());
            assert_refused(client.update_secret(request).await, Code::Aborted, "ETAG_MISMATCH");
        }
        let request = proto::DeleteSecretRequest { etag, ..delete(WS, "KEY") };
        assert_refused(client.delete_secret(request).await, Code::Aborted, "ETAG_MISMATCH");
    }
    assert_eq!(client.get_secret(get(WS, "KEY")).await.unwrap().into_inner(), last);

    // Deleted and created again, it is another secret: no old etag fits.
    let request = proto::DeleteSecretRequest { etag: last.etag.clone(), ..delete(WS, "KEY") };
    client.delete_secret(request).await.unwrap();
    let outcome = client.delete_secret(delete(WS, "KEY")).await;
    let status = assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
    let details = status.get_error_details();
    assert_eq!(details.resource_info().unwrap().resource_name, "KEY");
    let outcome = executor.resolve_secrets(resolve(WS, &["KEY"])).await;
    assert_refused(outcome, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    let again = client.create_secret(create(WS, "KEY", "value-1")).await.unwrap().into_inner();
    assert_eq!(again.version, 1);
    assert_ne!(again.uid, first.uid);
    seen.push(last.etag);
    assert!(!seen.contains(&again.etag));
    for etag in seen {
        let request = with(new_value("KEY", "x"), |r| r.etag = etag.clone());
        assert_refused(client.update_secret(request).await, Code::Aborted, "ETAG_MISMATCH");
        let request = proto::DeleteSecretRequest { etag, ..delete(WS, "KEY") };
        assert_refused(client.delete_secret(request).await, Code::Aborted, "ETAG_MISMATCH");
    }
    // The name is taken, whatever the rest says.
    let outcome = client.create_secret(create(WS, "KEY", "value-2")).await;
    let status = assert_refused(outcome, Code::AlreadyExists, "SECRET_EXISTS");
    assert_eq!(status.get_error_details().resource_info().unwrap().resource_name, "KEY");
    // Names are case-sensitive; one that nearly fits is suggested.
    let outcome = client.get_secret(get(WS, "key")).await;
    let status = assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["suggestion"], "KEY");
}

#[tokio::test]
async fn absent_fields_stay_as_they_are() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;
    let mut executor = platform.client(&replica, "executor").await;
    let later = Timestamp { seconds: 4_000_000_000, nanos: 999_999_999 };
    let request = with(create(WS, "KEY", "value-1"), |r| {
        r.description = "first".to_owned();
        r.expire_time = Some(later);
    });
    let created = client.create_secret(request).await.unwrap().into_inner();

    // A description alone touches neither version nor sealed value.
    let sealed = |redis: &RedisServer| {
        redis.cli(&["HGET", &format!("workflow-secrets:{{{WS}}}:records"), "v/KEY"])
    };
    let before = sealed(&platform.redis);
    assert!(!before.is_empty());
    let secret = change(&mut client, described("KEY", "second")).await;
    let expected = proto::Secret {
        description: "second".to_owned(),
        etag: secret.etag.clone(),
        update_time: secret.update_time,
        ..created.clone()
    };
    assert_eq!(secret, expected);
    assert!(nanos(secret.update_time) > nanos(created.update_time));
    assert_eq!(sealed(&platform.redis), before);
    // Present and empty clears it.
    assert_eq!(change(&mut client, described("KEY", "")).await.description, "");

    // A value alone keeps the rest; an equal one counts as new.
    change(&mut client, described("KEY", "third")).await;
    for version in 2..=3 {
        let secret = change(&mut client, new_value("KEY", "value-2")).await;
        assert_eq!((secret.version, secret.description.as_str()), (version, "third"));
        assert_eq!(secret.expire_time, Some(later));
        let found = read(&mut executor, "KEY").await;
        assert_eq!((found.value.as_str(), found.version), ("value-2", version));
        assert_eq!(found.expire_time, Some(later));
    }

    // An expiry alone keeps value and version, and is sealed with the value.
    let before = sealed(&platform.redis);
    let sooner = Timestamp { seconds: 3_999_999_999, nanos: 0 };
    let secret = change(&mut client, expiring("KEY", sooner)).await;
    assert_eq!((secret.version, secret.expire_time), (3, Some(sooner)));
    assert_ne!(sealed(&platform.redis), before);
    let found = read(&mut executor, "KEY").await;
    assert_eq!((found.value.as_str(), found.version), ("value-2", 3));
    assert_eq!(found.expire_time, Some(sooner));
}

fn nanos(time: Option<Timestamp>) -> i128 {
    let Timestamp { seconds, nanos } = time.unwrap();
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

#[tokio::test]
async fn an_expired_secret_no_longer_resolves() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;
    let mut executor = platform.client(&replica, "executor").await;
    for name in ["A", "B"] {
        client.create_secret(create(WS, name, "value-1")).await.unwrap();
    }
    read(&mut executor, "A").await;

    let soon = SystemTime::now() + Duration::from_secs(3);
    let secret = change(&mut client, expiring("A", soon.into())).await;
    assert_eq!((secret.version, secret.expire_time), (1, Some(soon.into())));
    assert_eq!(read(&mut executor, "A").await.expire_time, Some(soon.into()));
    let left = soon.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left + Duration::from_millis(20)).await;

    // All or nothing: the others are withheld, and every cause is named.
    let outcome = executor.resolve_secrets(resolve(WS, &["B", "MISSING", "A=x", "A=y"])).await;
    let status = assert_refused(outcome, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    let details = status.get_error_details();
    let causes = details.precondition_failure().unwrap().violations.iter();
    let causes: Vec<_> = causes.map(|v| (v.r#type.as_str(), v.subject.as_str())).collect();
    assert_eq!(causes, [("EXPIRED", "A"), ("MISSING", "MISSING")]);

    // It is still there to be seen, and to be renewed: the value is the old
    // one when the expiry is cleared, and a new value alone does not help.
    let secret = client.get_secret(get(WS, "A")).await.unwrap().into_inner();
    assert_eq!(secret.expire_time, Some(soon.into()));
    assert_eq!(change(&mut client, new_value("A", "value-2")).await.version, 2);
    let outcome = executor.resolve_secrets(resolve(WS, &["A"])).await;
    assert_refused(outcome, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    let secret = change(&mut client, expiring("A", Timestamp::default())).await;
    assert_eq!((secret.version, secret.expire_time), (2, None));
    let found = read(&mut executor, "A").await;
    assert_eq!((found.value.as_str(), found.expire_time), ("value-2", None));

    // What has passed cannot be set.
    for request in [expiring("A", soon.into()), expiring("A", Timestamp { seconds: 0, nanos: 1 })] {
        let outcome = client.update_secret(request).await;
        assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
    }
    assert_eq!(read(&mut executor, "A").await.expire_time, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_once_are_all_counted() {
    let platform = Platform::start().await;
    let replicas = [platform.replica().await, platform.replica().await];
    let mut client = platform.client(&replicas[0], "platform").await;
    let created = client.create_secret(create(WS, "KEY", "value-0")).await.unwrap().into_inner();

    // As many as one call has attempts: none needs to be told of the race.
    let mut versions = vec![created.version];
    for round in 0..5 {
        let mut calls = JoinSet::new();
        for writer in 0..8 {
            let mut client = platform.client(&replicas[writer % 2], "platform").await;
            let request = new_value("KEY", &format!("value-{round}-{writer}"));
            calls.spawn(async move { client.update_secret(request).await });
        }
        for answer in calls.join_all().await {
            versions.push(answer.unwrap().into_inner().version);
        }
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=41).collect::<Vec<_>>());

    // More are told, and did nothing.
    let mut calls = JoinSet::new();
    for writer in 0..40 {
        let mut client = platform.client(&replicas[writer % 2], "platform").await;
        let request = new_value("KEY", &format!("value-{writer}"));
        calls.spawn(async move {
            loop {
                match client.update_secret(request.clone()).await {
                    Ok(answer) => return (answer.into_inner().version, request.value.clone()),
                    Err(status) => {
                        let lost = (Code::Aborted, "CONCURRENT_UPDATE".to_owned());
                        assert_eq!(reason(&status), lost);
                        let delay = status.get_error_details().retry_info().unwrap().retry_delay;
                        tokio::time::sleep(delay.unwrap()).await;
                    }
                }
            }
        });
    }
    let mut done = calls.join_all().await;
    done.sort();
    assert_eq!(
        done.iter().map(|(version, _)| *version).collect::<Vec<_>>(),
        (42..=81).collect::<Vec<_>>()
    );
    let mut executor = platform.client(&replicas[1], "executor").await;
    let found = read(&mut executor, "KEY").await;
    assert_eq!((found.version, Some(found.value.clone())), done[39].clone());

    // Of those that name one state, one wins.
    let etag = client.get_secret(get(WS, "KEY")).await.unwrap().into_inner().etag;
    let mut calls = JoinSet::new();
    for writer in 0..8 {
        let mut client = platform.client(&replicas[writer % 2], "platform").await;
        let request = with(new_value("KEY", "x"), |r| r.etag = etag.clone());
        calls.spawn(async move { client.update_secret(request).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = calls.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for outcome in lost {
        assert_refused(outcome, Code::Aborted, "ETAG_MISMATCH");
    }
    // Of creations, too.
    let mut calls = JoinSet::new();
    for writer in 0..8 {
        let mut client = platform.client(&replicas[writer % 2], "platform").await;
        let request = create("ws2", "KEY", &format!("value-{writer}"));
        calls.spawn(async move { client.create_secret(request).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = calls.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for outcome in lost {
        assert_refused(outcome, Code::AlreadyExists, "SECRET_EXISTS");
    }
}

#[tokio::test]
async fn the_person_behind_a_change_is_recorded() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;

    let mut request = Request::new(create(WS, "KEY", "value-1"));
    request.metadata_mut().insert("x-actor", MetadataValue::from_static("zoe@example.com"));
    let secret = client.create_secret(request).await.unwrap().into_inner();
    let zoe = "zoe@example.com".to_owned();
    assert_eq!((&secret.created_by, &secret.updated_by), (&zoe, &zoe));

    // UTF-8 travels in binary metadata.
    let mut request = new_value("KEY", "value-2").into_request();
    let name = "Zoë Müller 🔑".to_owned();
    request.metadata_mut().insert_bin("x-actor-bin", MetadataValue::from_bytes(name.as_bytes()));
    let secret = change(&mut client, request).await;
    assert_eq!((&secret.created_by, &secret.updated_by), (&zoe, &name));

    // No person: the caller itself.
    let secret = change(&mut client, described("KEY", "about")).await;
    assert_eq!((&secret.created_by, &secret.updated_by), (&zoe, &spiffe_id("platform")));
    let plain = client.create_secret(create(WS, "PLAIN", "value-1")).await.unwrap().into_inner();
    assert_eq!(plain.created_by, spiffe_id("platform"));

    // Naming a person gives no rights, and nobody passes for a service.
    let mut stranger = platform.client(&replica, "stranger").await;
    let mut request = get(WS, "KEY").into_request();
    request.metadata_mut().insert("x-actor", MetadataValue::from_static("platform"));
    let outcome = stranger.get_secret(request).await;
    assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    let mut request = create(WS, "OTHER", "value").into_request();
    let other = MetadataValue::try_from(spiffe_id("operator")).unwrap();
    request.metadata_mut().insert("x-actor", other);
    assert_refused(client.create_secret(request).await, Code::InvalidArgument, "INVALID_FIELD");

    // The audit stream tells caller and person apart.
    let lines = replica.audit();
    let told: Vec<_> =
        lines.iter().map(|line| (line["caller"].as_str(), line["actor"].as_str())).collect();
    let (platform_id, stranger_id) = (spiffe_id("platform"), spiffe_id("stranger"));
    let by_platform = |actor| (Some(platform_id.as_str()), actor);
    let expected = [
        by_platform(Some(zoe.as_str())),
        by_platform(Some(&name)),
        by_platform(None),
        by_platform(None),
        (Some(&stranger_id), Some("platform")),
        by_platform(None),
    ];
    assert_eq!(told, expected);
}
