//! Expiry: as a moment or a time to live, told, and filtered by.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use tonic::Code;
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto;

use super::{Stage, WS, new_value};
use crate::support::platform::{
    Client, assert_refused, create, delete, get, list, resolve, update, with,
};

const DAY: i64 = 24 * 60 * 60;

fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn living(name: &str, ttl: Option<prost_types::Duration>) -> proto::UpdateSecretRequest {
    with(update(WS, name), |r| r.ttl = ttl)
}

async fn names(client: &mut Client, request: proto::ListSecretsRequest) -> Vec<String> {
    let page = client.list_secrets(request).await.unwrap().into_inner();
    page.secrets.into_iter().map(|secret| secret.name).collect()
}

/// Seconds and nanoseconds from one time to another.
fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> (i64, i32) {
    let (from, to) = (from.unwrap(), to.unwrap());
    (to.seconds - from.seconds, to.nanos - from.nanos)
}

#[tokio::test]
async fn a_time_to_live_counts_from_the_change() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        let mut executor = stage.client("executor").await;
        let request = with(create(WS, "KEY", "value-1"), |r| {
            r.ttl = duration(3_600, 0);
            r.request_id = "once".to_owned();
        });
        let created = client.create_secret(request.clone()).await.unwrap().into_inner();
        assert_eq!(between(created.create_time, created.expire_time), (3_600, 0));
        assert!(!created.expired);
        // Repeated later, it is the same request, not a longer life.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for client in &mut stage.clients("platform").await {
            let again = client.create_secret(request.clone()).await.unwrap().into_inner();
            assert_eq!(again, created);
        }
        for ttl in [duration(3_601, 0), duration(3_600, 1), None] {
            let other = with(request.clone(), |r| r.ttl = ttl);
            let outcome = client.create_secret(other).await;
            assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
        }

        let request = with(living("KEY", duration(DAY, 0)), |r| r.request_id = "twice".to_owned());
        let updated = client.update_secret(request.clone()).await.unwrap().into_inner();
        assert_eq!(between(updated.update_time, updated.expire_time), (DAY, 0));
        assert_eq!(updated.version, 1);
        assert_eq!(client.update_secret(request.clone()).await.unwrap().into_inner(), updated);
        let other = with(request, |r| r.ttl = duration(DAY + 1, 0));
        let outcome = client.update_secret(other).await;
        assert_refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");
        let answer = executor.resolve_secrets(resolve(WS, &["KEY"])).await.unwrap().into_inner();
        assert_eq!(answer.secrets["KEY"].expire_time, updated.expire_time);
        let missing = with(living("NEW", duration(60, 0)), |r| {
            r.value = Some("value".to_owned());
            r.allow_missing = true;
        });
        let created = client.update_secret(missing).await.unwrap().into_inner();
        assert_eq!(between(created.create_time, created.expire_time), (60, 0));

        let both = with(living("KEY", duration(60, 0)), |r| {
            r.expire_time = Some(Timestamp { seconds: 4_000_000_000, nanos: 0 });
        });
        let clear = with(living("KEY", duration(60, 0)), |r| {
            r.expire_time = Some(Timestamp::default());
        });
        let mut wrong = vec![both, clear];
        for (seconds, nanos) in [
            (0, 0),
            (-1, 0),
            (1, -1),
            (1, 1_000_000_000),
            (315_576_000_001, 0),
            (300_000_000_000, 0),
        ] {
            wrong.push(living("KEY", duration(seconds, nanos)));
        }
        for request in wrong {
            let creation = with(create(WS, "OTHER", "value"), |r| {
                r.ttl = request.ttl;
                r.expire_time = request.expire_time;
            });
            for outcome in
                [client.update_secret(request.clone()).await, client.create_secret(creation).await]
            {
                let status = assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
                let details = status.get_error_details();
                assert_eq!(details.bad_request().unwrap().field_violations[0].field, "ttl");
            }
        }
        let now = client.get_secret(get(WS, "KEY")).await.unwrap().into_inner();
        assert_eq!(now, updated);
    }
}

