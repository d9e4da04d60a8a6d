//! Secrets that integrations own, and who may do what with them.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto::{self, ManagedBy, Owner};

use super::support::platform::{
    CALLERS, Client, Platform, Replica, assert_refused, create, delete, get, list, resolve,
    spiffe_id, update, value, with,
};

const WS: &str = "ws";

/// A client of each caller, all of one replica.
struct Callers(HashMap<&'static str, Client>);

impl Callers {
    async fn of(platform: &Platform) -> (Replica, Self) {
        let replica = platform.replica().await;
        let mut clients = HashMap::new();
        for caller in CALLERS {
            clients.insert(caller, platform.client(&replica, caller).await);
        }
        (replica, Self(clients))
    }

    fn client(&self, caller: &str) -> Client {
        self.0[caller].clone()
    }

    /// Names that a caller is shown.
    async fn shown(&self, caller: &str, show_system_managed: bool) -> Vec<String> {
        let request = proto::ListSecretsRequest { show_system_managed, ..list(WS) };
        let page = self.client(caller).list_secrets(request).await.unwrap().into_inner();
        assert_eq!(page.next_page_token, "");
        page.secrets.into_iter().map(|secret| secret.name).collect()
    }
}

fn owner(integration: &str) -> Option<Owner> {
    Some(Owner { integration: integration.to_owned(), connection_id: "conn-1".to_owned() })
}

fn create_owned(name: &str, integration: &str) -> proto::CreateSecretRequest {
    with(create(WS, name, "token-1"), |r| r.owner = owner(integration))
}

fn new_value(name: &str, text: &str) -> proto::UpdateSecretRequest {
    with(update(WS, name), |r| r.value = Some(text.to_owned()))
}

/// A change by `integration` that creates the secret if it is missing.
fn register(name: &str, text: &str, integration: &str) -> proto::UpdateSecretRequest {
    with(new_value(name, text), |r| {
        r.allow_missing = true;
        r.owner = owner(integration);
    })
}

fn delete_at(name: &str, etag: &str) -> proto::DeleteSecretRequest {
    proto::DeleteSecretRequest { etag: etag.to_owned(), ..delete(WS, name) }
}

/// Fields that an INVALID_FIELD error names.
fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let request = details.bad_request().expect("a BadRequest");
    request.field_violations.iter().map(|violation| violation.field.clone()).collect()
}

/// One secret of each kind: `USER`, `SHEETS` and `SLACK`.
async fn one_of_each(callers: &Callers) -> [proto::Secret; 3] {
    let mut secrets = Vec::new();
    for (caller, request) in [
        ("platform", create(WS, "USER", "token-1")),
        ("sheets", create_owned("SHEETS", "google_sheets")),
        ("slack", create_owned("SLACK", "slack")),
    ] {
        secrets.push(callers.client(caller).create_secret(request).await.unwrap().into_inner());
    }
    secrets.try_into().unwrap()
}

