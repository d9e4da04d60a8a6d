//! Who uses which secret: noted without waiting, written behind, merged over
//! replicas, and bounded whatever callers invent.

use std::{sync::Arc, time::Duration};

use workflow_secrets::{
    domain::{Clock as _, Revision, SecretName, Timestamp, WorkflowId, WorkspaceId},
    service::{
        Credential, Credentials, DeleteSecret, Error, GetSecret, ListSecretUsage, ListSecrets,
        PageSize, ResolveSecrets, SecretUsage, Secrets, Seen, UsagePage,
    },
    store::{Key, Record, Store, StoreError},
};

use super::{
    on_engines::{caller, create, name, on_both_engines, secrets, workspace},
    support::{manual_clock::ManualClock, memory_store::MemoryStore},
};

on_both_engines! {
    usage_is_told_by_secret_and_by_workflow
    names_without_a_secret_are_seen_until_there_is_one
    usage_goes_with_a_secret_and_comes_back_in_vain
    a_deleted_secret_is_not_told_the_usage_of_its_successor
    replicas_add_to_each_other
    of_many_workflows_the_last_hundred_are_told
    invented_names_give_way_to_newer_ones
    a_workspace_without_secrets_stays_empty
    only_who_may_list_is_told
    pages_cover_every_name_once
}

async fn resolve_in(
    secrets: &Secrets,
    workspace: &str,
    names: &[&str],
    workflow: &str,
) -> Result<(), Error> {
    let credential = |name: &&str| {
        let secret = self::name(name);
        Credential { alias: (&secret).into(), secret, version: None, seen: Seen::default() }
    };
    let request = ResolveSecrets {
        workspace: WorkspaceId::parse(workspace).unwrap(),
        credentials: Credentials::new(names.iter().map(credential).collect()).unwrap(),
        workflow_id: Some(workflow).filter(|id| !id.is_empty()).map(self::workflow),
        run_id: None,
    };
    secrets.resolve(&caller("executor"), request).await.map(|_| ())
}

async fn resolve(secrets: &Secrets, names: &[&str], workflow: &str) -> Result<(), Error> {
    resolve_in(secrets, "ws", names, workflow).await
}

fn workflow(id: &str) -> WorkflowId {
    WorkflowId::parse(id).unwrap()
}

/// What Get and List say of a secret; both must say the same.
async fn last_resolve(secrets: &Secrets, name: &str) -> Option<Timestamp> {
    let request = GetSecret { workspace: workspace(), name: self::name(name) };
    let got = secrets.get(&caller("operator"), request).await.unwrap();
    let request = ListSecrets {
        workspace: workspace(),
        page_size: PageSize::parse(1_000).unwrap(),
        page_token: String::new(),
        show_system_managed: true,
        show_deleted: false,
        expiring_within: None,
    };
    let listed = secrets.list(&caller("operator"), request).await.unwrap().secrets;
    assert!(listed.contains(&got), "{got:?}");
    got.last_resolve_time
}

async fn page(secrets: &Secrets, name: Option<&str>, size: i32, token: &str) -> UsagePage {
    let request = ListSecretUsage {
        workspace: workspace(),
        name: name.map(self::name),
        page_size: PageSize::parse(size).unwrap(),
        page_token: token.to_owned(),
    };
    secrets.list_usage(&caller("platform"), request).await.unwrap()
}

async fn of(secrets: &Secrets, name: &str) -> SecretUsage {
    let page = page(secrets, Some(name), 0, "").await;
    assert_eq!((page.usages.len(), page.next_page_token.as_str()), (1, ""));
    page.usages[0].clone()
}

/// Names that runs want in vain.
async fn wanted(secrets: &Secrets) -> Vec<String> {
    let page = page(secrets, None, 1_000, "").await;
    assert!(page.usages.iter().all(|usage| usage.missing));
    page.usages.iter().map(|usage| usage.name.to_string()).collect()
}

fn workflows(usage: &SecretUsage) -> Vec<(&str, Timestamp)> {
    usage.usage.workflows().map(|(id, time)| (id.as_str(), time)).collect()
}

fn pause(clock: &ManualClock) -> Timestamp {
    clock.advance(Duration::from_secs(10));
    clock.now()
}

