//! The trail: every change, once, in the order in which it was made.

use std::collections::BTreeMap;

use tokio::task::JoinSet;
use tonic::{Code, IntoRequest, metadata::MetadataValue};
use workflow_secrets::grpc::proto;

use super::{Stage, WS, new_value};
use crate::support::platform::{
    Client, Platform, assert_refused, create, delete, get, resolve, spiffe_id, update, with,
};

fn trail() -> proto::ListAuditEventsRequest {
    proto::ListAuditEventsRequest { workspace: WS.to_owned(), ..Default::default() }
}

async fn events(
    client: &mut Client,
    request: proto::ListAuditEventsRequest,
) -> Vec<proto::AuditEvent> {
    client.list_audit_events(request).await.unwrap().into_inner().events
}

/// Action, name and version of each.
fn told(events: &[proto::AuditEvent]) -> Vec<(String, String, u64)> {
    events.iter().map(|e| (e.action.clone(), e.name.clone(), e.version)).collect()
}

/// All pages of a listing.
async fn all(
    client: &mut Client,
    mut request: proto::ListAuditEventsRequest,
) -> Vec<proto::AuditEvent> {
    let mut found = vec![];
    loop {
        let page = client.list_audit_events(request.clone()).await.unwrap().into_inner();
        if request.page_size > 0 {
            assert!(page.events.len() <= usize::try_from(request.page_size).unwrap());
        }
        found.extend(page.events);
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn every_change_is_told_once() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.clients("platform").await.remove(0);
        let mut other = stage.client("platform").await;
        assert!(events(&mut client, trail()).await.is_empty());

        let mut request =
            with(create(WS, "KEY", "value-1"), |r| r.request_id = "id-1".to_owned()).into_request();
        let headers = request.metadata_mut();
        headers.insert("x-actor", MetadataValue::from_static("zoe@example.com"));
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = MetadataValue::try_from(format!("00-{trace}-00f067aa0ba902b7-01")).unwrap();
        headers.insert("traceparent", parent);
        let created = client.create_secret(request).await.unwrap().into_inner();
        let again = with(create(WS, "KEY", "value-1"), |r| r.request_id = "id-1".to_owned());
        other.create_secret(again).await.unwrap();
        other.update_secret(new_value("KEY", "value-2")).await.unwrap();
        let about = with(update(WS, "KEY"), |r| r.description = Some("about".to_owned()));
        client.update_secret(about).await.unwrap();
        let back = proto::RollbackSecretRequest {
            workspace: WS.to_owned(),
            name: "KEY".to_owned(),
            version: 1,
            ..Default::default()
        };
        other.rollback_secret(back).await.unwrap();
        client.delete_secret(delete(WS, "KEY")).await.unwrap();
        let undelete = proto::UndeleteSecretRequest {
            workspace: WS.to_owned(),
            name: "KEY".to_owned(),
            ..Default::default()
        };
        other.undelete_secret(undelete).await.unwrap();
        let missing = with(new_value("OTHER", "value-1"), |r| r.allow_missing = true);
        client.update_secret(missing).await.unwrap();
        let permanent = proto::DeleteSecretRequest { permanent: true, ..delete(WS, "OTHER") };
        client.delete_secret(permanent).await.unwrap();

        // What changes nothing leaves nothing.
        client.create_secret(create(WS, "KEY", "x")).await.unwrap_err();
        let stale = with(new_value("KEY", "x"), |r| r.etag = "x".to_owned());
        client.update_secret(stale).await.unwrap_err();
        let checked = with(new_value("KEY", "x"), |r| r.validate_only = true);
        client.update_secret(checked).await.unwrap();
        client.get_secret(get(WS, "KEY")).await.unwrap();
        stage.client("executor").await.resolve_secrets(resolve(WS, &["KEY"])).await.unwrap();

        let entry =
            |action: &str, name: &str, version| (action.to_owned(), name.to_owned(), version);
        let expected = [
            entry("delete", "OTHER", 1),
            entry("update", "OTHER", 1),
            entry("undelete", "KEY", 3),
            entry("delete", "KEY", 3),
            entry("rollback", "KEY", 3),
            entry("update", "KEY", 2),
            entry("update", "KEY", 2),
            entry("create", "KEY", 1),
        ];
        let mut operator = stage.client("operator").await;
        let found = events(&mut operator, trail()).await;
        assert_eq!(told(&found), expected);
        let first = &found[7];
        let expected_first = proto::AuditEvent {
            create_time: first.create_time,
            action: "create".to_owned(),
            caller: spiffe_id("platform"),
            actor: "zoe@example.com".to_owned(),
            name: "KEY".to_owned(),
            uid: created.uid.clone(),
            version: 1,
            restored_version: 0,
            request_id: "id-1".to_owned(),
            trace_id: trace.to_owned(),
        };
        assert_eq!(*first, expected_first);
        assert!(first.create_time.unwrap().seconds >= created.create_time.unwrap().seconds);
        let second = &found[6];
        assert_eq!([&second.actor, &second.request_id, &second.trace_id], ["", "", ""]);
        assert_eq!(found.iter().map(|e| e.restored_version).collect::<Vec<_>>()[4], 1);
        assert!(found[2..].iter().all(|event| event.uid == created.uid));
        assert!(found[..2].iter().all(|event| event.uid != created.uid && !event.uid.is_empty()));

        // Page by page, and of one name.
        for page_size in [1, 2, 3, 7, 8, 9] {
            let pages = all(&mut client, proto::ListAuditEventsRequest { page_size, ..trail() });
            assert_eq!(told(&pages.await), expected, "pages of {page_size}");
            let named =
                proto::ListAuditEventsRequest { name: "OTHER".to_owned(), page_size, ..trail() };
            assert_eq!(told(&all(&mut client, named).await), expected[..2]);
        }
        let none = proto::ListAuditEventsRequest { name: "other".to_owned(), ..trail() };
        assert!(all(&mut client, none).await.is_empty());
        let elsewhere = proto::ListAuditEventsRequest { workspace: "ws2".to_owned(), ..trail() };
        assert!(all(&mut client, elsewhere).await.is_empty());

        let lines = stage.replicas.last().unwrap().audit();
        let line = lines.iter().find(|line| line["action"] == "list_audit_events").unwrap();
        assert_eq!((&line["outcome"], &line["workspace"]), (&"ok".into(), &WS.into()));
    }
}

