//! The same on the embedded store, whose steps are not seen from outside: it is
//! killed time and again in the midst of writes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use super::PATIENCE;
use crate::support::{
    platform::{Client, Platform, create, resolve, update, with},
    redis_server::Options,
};

const WS: &str = "ws";
const WRITERS: usize = 4;
const KILLS: u64 = 6;

/// Updates of one secret: the value is its number.
#[derive(Default)]
struct Writer {
    asked: AtomicU64,
    acknowledged: AtomicU64,
}

async fn write(mut client: Client, name: String, writer: Arc<Writer>) {
    loop {
        let number = writer.acknowledged.load(Ordering::SeqCst) + 1;
        writer.asked.store(number, Ordering::SeqCst);
        let request = with(update(WS, &name), |r| {
            r.value = Some(number.to_string());
            r.request_id = format!("{name}-{number}");
        });
        match client.update_secret(request).await {
            // What was carried out before the kill is told again.
            Ok(_) => writer.acknowledged.store(number, Ordering::SeqCst),
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_midst_of_writes_to_the_embedded_store() {
    let platform = Platform::start_with(Options::default()).await;
    let store = format!("embedded:{}", platform.file("store.redb").display());
    let flags = ["--store", &store, "--max-versions", "3"];
    let names: Vec<_> = (0..WRITERS).map(|n| format!("KEY{n}")).collect();
    let writers: Vec<_> = names.iter().map(|_| Arc::new(Writer::default())).collect();
    let mut unknown = 0;
    for round in 0..=KILLS {
        let mut replica = platform.replica_with(&flags).await;
        let mut people = platform.client(&replica, "platform").await;
        let mut reader = platform.client(&replica, "executor").await;
        for (name, writer) in names.iter().zip(&writers) {
            if round == 0 {
                people.create_secret(create(WS, name, "0")).await.unwrap();
                continue;
            }
            let answer = reader.resolve_secrets(resolve(WS, &[name])).await.unwrap().into_inner();
            let secret = &answer.secrets[name];
            let stored: u64 = secret.value.parse().unwrap();
            let [asked, acknowledged] =
                [&writer.asked, &writer.acknowledged].map(|n| n.load(Ordering::SeqCst));
            assert!((acknowledged..=asked).contains(&stored), "{acknowledged} {stored} {asked}");
            unknown += asked - acknowledged;
            // Metadata, value, versions and trail are of one state.
            assert_eq!(secret.version, stored + 1);
            let first = stored.saturating_sub(3);
            for version in first..stored {
                let pin = format!("{name}@{}", version + 1);
                let answer = reader.resolve_secrets(resolve(WS, &[&pin])).await.unwrap();
                assert_eq!(answer.into_inner().secrets[name].value, version.to_string());
            }
            let request = workflow_secrets::grpc::proto::ListAuditEventsRequest {
                workspace: WS.to_owned(),
                name: name.clone(),
                page_size: 1,
                ..Default::default()
            };
            let trail = people.list_audit_events(request).await.unwrap().into_inner();
            assert_eq!(trail.events[0].version, stored + 1);
        }
        if round == KILLS {
            break;
        }
        let mut writing = JoinSet::new();
        let before: u64 = writers.iter().map(|w| w.acknowledged.load(Ordering::SeqCst)).sum();
        for (name, writer) in names.iter().zip(&writers) {
            writing.spawn(write(people.clone(), name.clone(), Arc::clone(writer)));
        }
        // A different moment each time, in the midst of a commit or between two.
        let enough = before + 5 + 3 * round;
        let written = async {
            while writers.iter().map(|w| w.acknowledged.load(Ordering::SeqCst)).sum::<u64>()
                < enough
            {
                tokio::time::sleep(Duration::from_micros(700)).await;
            }
        };
        tokio::time::timeout(PATIENCE, written).await.expect("writes");
        replica.kill9();
        while let Some(done) = writing.join_next().await {
            done.unwrap();
        }
    }
    assert!(unknown > 0, "no write was under way");
}