async fn keys(store: &Arc<dyn Store>, prefix: &str) -> Vec<String> {
    let keys = store.keys(&workspace(), prefix, 10_000).await.unwrap();
    keys.iter().map(|key| key.as_str().to_owned()).collect()
}

async fn usage_is_told_by_secret_and_by_workflow(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store.clone(), clock.clone());
    for name in ["A", "B", "NEVER"] {
        create(&secrets, name, None).await.unwrap();
    }
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let revision = store.revision(&workspace()).await.unwrap();
    let first = pause(&clock);
    resolve(&secrets, &["A", "OAUTH"], "wf-1").await.unwrap();
    let second = pause(&clock);
    resolve(&secrets, &["A", "B"], "wf-2").await.unwrap();
    resolve(&secrets, &["B"], "").await.unwrap();
    assert_eq!(last_resolve(&secrets, "A").await, None, "not written yet");
    secrets.write_usage().await;

    assert_eq!(last_resolve(&secrets, "A").await, Some(second));
    assert_eq!(last_resolve(&secrets, "OAUTH").await, Some(first));
    assert_eq!(last_resolve(&secrets, "NEVER").await, None);
    let usage = of(&secrets, "A").await;
    assert_eq!(workflows(&usage), [("wf-1", first), ("wf-2", second)]);
    assert_eq!((usage.name, usage.missing, usage.usage.last()), (name("A"), false, Some(second)));
    // Who names no workflow is counted, too.
    let third = pause(&clock);
    resolve(&secrets, &["B"], "").await.unwrap();
    secrets.write_usage().await;
    assert_eq!(last_resolve(&secrets, "B").await, Some(third));
    assert_eq!(workflows(&of(&secrets, "B").await), [("wf-2", second)]);
    assert_eq!(workflows(&of(&secrets, "NEVER").await), []);

    // Matchers and whatever else goes by the revision stay good.
    assert_eq!(store.revision(&workspace()).await.unwrap(), revision);
    // With nothing noted, nothing is written.
    let before = store.scan(&workspace(), "", None, 1_000).await.unwrap();
    secrets.write_usage().await;
    assert!(store.scan(&workspace(), "", None, 1_000).await.unwrap() == before);
}

async fn names_without_a_secret_are_seen_until_there_is_one(
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
) {
    let secrets = secrets(store.clone(), clock.clone());
    create(&secrets, "A", None).await.unwrap();
    let first = pause(&clock);
    let failed = resolve(&secrets, &["A", "GONE", "TYPO"], "wf-1").await;
    assert!(matches!(failed, Err(Error::Unresolved(_))));
    secrets.write_usage().await;
    assert_eq!(wanted(&secrets).await, ["GONE", "TYPO"]);
    let usage = of(&secrets, "GONE").await;
    assert_eq!((usage.missing, workflows(&usage)), (true, vec![("wf-1", first)]));
    // The run was there, though it got nothing.
    assert_eq!(workflows(&of(&secrets, "A").await), [("wf-1", first)]);
    assert_eq!(last_resolve(&secrets, "A").await, Some(first));

    // Created, it is no longer among them; and was not used since.
    pause(&clock);
    create(&secrets, "GONE", None).await.unwrap();
    assert_eq!(wanted(&secrets).await, ["TYPO"]);
    let usage = of(&secrets, "GONE").await;
    assert_eq!((usage.missing, workflows(&usage)), (false, vec![("wf-1", first)]));
    assert_eq!(last_resolve(&secrets, "GONE").await, None);
    let second = pause(&clock);
    resolve(&secrets, &["GONE"], "wf-2").await.unwrap();
    secrets.write_usage().await;
    assert_eq!(last_resolve(&secrets, "GONE").await, Some(second));
    assert_eq!(workflows(&of(&secrets, "GONE").await), [("wf-1", first), ("wf-2", second)]);
    assert_eq!(keys(&store, Key::WANTED).await, ["w/TYPO"]);
    assert_eq!(keys(&store, Key::USAGE).await, ["u/A", "u/GONE"]);
}

