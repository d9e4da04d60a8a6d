//! What this process has seen of a workspace counts for its data keys too: they
//! are not read or made behind the back of the witness.

use std::{sync::Arc, time::Duration};

use workflow_secrets::{
    domain::{Plaintext, Revision, SecretName, WorkspaceId},
    service::{CreateSecret, Error, GetSecret, Secrets, audit::AuditSink},
    store::{
        Batch, Commit, Key, Record, Store as _,
        witness::{Regression, Witness},
    },
};

use crate::support::{
    fake_kms::FakeKms, manual_clock::ManualClock, memory_store::MemoryStore, service,
};

fn ws() -> WorkspaceId {
    WorkspaceId::parse("ws").unwrap()
}

fn name(name: &str) -> SecretName {
    SecretName::parse(name).unwrap()
}

fn tombstone() -> Record {
    Record { revision: Revision::from_u64(1), bytes: vec![] }
}

fn secrets(store: &Arc<MemoryStore>, kms: &Arc<FakeKms>) -> Arc<Secrets> {
    let sink = AuditSink::Writer(Box::new(std::io::sink()));
    Arc::new(service::secrets(store.clone(), kms.clone(), Arc::new(ManualClock::default()), sink))
}

async fn create(secrets: &Arc<Secrets>, named: &str) -> Result<(), Error> {
    let request = CreateSecret {
        workspace: ws(),
        name: name(named),
        value: Plaintext::parse("k_4f0c1e".to_owned()).ok().unwrap(),
        description: Default::default(),
        owner: None,
        expiry: None,
        request_id: None,
        validate_only: false,
    };
    secrets.create(&service::caller(), request).await.map(drop)
}

/// A data key is being made while the workspace is destroyed, as another call
/// sees, and an older snapshot comes back: an empty one, or one with a data key
/// that another replica has made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_data_key_is_made_or_read_in_an_older_snapshot_of_a_destroyed_workspace() {
    for snapshot in ["empty", "with a key"] {
        let (store, kms) = (Arc::new(MemoryStore::default()), Arc::new(FakeKms::default()));
        let (mine, others) = (secrets(&store, &kms), secrets(&store, &kms));
        if snapshot == "with a key" {
            create(&others, "OTHER").await.unwrap();
        }
        let old = store.records(&ws());
        old.keys().for_each(|key| store.set(&ws(), key.clone(), None));

        kms.hold(true);
        let made = kms.generates();
        let caller = mine.clone();
        let creating = tokio::spawn(async move { create(&caller, "KEY").await });
        while kms.generates() == made {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        store.set(&ws(), Key::tombstone(), Some(tombstone()));
        let get = GetSecret { workspace: ws(), name: name("KEY") };
        let seen = mine.get(&service::caller(), get).await;
        assert!(matches!(seen, Err(Error::WorkspaceShredded)));
        store.set(&ws(), Key::tombstone(), None);
        old.iter().for_each(|(key, record)| store.set(&ws(), key.clone(), Some(record.clone())));
        let unwrapped = kms.decrypts();
        kms.hold(false);

        assert!(matches!(creating.await.unwrap(), Err(Error::WorkspaceShredded)), "{snapshot}");
        assert_eq!(kms.decrypts(), unwrapped, "{snapshot}: a data key was read and unwrapped");
        assert!(store.records(&ws()) == old, "{snapshot}: something was written");
    }
}

/// A commit that met a tombstone has seen it, though it read none.
#[tokio::test]
async fn a_commit_that_was_refused_knows_that_the_workspace_is_destroyed() {
    let store = Arc::new(MemoryStore::default());
    let witness = Witness::new(store.clone(), Arc::default());
    let key = Key::metadata(&name("KEY"));
    store.set(&ws(), Key::tombstone(), Some(tombstone()));
    assert!(witness.commit(&ws(), Batch::default()).await == Ok(Commit::Shredded));
    assert!(witness.take_regressions().is_empty());

    // An older snapshot.
    store.set(&ws(), Key::tombstone(), None);
    store.set(&ws(), key.clone(), Some(tombstone()));
    assert!(witness.commit(&ws(), Batch::default()).await == Ok(Commit::Shredded));
    let read = witness.read(&ws(), &[key.clone(), Key::tombstone()]).await.unwrap();
    assert!(read[0].is_none() && read[1].is_some());
    assert!(witness.keys(&ws(), "", 9).await.unwrap().is_empty());
    let told: Vec<_> = witness.take_regressions().into_iter().collect();
    assert_eq!(told, [(ws(), Regression::Resurrected)]);

    // The tombstone itself, once it is there again.
    let real = Record { revision: Revision::from_u64(7), bytes: vec![7] };
    store.set(&ws(), Key::tombstone(), Some(real.clone()));
    assert!(witness.read(&ws(), &[Key::tombstone()]).await.unwrap() == [Some(real.clone())]);
    store.set(&ws(), Key::tombstone(), None);
    assert!(witness.read(&ws(), &[Key::tombstone()]).await.unwrap() == [Some(real)]);
}
