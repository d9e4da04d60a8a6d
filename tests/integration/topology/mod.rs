//! Redis with sentinels and as a cluster: failovers, moves of slots, and what is
//! then promised.

mod cluster;
mod failover;
mod listing;
mod moving;
mod sentinels;
mod through_the_service;

use std::{sync::Arc, time::Duration};

use workflow_secrets::store::redis::{KeyPrefix, RedisConfig, RedisStore, RedisUrl};

use crate::support::store::S;

/// Promised after another is master.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

fn config(url: &str) -> RedisConfig {
    RedisConfig::new(RedisUrl::parse(url).unwrap())
}

async fn connect(config: RedisConfig) -> S {
    Arc::new(RedisStore::connect(config).await.unwrap())
}

/// A store whose writes so many replicas confirm.
async fn confirmed_by(min_replicas: u32, url: &str) -> S {
    let mut config = config(url);
    config.min_replicas = min_replicas;
    connect(config).await
}

/// A store that sees only what is under this name.
async fn named(url: &str, name: &str) -> S {
    let mut config = config(url);
    config.prefix = KeyPrefix::parse(name).unwrap();
    connect(config).await
}

/// Waits until a store answers a read of this workspace.
async fn until_read(store: &S, workspace: &str) {
    use crate::support::store::{meta, ws};
    let start = std::time::Instant::now();
    while store.read(&ws(workspace), &[meta("A")]).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "{workspace} is not served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