async fn a_deleted_secret_is_not_told_the_usage_of_its_successor(
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
) {
    let secrets = secrets(store, clock.clone());
    create(&secrets, "A", None).await.unwrap();
    pause(&clock);
    let delete = DeleteSecret {
        workspace: workspace(),
        name: name("A"),
        etag: None,
        permanent: false,
        request_id: None,
    };
    secrets.delete(&caller("platform"), delete).await.unwrap();
    create(&secrets, "A", None).await.unwrap();
    let used = pause(&clock);
    resolve(&secrets, &["A"], "wf-1").await.unwrap();
    secrets.write_usage().await;
    let request = ListSecrets {
        workspace: workspace(),
        page_size: PageSize::parse(0).unwrap(),
        page_token: String::new(),
        show_system_managed: false,
        show_deleted: true,
        expiring_within: None,
    };
    let listed = secrets.list(&caller("platform"), request).await.unwrap().secrets;
    let told = listed.iter().map(|view| (view.deletion.is_some(), view.last_resolve_time));
    assert_eq!(told.collect::<Vec<_>>(), [(false, Some(used)), (true, None)]);
}

async fn usage_goes_with_a_secret_and_comes_back_in_vain(
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
) {
    let secrets = secrets(store.clone(), clock.clone());
    for name in ["A", "KEPT"] {
        create(&secrets, name, None).await.unwrap();
    }
    pause(&clock);
    resolve(&secrets, &["A"], "wf-1").await.unwrap();
    secrets.write_usage().await;
    let second = pause(&clock);
    resolve(&secrets, &["A"], "wf-2").await.unwrap();
    // Deleted before that was written.
    let delete = DeleteSecret {
        workspace: workspace(),
        name: name("A"),
        etag: None,
        permanent: false,
        request_id: None,
    };
    secrets.delete(&caller("platform"), delete).await.unwrap();
    assert_eq!(keys(&store, Key::USAGE).await, [""; 0]);
    secrets.write_usage().await;
    assert_eq!(keys(&store, Key::USAGE).await, [""; 0]);
    assert_eq!(workflows(&of(&secrets, "A").await), [("wf-2", second)]);

    // Every later run that fails is seen.
    let third = pause(&clock);
    assert!(resolve(&secrets, &["A", "KEPT"], "wf-3").await.is_err());
    secrets.write_usage().await;
    assert_eq!(wanted(&secrets).await, ["A"]);
    assert_eq!(workflows(&of(&secrets, "A").await), [("wf-2", second), ("wf-3", third)]);
}

async fn replicas_add_to_each_other(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let one = secrets(store.clone(), clock.clone());
    create(&one, "A", None).await.unwrap();
    // The other knows the same data key: usage needs none.
    let others: Vec<_> = (0..4).map(|_| secrets(store.clone(), clock.clone())).collect();
    for round in 0..5 {
        let now = pause(&clock);
        for (number, replica) in others.iter().enumerate() {
            let missing = format!("MISSING_{round}");
            let workflow = format!("wf-{round}-{number}");
            assert!(resolve(replica, &[&missing, "OTHER"], &workflow).await.is_err());
        }
        // All at once, and none takes anything from another.
        let writes = others.iter().map(|replica| replica.write_usage());
        futures_util::future::join_all(writes).await;
        let usage = of(&one, &format!("MISSING_{round}")).await;
        let ids: Vec<_> = (0..4).map(|number| format!("wf-{round}-{number}")).collect();
        let ids: Vec<_> = ids.iter().map(|id| (id.as_str(), now)).collect();
        assert_eq!(workflows(&usage), ids);
    }
    assert_eq!(of(&one, "OTHER").await.usage.workflows().len(), 20);
    // A replica that writes late does not turn the time back.
    let late = secrets(store, clock.clone());
    assert!(resolve(&late, &["OTHER"], "wf-0-0").await.is_err());
    let now = pause(&clock);
    assert!(resolve(&one, &["OTHER"], "wf-0-0").await.is_err());
    one.write_usage().await;
    late.write_usage().await;
    let usage = of(&one, "OTHER").await;
    assert_eq!((usage.usage.last(), workflows(&usage)[0]), (Some(now), ("wf-0-0", now)));
}