#[tokio::test]
async fn only_the_named_integration_changes_them() {
    let platform = Platform::start().await;
    let (_replica, callers) = Callers::of(&platform).await;

    // Nobody else creates them, not even for an integration of another name.
    for caller in CALLERS.into_iter().filter(|caller| *caller != "sheets") {
        let mut client = callers.client(caller);
        let outcome = client.create_secret(create_owned("SHEETS", "google_sheets")).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        let outcome = client.update_secret(register("SHEETS", "x", "google_sheets")).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    }
    // And an integration creates nothing else.
    let mut sheets = callers.client("sheets");
    let outcome = sheets.create_secret(create(WS, "USER", "x")).await;
    assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    let mut request = register("USER", "x", "google_sheets");
    request.owner = None;
    let outcome = sheets.update_secret(request).await;
    assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    assert_eq!(callers.shown("operator", true).await, [""; 0]);

    let [user, secret, _] = one_of_each(&callers).await;
    assert_eq!((user.managed_by(), &user.owner), (ManagedBy::User, &None));
    assert_eq!((secret.managed_by(), &secret.owner), (ManagedBy::System, &owner("google_sheets")));
    assert_eq!(secret.created_by, spiffe_id("sheets"));

    // A person, or another integration, is sent away; with or without
    // an etag, and whether or not anything would change.
    for caller in ["platform", "slack"] {
        let mut client = callers.client(caller);
        for etag in ["", &secret.etag] {
            let change = with(new_value("SHEETS", "stolen"), |r| {
                r.etag = etag.to_owned();
                r.validate_only = etag.is_empty();
            });
            let updated = client.update_secret(change).await.map(|_| ());
            let deleted = client.delete_secret(delete_at("SHEETS", etag)).await.map(|_| ());
            for outcome in [updated, deleted] {
                let outcome = outcome.map(tonic::Response::new);
                let status = assert_refused(outcome, Code::PermissionDenied, "SYSTEM_MANAGED");
                let details = status.get_error_details();
                let metadata = &details.error_info().unwrap().metadata;
                // Whose it is, is told to those who could look it up.
                let told = ["integration", "connection_id"].map(|key| metadata.get(key));
                let told = told.map(|value| value.map(String::as_str));
                match caller {
                    "platform" => assert_eq!(told, [Some("google_sheets"), Some("conn-1")]),
                    _ => assert_eq!(told, [None, None]),
                }
            }
        }
    }
    // The reverse: an integration cannot touch a person's secret.
    for request in [new_value("USER", "x"), register("USER", "x", "google_sheets")] {
        let request = with(request, |r| r.etag = user.etag.clone());
        let outcome = sheets.update_secret(request).await;
        assert_refused(outcome, Code::PermissionDenied, "USER_MANAGED");
    }
    let outcome = sheets.delete_secret(delete_at("USER", &user.etag)).await;
    assert_refused(outcome, Code::PermissionDenied, "USER_MANAGED");

    // The rest may do nothing of the kind, whoever owns the secret.
    for caller in ["executor", "operator", "stranger"] {
        let mut client = callers.client(caller);
        for name in ["USER", "SHEETS", "MISSING"] {
            let outcome = client.update_secret(new_value(name, "x")).await;
            assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
            let outcome = client.delete_secret(delete(WS, name)).await;
            assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        }
    }

    // None of that did anything.
    let found = sheets.get_secret(get(WS, "SHEETS")).await.unwrap().into_inner();
    assert_eq!(found, secret);
    let found = callers.client("platform").get_secret(get(WS, "USER")).await.unwrap();
    assert_eq!(found.into_inner(), user);

    // Its owner deletes it.
    sheets.delete_secret(delete(WS, "SHEETS")).await.unwrap();
    assert_eq!(callers.shown("operator", true).await, ["SLACK", "USER"]);
}