#[tokio::test]
async fn the_trail_is_for_those_who_may_list() {
    for stage in Stage::both(&[]).await {
        let mut client = stage.client("platform").await;
        for name in ["A", "B"] {
            client.create_secret(create(WS, name, "value")).await.unwrap();
        }
        for caller in ["executor", "sheets", "stranger"] {
            let outcome = stage.client(caller).await.list_audit_events(trail()).await;
            assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        }
        let one = proto::ListAuditEventsRequest { page_size: 1, ..trail() };
        let page = client.list_audit_events(one.clone()).await.unwrap().into_inner();
        let token = page.next_page_token;
        let named = proto::ListAuditEventsRequest { name: "A".to_owned(), ..one.clone() };
        let elsewhere =
            proto::ListAuditEventsRequest { workspace: "ws2".to_owned(), ..one.clone() };
        let mut outcomes = vec![];
        for request in [named, elsewhere] {
            let page_token = token.clone();
            let request = proto::ListAuditEventsRequest { page_token, ..request };
            outcomes.push(client.list_audit_events(request).await);
        }
        let mut operator = stage.client("operator").await;
        let request = proto::ListAuditEventsRequest { page_token: token.clone(), ..one.clone() };
        outcomes.push(operator.list_audit_events(request).await);
        for wrong in ["canary".to_owned(), format!("{token}0"), format!("{}x", &token[..31])] {
            let request = proto::ListAuditEventsRequest { page_token: wrong, ..one.clone() };
            outcomes.push(client.list_audit_events(request).await);
        }
        outcomes.push(
            client
                .list_audit_events(proto::ListAuditEventsRequest { page_size: -1, ..trail() })
                .await,
        );
        for outcome in outcomes {
            assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
        }
    }
}

#[tokio::test]
async fn the_oldest_make_room() {
    for mut stage in Stage::both(&["--max-audit-events", "5"]).await {
        let mut client = stage.client("platform").await;
        client.create_secret(create(WS, "KEY", "value")).await.unwrap();
        let mut version = 1;
        for _ in 0..11 {
            client.update_secret(new_value("KEY", "value")).await.unwrap();
            version += 1;
        }
        let versions = |events: Vec<proto::AuditEvent>| -> Vec<u64> {
            events.iter().map(|event| event.version).collect()
        };
        assert_eq!(versions(events(&mut client, trail()).await), [12, 11, 10, 9, 8]);
        for (keep, left) in [("2", 2), ("3", 3), ("0", 3), ("1", 1)] {
            stage.restart(&["--max-audit-events", keep]).await;
            let mut client = stage.client("platform").await;
            for _ in 0..2 {
                client.update_secret(new_value("KEY", "value")).await.unwrap();
                version += 1;
            }
            let found = versions(events(&mut client, trail()).await);
            assert_eq!(found.len(), left, "{keep}");
            assert_eq!(found[0] == version, keep != "0", "{keep}");
            if let Some(keys) = stage.keys("a/") {
                assert_eq!(keys.len(), left);
            }
        }
    }
}

/// Killed at any moment, the service leaves an entry for each change that was
/// made, and none for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_tells_what_was_done() {
    const NAMES: u64 = 6;
    let platform = Platform::start().await;
    let (mut doomed, survivor) = (platform.replica().await, platform.replica().await);
    let mut client = platform.client(&survivor, "platform").await;
    let mut writers = JoinSet::new();
    for number in 0..NAMES {
        let mut clients = [
            platform.client(&doomed, "platform").await,
            platform.client(&survivor, "platform").await,
        ];
        writers.spawn(async move {
            let name = format!("K{number}");
            clients[0].create_secret(create(WS, &name, "value")).await.unwrap();
            for round in 0..30 {
                // Both write the same secrets.
                let change = new_value(&name, "value");
                let _ = clients[round % 2].update_secret(change).await;
                if round % 5 == 0 {
                    let _ = clients[round % 2].create_secret(create(WS, &name, "value")).await;
                }
            }
        });
    }
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    doomed.kill9();
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }

    let mut expected = vec![];
    for number in 0..NAMES {
        let name = format!("K{number}");
        let secret = client.get_secret(get(WS, &name)).await.unwrap().into_inner();
        expected.push(("create".to_owned(), name.clone(), 1));
        expected.extend((2..=secret.version).map(|v| ("update".to_owned(), name.clone(), v)));
    }
    let mut found = told(&all(&mut client, trail()).await);
    let mut last = BTreeMap::new();
    for (_, name, version) in &found {
        let before = last.insert(name.clone(), *version);
        assert!(before.is_none_or(|before| before == version + 1), "{name} {version} is misplaced");
    }
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}