async fn of_many_workflows_the_last_hundred_are_told(
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
) {
    let secrets = secrets(store, clock.clone());
    create(&secrets, "A", None).await.unwrap();
    for number in 0..130 {
        pause(&clock);
        resolve(&secrets, &["A"], &format!("wf-{number:03}")).await.unwrap();
        if number % 20 == 19 {
            secrets.write_usage().await;
        }
    }
    secrets.write_usage().await;
    let usage = of(&secrets, "A").await;
    let expected: Vec<_> = (30..130).map(|number| format!("wf-{number:03}")).collect();
    let ids: Vec<_> = workflows(&usage).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, expected);
}

async fn invented_names_give_way_to_newer_ones(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store.clone(), clock.clone());
    create(&secrets, "A", None).await.unwrap();
    resolve(&secrets, &["A"], "wf").await.unwrap();
    for round in 0..13 {
        pause(&clock);
        let names: Vec<_> = (0..100).map(|number| format!("N{number}_{round}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert!(resolve(&secrets, &names, "wf").await.is_err());
        secrets.write_usage().await;
        let there = keys(&store, Key::WANTED).await;
        assert_eq!(there.len(), usize::min(1_000, 100 * (round + 1)));
        let newest = there.iter().filter(|key| key.ends_with(&format!("_{round}"))).count();
        assert_eq!(newest, 100, "round {round}");
    }
    // What went was rather old than new.
    let there = keys(&store, Key::WANTED).await;
    let of_round = |round| there.iter().filter(|key| key.ends_with(&format!("_{round}"))).count();
    let (old, new): (usize, usize) = ((0..6).map(of_round).sum(), (7..13).map(of_round).sum());
    assert!(old < new && new >= 530, "{old} {new}");
    assert_eq!(keys(&store, Key::USAGE).await, ["u/A"]);
}

async fn a_workspace_without_secrets_stays_empty(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store.clone(), clock);
    assert!(resolve_in(&secrets, "invented", &["A"], "wf").await.is_err());
    assert!(resolve(&secrets, &["A"], "wf").await.is_err());
    secrets.write_usage().await;
    assert!(store.workspaces(None).await.unwrap().0.is_empty());
    // So that its first data key can be made.
    create(&secrets, "A", None).await.unwrap();
    assert_eq!(wanted(&secrets).await, [""; 0]);
}

async fn only_who_may_list_is_told(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store, clock);
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    for name in [None, Some("OAUTH"), Some("MISSING")] {
        for (by, granted) in [
            ("platform", true),
            ("operator", true),
            ("executor", false),
            ("sheets", false),
            ("stranger", false),
        ] {
            let request = ListSecretUsage {
                workspace: workspace(),
                name: name.map(self::name),
                page_size: PageSize::parse(0).unwrap(),
                page_token: String::new(),
            };
            let outcome = secrets.list_usage(&caller(by), request).await;
            assert_eq!(outcome.err(), (!granted).then_some(Error::NotGranted), "{by} {name:?}");
        }
    }
}

async fn pages_cover_every_name_once(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store, clock);
    create(&secrets, "A", None).await.unwrap();
    let all: Vec<_> = (0..250).map(|number| format!("N{number:03}")).collect();
    for some in all.chunks(100) {
        let names: Vec<_> = some.iter().map(String::as_str).collect();
        assert!(resolve(&secrets, &names, "wf").await.is_err());
    }
    secrets.write_usage().await;
    // Every third exists by now.
    for name in all.iter().step_by(3) {
        create(&secrets, name, None).await.unwrap();
    }
    let left: Vec<_> =
        (0..).zip(&all).filter(|(n, _)| n % 3 != 0).map(|(_, name)| name.clone()).collect();
    for size in [1, 7, 166, 167] {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let page = page(&secrets, None, size, &token).await;
            assert!(page.usages.len() <= usize::try_from(size).unwrap());
            found.extend(page.usages.into_iter().map(|usage| usage.name.to_string()));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(found, left, "{size}");
    }
    // A token belongs to its listing.
    let token = page(&secrets, None, 1, "").await.next_page_token;
    for (by, name, token) in [
        ("operator", None, token.clone()),
        ("platform", Some("A"), token.clone()),
        ("platform", None, format!("{token}-")),
        ("platform", None, "x".to_owned()),
    ] {
        let request = ListSecretUsage {
            workspace: workspace(),
            name: name.map(self::name),
            page_size: PageSize::parse(0).unwrap(),
            page_token: token,
        };
        let outcome = secrets.list_usage(&caller(by), request).await;
        assert!(matches!(outcome, Err(Error::Invalid(_))), "{by} {name:?}");
    }
}

