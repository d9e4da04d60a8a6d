//! Data keys that are rotated by themselves.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use workflow_secrets::{
    domain::DataKeyId,
    kms::KmsError,
    service::{Limits, Rotation, Secrets, audit::AuditSink},
    store::Key,
};

use super::{DAY, Rig, create, engines, read, update, ws};
use crate::support::service;

/// What was written so far.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn rotations(&self) -> usize {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("\"rotate_data_key\"")).count()
    }
}

fn replica(rig: &Rig, rotation: Rotation) -> (Arc<Secrets>, Lines) {
    let lines = Lines::default();
    let sink = AuditSink::Writer(Box::new(lines.clone()));
    let parts = (rig.store.clone(), rig.kms.clone(), rig.clock.clone());
    let limits = Limits { rotation, ..Limits::default() };
    (Arc::new(service::secrets_within(parts.0, parts.1, parts.2, sink, limits)), lines)
}

/// Lets what runs in the background end.
async fn settled(secrets: &Arc<Secrets>) {
    let start = std::time::Instant::now();
    while !secrets.changes.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn ids(rig: &Rig) -> Vec<DataKeyId> {
    rig.keys().await.keys.iter().map(|key| key.wrapped.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_key_is_replaced_once_at_the_next_change() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        let rotation = Rotation { age: Some(365 * DAY), changes: None };
        let (secrets, lines) = replica(&rig, rotation);
        create(&secrets, "KEY", "first").await.unwrap();
        rig.clock.advance(365 * DAY - Duration::from_nanos(1));
        update(&secrets, "KEY", "second").await.unwrap();
        settled(&secrets).await;
        assert_eq!(ids(&rig).await.len(), 1);

        // Many find it due at once.
        rig.clock.advance(Duration::from_nanos(1));
        let names: Vec<_> = (0..20).map(|number| format!("N{number}")).collect();
        let writes = names.iter().map(|name| create(&secrets, name, "value"));
        for written in futures_util::future::join_all(writes).await {
            written.unwrap();
        }
        settled(&secrets).await;
        assert_eq!((ids(&rig).await.len(), lines.rotations()), (2, 1));
        update(&secrets, "KEY", "third").await.unwrap();
        settled(&secrets).await;
        assert_eq!((ids(&rig).await.len(), lines.rotations()), (2, 1));
        for (version, value) in [(1, "first"), (2, "second"), (3, "third")] {
            assert_eq!(read(&secrets, "KEY", Some(version)).await.as_deref(), Ok(value));
        }
        // Without the setting, never.
        let (secrets, _) = replica(&rig, Rotation::default());
        rig.clock.advance(10_000 * DAY);
        update(&secrets, "KEY", "fourth").await.unwrap();
        settled(&secrets).await;
        assert_eq!(ids(&rig).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_replaced_after_many_changes() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        let (secrets, lines) = replica(&rig, Rotation { age: None, changes: Some(30) });
        create(&secrets, "KEY", "value").await.unwrap();
        let mut rotated_at = Vec::new();
        for change in 1..100 {
            update(&secrets, "KEY", &format!("value-{change}")).await.unwrap();
            settled(&secrets).await;
            if lines.rotations() > rotated_at.len() {
                rotated_at.push(change);
            }
        }
        let [first, second, third] = rotated_at.as_slice() else { panic!("{rotated_at:?}") };
        // Both the counting and the rotation are changes too.
        assert!((28..=32).contains(first), "{rotated_at:?}");
        assert!((28..=31).contains(&(second - first)), "{rotated_at:?}");
        assert!((28..=31).contains(&(third - second)), "{rotated_at:?}");
        assert_eq!(ids(&rig).await.len(), 4);
        assert_eq!(read(&secrets, "KEY", None).await.as_deref(), Ok("value-99"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_fails_holds_no_change_up() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        let (secrets, lines) = replica(&rig, Rotation { age: Some(DAY), changes: None });
        create(&secrets, "KEY", "value").await.unwrap();
        rig.clock.advance(DAY - Duration::from_secs(60));
        update(&secrets, "KEY", "value-1").await.unwrap();
        rig.clock.advance(Duration::from_secs(120));
        rig.kms.fail(Some(KmsError::Transient("down")));
        let before = rig.store.read(&ws(), &[Key::active_data_key()]).await.unwrap();
        for number in 2..5 {
            update(&secrets, "KEY", &format!("value-{number}")).await.unwrap();
            settled(&secrets).await;
        }
        assert!(rig.store.read(&ws(), &[Key::active_data_key()]).await.unwrap() == before);
        rig.kms.fail(None);
        rig.clock.advance(Duration::from_secs(3));
        update(&secrets, "KEY", "value-5").await.unwrap();
        settled(&secrets).await;
        assert_eq!((ids(&rig).await.len(), lines.rotations()), (2, 1));
        assert_eq!(read(&secrets, "KEY", Some(2)).await.as_deref(), Ok("value-1"));
    }
}
