//! What becomes of secrets over time, on both stores; two replicas where the
//! store can be shared.

mod deletion;
mod expiry;
mod trail;
mod versions;

use workflow_secrets::grpc::proto;

use super::support::{
    platform::{Client, Platform, Replica, update, with},
    raw_redis::RawRedis,
};

const WS: &str = "ws";

/// Replicas on one of the stores.
struct Stage {
    platform: Platform,
    replicas: Vec<Replica>,
    redis: bool,
    dir: tempfile::TempDir,
}

impl Stage {
    /// Two replicas on one Redis; one on an embedded file.
    async fn both(flags: &[&str]) -> [Self; 2] {
        [Self::set(true, flags).await, Self::set(false, flags).await]
    }

    async fn set(redis: bool, flags: &[&str]) -> Self {
        let (platform, dir) = (Platform::start().await, tempfile::tempdir().unwrap());
        let mut stage = Self { platform, replicas: vec![], redis, dir };
        for _ in 0..if redis { 2 } else { 1 } {
            stage.add(flags).await;
        }
        stage
    }

    /// One more replica.
    async fn add(&mut self, flags: &[&str]) {
        let file = format!("embedded:{}", self.dir.path().join("store.redb").display());
        let store: &[&str] = if self.redis { &[] } else { &["--store", &file] };
        let replica = self.platform.replica_with(&[store, flags].concat()).await;
        self.replicas.push(replica);
    }

    /// Ends all replicas, as a crash would, and starts as many with other flags.
    async fn restart(&mut self, flags: &[&str]) {
        let count = self.replicas.len();
        self.replicas.clear();
        for _ in 0..count {
            self.add(flags).await;
        }
    }

    /// A client of each replica.
    async fn clients(&self, caller: &str) -> Vec<Client> {
        let mut clients = vec![];
        for replica in &self.replicas {
            clients.push(self.platform.client(replica, caller).await);
        }
        clients
    }

    /// A client of the last replica, which is another one where there are two.
    async fn client(&self, caller: &str) -> Client {
        self.platform.client(self.replicas.last().unwrap(), caller).await
    }

    /// Keys of a workspace's records, where they can be looked at.
    fn keys(&self, kind: &str) -> Option<Vec<String>> {
        let mut raw = self.redis.then(|| RawRedis::connect(&self.platform.redis))?;
        let keys = raw.records(WS).into_keys();
        Some(keys.filter(|key| key.starts_with(kind)).collect())
    }
}

fn new_value(name: &str, text: &str) -> proto::UpdateSecretRequest {
    with(update(WS, name), |r| r.value = Some(text.to_owned()))
}