#[tokio::test]
async fn a_resolve_costs_one_read_and_no_write() {
    let (store, clock) = (Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
    let secrets = secrets(store.clone(), clock.clone());
    create(&secrets, "A", None).await.unwrap();
    let (reads, records) = (store.reads(), store.records(&workspace()));
    resolve(&secrets, &["A"], "wf").await.unwrap();
    assert_eq!(store.reads(), reads + 1);
    assert!(store.records(&workspace()) == records);
}

#[tokio::test]
async fn what_the_store_does_not_take_is_written_later() {
    let (store, clock) = (Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
    let secrets = secrets(store.clone(), clock.clone());
    create(&secrets, "A", None).await.unwrap();
    let first = pause(&clock);
    resolve(&secrets, &["A"], "wf-1").await.unwrap();
    store.fail_reads(Some(StoreError::Unavailable("away")));
    secrets.write_usage().await;
    store.fail_reads(None);
    // Carried out or not: written again, it is the same.
    for done in [true, false] {
        store.fail_commit(StoreError::Unavailable("away"), done);
        secrets.write_usage().await;
    }
    let second = pause(&clock);
    resolve(&secrets, &["A"], "wf-2").await.unwrap();
    secrets.write_usage().await;
    assert_eq!(workflows(&of(&secrets, "A").await), [("wf-1", first), ("wf-2", second)]);
    assert_eq!(last_resolve(&secrets, "A").await, Some(second));
}

#[tokio::test]
async fn who_is_overtaken_looks_again() {
    let (store, clock) = (Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
    let secrets = secrets(store.clone(), clock.clone());
    create(&secrets, "A", None).await.unwrap();
    let record_of = |key: Key| store.records(&workspace())[&key].clone();
    let (used, secret) = (Key::usage(&name("A")), Key::metadata(&name("A")));
    let first = pause(&clock);
    resolve(&secrets, &["A"], "wf-1").await.unwrap();
    secrets.write_usage().await;
    let written = record_of(used.clone());
    // Another replica writes the usage; then somebody creates the secret.
    store.set(&workspace(), used.clone(), None);
    let second = pause(&clock);
    resolve(&secrets, &["A"], "wf-2").await.unwrap();
    store.overtake(used.clone(), written);
    secrets.write_usage().await;
    assert_eq!(workflows(&of(&secrets, "A").await), [("wf-1", first), ("wf-2", second)]);

    let metadata = record_of(secret.clone());
    store.set(&workspace(), secret.clone(), None);
    store.set(&workspace(), used.clone(), None);
    assert!(resolve(&secrets, &["A"], "wf-3").await.is_err());
    store.overtake(secret, metadata);
    secrets.write_usage().await;
    assert!(store.records(&workspace()).contains_key(&used));
    assert!(!store.records(&workspace()).contains_key(&Key::wanted(&name("A"))));
}

#[tokio::test]
async fn a_broken_record_hides_no_secret_and_is_replaced() {
    let (store, clock) = (Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
    let secrets = secrets(store.clone(), clock.clone());
    create(&secrets, "A", None).await.unwrap();
    let other = SecretName::parse("OTHER").unwrap();
    let foreign = workflow_secrets::store::codec::encode_usage(&other, &Default::default());
    for bytes in [b"\xff\xff".to_vec(), foreign] {
        let record = Record { revision: Revision::initial(), bytes };
        store.set(&workspace(), Key::usage(&name("A")), Some(record));
        assert_eq!(last_resolve(&secrets, "A").await, None);
        let now = pause(&clock);
        resolve(&secrets, &["A"], "wf").await.unwrap();
        secrets.write_usage().await;
        assert_eq!(last_resolve(&secrets, "A").await, Some(now));
    }
}