#[tokio::test]
async fn what_has_expired_is_told_and_what_will_is_found() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        let mut executor = stage.client("executor").await;
        for (name, ttl) in [
            ("A_NEVER", None),
            ("B_SOON", duration(0, 1_000_000)),
            ("C_WEEK", duration(7 * DAY, 0)),
            ("D_MONTH", duration(30 * DAY, 0)),
            ("E_DELETED", duration(DAY, 0)),
        ] {
            let request = with(create(WS, name, "value"), |r| r.ttl = ttl);
            client.create_secret(request).await.unwrap();
        }
        client.delete_secret(delete(WS, "E_DELETED")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;

        let outcome = executor.resolve_secrets(resolve(WS, &["B_SOON", "C_WEEK"])).await;
        let status = assert_refused(outcome, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
        let details = status.get_error_details();
        let violations = &details.precondition_failure().unwrap().violations;
        assert_eq!(violations.len(), 1);
        assert_eq!([&violations[0].r#type, &violations[0].subject], ["EXPIRED", "B_SOON"]);

        let page = client.list_secrets(list(WS)).await.unwrap().into_inner();
        let expired = page.secrets.iter().filter(|secret| secret.expired);
        assert_eq!(expired.map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["B_SOON"]);
        assert!(client.get_secret(get(WS, "B_SOON")).await.unwrap().into_inner().expired);
        // A new value does not revive it.
        let again = client.update_secret(new_value("B_SOON", "value-2")).await.unwrap();
        assert!(again.into_inner().expired);

        let within = |seconds, nanos| proto::ListSecretsRequest {
            expiring_within: duration(seconds, nanos),
            ..list(WS)
        };
        let all = ["B_SOON", "C_WEEK", "D_MONTH"];
        for (request, expected) in [
            (within(0, 0), &all[..1]),
            (within(6 * DAY, 0), &all[..1]),
            (within(7 * DAY, 0), &all[..2]),
            (within(29 * DAY, 999_999_999), &all[..2]),
            (within(31 * DAY, 0), &all[..]),
            (within(315_576_000_000, 0), &all[..]),
        ] {
            assert_eq!(names(&mut client, request.clone()).await, expected);
            // Page by page, too.
            let mut paged = proto::ListSecretsRequest { page_size: 1, ..request };
            let mut found = vec![];
            loop {
                let page = client.list_secrets(paged.clone()).await.unwrap().into_inner();
                found.extend(page.secrets.into_iter().map(|secret| secret.name));
                if page.next_page_token.is_empty() {
                    break;
                }
                paged.page_token = page.next_page_token;
            }
            assert_eq!(found, expected);
        }
        let deleted = proto::ListSecretsRequest { show_deleted: true, ..within(2 * DAY, 0) };
        assert_eq!(names(&mut client, deleted).await, ["B_SOON", "E_DELETED"]);

        let first = proto::ListSecretsRequest { page_size: 1, ..within(31 * DAY, 0) };
        let page = client.list_secrets(first.clone()).await.unwrap().into_inner();
        let token = || page.next_page_token.clone();
        for other in [within(30 * DAY, 0), list(WS)] {
            let other = proto::ListSecretsRequest { page_token: token(), ..other };
            let outcome = client.list_secrets(other).await;
            assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
        }
        for request in [within(-1, 0), within(0, -1), within(0, 1_000_000_000)] {
            let outcome = client.list_secrets(request).await;
            let status = assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
            let details = status.get_error_details();
            let field = &details.bad_request().unwrap().field_violations[0].field;
            assert_eq!(field, "expiring_within");
        }

        // Revived, it is expired no more.
        let later = SystemTime::now() + Duration::from_secs(3_600);
        let change = with(update(WS, "B_SOON"), |r| r.expire_time = Some(later.into()));
        assert!(!client.update_secret(change).await.unwrap().into_inner().expired);
        executor.resolve_secrets(resolve(WS, &["B_SOON"])).await.unwrap();
    }
}