#[tokio::test]
async fn a_change_names_the_state_it_is_meant_for() {
    let platform = Platform::start().await;
    let (_replica, callers) = Callers::of(&platform).await;
    let mut sheets = callers.client("sheets");

    // First registration, its retry, then a refresh: all the same call.
    let first = with(register("SHEETS", "token-1", "google_sheets"), |r| {
        r.request_id = "registration-1".to_owned()
    });
    let registered = sheets.update_secret(first.clone()).await.unwrap().into_inner();
    assert_eq!((registered.version, registered.managed_by()), (1, ManagedBy::System));
    assert_eq!(registered.owner, owner("google_sheets"));
    assert_eq!(sheets.update_secret(first.clone()).await.unwrap().into_inner(), registered);
    let refresh = with(register("SHEETS", "token-2", "google_sheets"), |r| {
        r.request_id = "refresh-2".to_owned()
    });
    let refreshed = sheets.update_secret(refresh.clone()).await.unwrap().into_inner();
    assert_eq!((refreshed.version, &refreshed.uid), (2, &registered.uid));
    // Late retries, in any order, answer as they did and change nothing.
    assert_eq!(sheets.update_secret(first).await.unwrap().into_inner(), registered);
    assert_eq!(sheets.update_secret(refresh).await.unwrap().into_inner(), refreshed);
    let mut executor = callers.client("executor");
    let answer = executor.resolve_secrets(resolve(WS, &["SHEETS"])).await.unwrap().into_inner();
    assert_eq!(value(&answer, "SHEETS"), "token-2");

    // Without allow_missing, the etag is required, and it must be current.
    let outcome = sheets.update_secret(new_value("SHEETS", "x")).await;
    assert_eq!(fields(&assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD")), ["etag"]);
    let at = |etag: &str| with(new_value("SHEETS", "token-3"), |r| r.etag = etag.to_owned());
    let outcome = sheets.update_secret(at(&registered.etag)).await;
    assert_refused(outcome, Code::Aborted, "ETAG_MISMATCH");
    let outcome = sheets.delete_secret(delete_at("SHEETS", &registered.etag)).await;
    assert_refused(outcome, Code::Aborted, "ETAG_MISMATCH");
    let third = sheets.update_secret(at(&refreshed.etag)).await.unwrap().into_inner();
    assert_eq!(third.version, 3);

    // An owner never changes, not even to another connection.
    for other in [
        Owner { integration: "google_sheets".to_owned(), connection_id: "conn-2".to_owned() },
        Owner { integration: "google_sheets".to_owned(), connection_id: "CONN-1".to_owned() },
    ] {
        for etag in ["", &third.etag] {
            let request = with(register("SHEETS", "x", "google_sheets"), |r| {
                r.owner = Some(other.clone());
                r.etag = etag.to_owned();
            });
            let status = assert_refused(
                sheets.update_secret(request).await,
                Code::InvalidArgument,
                "INVALID_FIELD",
            );
            assert_eq!(fields(&status), ["owner"]);
        }
    }
    // Nor does a person's secret get one.
    let mut person = callers.client("platform");
    person.create_secret(create(WS, "USER", "token-1")).await.unwrap();
    let request = with(new_value("USER", "x"), |r| r.owner = owner("slack"));
    let status =
        assert_refused(person.update_secret(request).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(fields(&status), ["owner"]);

    // allow_missing with an etag means a state that was seen: gone is gone.
    sheets.delete_secret(delete_at("SHEETS", &third.etag)).await.unwrap();
    let request = with(register("SHEETS", "x", "google_sheets"), |r| r.etag = third.etag.clone());
    let outcome = sheets.update_secret(request).await;
    assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
    // To create takes a value.
    let request = with(register("SHEETS", "", "google_sheets"), |r| {
        r.value = None;
        r.description = Some("no value".to_owned());
    });
    let status =
        assert_refused(sheets.update_secret(request).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(fields(&status), ["value"]);
}

#[tokio::test]
async fn who_sees_them_and_who_reads_them() {
    let platform = Platform::start().await;
    let (replica, callers) = Callers::of(&platform).await;
    let [user, sheets, slack] = one_of_each(&callers).await;

    // List hides them unless asked, and shows integrations only their own.
    for (caller, by_default, all) in [
        ("platform", &["USER"][..], &["SHEETS", "SLACK", "USER"][..]),
        ("operator", &["USER"], &["SHEETS", "SLACK", "USER"]),
        ("sheets", &[], &["SHEETS"]),
        ("slack", &[], &["SLACK"]),
    ] {
        assert_eq!(callers.shown(caller, false).await, by_default, "{caller}");
        assert_eq!(callers.shown(caller, true).await, all, "{caller}");
    }
    // So does Get, to which the secrets of others are as missing ones.
    for (caller, sees) in [
        ("platform", &["USER", "SHEETS", "SLACK"][..]),
        ("operator", &["USER", "SHEETS", "SLACK"]),
        ("sheets", &["SHEETS"]),
        ("slack", &["SLACK"]),
    ] {
        for secret in [&user, &sheets, &slack] {
            let outcome = callers.client(caller).get_secret(get(WS, &secret.name)).await;
            if sees.contains(&secret.name.as_str()) {
                assert_eq!(outcome.unwrap().into_inner(), *secret);
            } else {
                let hidden = assert_refused(outcome, Code::NotFound, "SECRET_NOT_FOUND");
                // As long as the name hidden, so that both answers must match.
                let name = "X".repeat(secret.name.len());
                let missing = callers.client(caller).get_secret(get(WS, &name)).await;
                assert_same(&hidden, &missing.unwrap_err(), &secret.name, &name);
            }
        }
    }

    // The executor resolves both kinds, and alone does so.
    let request = resolve(WS, &["USER=a", "SHEETS=b", "SLACK"]);
    let answer = callers.client("executor").resolve_secrets(request).await.unwrap().into_inner();
    assert_eq!(answer.secrets.len(), 3);
    assert!(answer.secrets.values().all(|secret| secret.value == "token-1"));
    for caller in CALLERS.into_iter().filter(|caller| *caller != "executor") {
        for name in ["USER", "SHEETS", "SLACK", "MISSING"] {
            let outcome = callers.client(caller).resolve_secrets(resolve(WS, &[name])).await;
            assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        }
    }
    for caller in ["executor", "stranger"] {
        let outcome = callers.client(caller).get_secret(get(WS, "SHEETS")).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        let outcome = callers.client(caller).list_secrets(list(WS)).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    }

    // Each refusal stands in the audit stream under its caller.
    let refused = replica.audit().into_iter().filter(|line| line["outcome"] == "NOT_GRANTED");
    let by_operator = refused.filter(|line| line["caller"] == spiffe_id("operator").as_str());
    let secrets: Vec<_> = by_operator.map(|line| line["secret"].clone()).collect();
    assert_eq!(secrets, ["USER", "SHEETS", "SLACK", "MISSING"]);
}

#[tokio::test]
async fn a_stranger_cannot_tell_what_exists() {
    let platform = Platform::start().await;
    let (_replica, callers) = Callers::of(&platform).await;
    let [user, sheets, _] = one_of_each(&callers).await;
    let mut stranger = callers.client("stranger");

    // What exists, of either kind; what does not; a workspace that does not.
    let mut answers: Vec<Vec<Status>> = Vec::new();
    for (workspace, name, etag) in [
        (WS, "USER", &user.etag),
        (WS, "SHEETS", &sheets.etag),
        (WS, "MISSING", &user.etag),
        ("nowhere", "USER", &user.etag),
    ] {
        let owned = with(create(workspace, name, "x"), |r| r.owner = owner("google_sheets"));
        let change = with(update(workspace, name), |r| {
            r.value = Some("x".to_owned());
            r.etag = etag.clone();
        });
        let missing = with(update(workspace, name), |r| {
            r.value = Some("x".to_owned());
            r.allow_missing = true;
        });
        answers.push(vec![
            stranger.create_secret(create(workspace, name, "x")).await.unwrap_err(),
            stranger.create_secret(owned).await.unwrap_err(),
            stranger.get_secret(get(workspace, name)).await.unwrap_err(),
            stranger.update_secret(change).await.unwrap_err(),
            stranger.update_secret(missing).await.unwrap_err(),
            stranger.delete_secret(delete(workspace, name)).await.unwrap_err(),
            stranger.list_secrets(list(workspace)).await.unwrap_err(),
            stranger.resolve_secrets(resolve(workspace, &[name])).await.err().unwrap(),
        ]);
    }
    for status in answers.iter().flatten() {
        assert_refused(
            Err::<tonic::Response<()>, _>(status.clone()),
            Code::PermissionDenied,
            "NOT_GRANTED",
        );
        assert_same(status, &answers[0][0], "", "");
    }
}

/// Asserts that two errors differ in nothing but a name that the caller sent.
#[track_caller]
fn assert_same(one: &Status, other: &Status, name: &str, other_name: &str) {
    let plain = |status: &Status, name: &str| {
        let mut headers = status.metadata().clone().into_headers();
        headers.remove("date");
        let details = format!("{:?}", status.get_error_details());
        let text = format!("{} {details} {headers:?}", status.message());
        if name.is_empty() { text } else { text.replace(name, "*") }
    };
    assert_eq!(one.code(), other.code());
    assert_eq!(one.details().len(), other.details().len());
    assert_eq!(plain(one, name), plain(other, other_name));
}
