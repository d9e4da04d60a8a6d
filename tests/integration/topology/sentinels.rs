//! The engine over sentinels: the behaviour suite, the start.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use workflow_secrets::store::redis::{Password, StartError};

use super::{config, connect, named};
use crate::{
    store_redis_start::{Authority, login, refusal, user},
    store_suite::suite,
    support::{
        redis_server::{Options, RedisServer, until_within},
        sentinels::{MASTER, SentinelOptions, Sentinels},
        store::{get, meta, rec, set},
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_with_sentinels_is_a_store_like_any_other() {
    let primary = RedisServer::start(Options::default()).await;
    let redis = Sentinels::watch(vec![primary], 1, SentinelOptions::default()).await;
    let url = redis.url();
    let store = |name| named(&url, name);
    suite!(together store);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_have_a_user_of_their_own_and_tls() {
    let authority = Authority::new();
    let primary = RedisServer::start(user("s3cret").tls(authority.files("server"))).await;
    let rights = include_str!("../../../deploy/sentinel-rights.acl");
    let rights = rights.lines().find(|line| !line.starts_with('#')).unwrap();
    let options = SentinelOptions {
        lines: vec![format!("user guide on >other {rights}"), "user default off".to_owned()],
        tls: Some(authority.files("server")),
    };
    let redis = Sentinels::watch(vec![primary], 1, options).await;
    let config = |sentinel_password: &str| {
        let mut config = login(config(&redis.url()), "app", "s3cret");
        config.ca = Some(authority.path("ca.pem"));
        config.sentinel_username = Some("guide".to_owned());
        let password = sentinel_password.to_owned();
        config.sentinel_password = Some(Arc::new(move || Ok(Password::new(password.clone()))));
        config
    };
    let denied = StartError::NoMaster("access denied");
    until_within(Duration::from_secs(60), || std::net::TcpStream::connect(redis.hosts()).is_ok())
        .await;
    assert_eq!(refusal(config("s3cret")).await, denied);
    let store = connect(config("other")).await;
    set(&store, "w", meta("A"), rec(1, b"x")).await;
    assert!(get(&store, "w", &meta("A")).await.is_some());
    assert_eq!(store.health().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_sentinel_or_knows_no_such_master_is_told() {
    let primary = RedisServer::start(Options::default()).await;
    let url = format!("redis-sentinel://127.0.0.1:{}/{MASTER}", primary.port());
    let refused = StartError::NoMaster("it is no sentinel");
    assert_eq!(refusal(config(&url)).await, refused);
    let mut redis = Sentinels::watch(vec![primary], 1, SentinelOptions::default()).await;
    let other = redis.url().replace(MASTER, "other");
    let unknown = StartError::NoMaster("a sentinel does not know the master's name");
    assert_eq!(refusal(config(&other)).await, unknown);
    redis.servers[0].kill9();
    assert!(matches!(refusal(config(&redis.url())).await, StartError::Unreachable(_)));
}

/// As if the first sentinel and its master were cut off from the second, which
/// has seen five failovers since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sentinel_that_knows_the_latest_failover_is_believed() {
    let server = || RedisServer::start(Options::default());
    let old = Sentinels::watch(vec![server().await], 1, SentinelOptions::default()).await;
    let lines = vec![format!("sentinel config-epoch {MASTER} 5")];
    let options = SentinelOptions { lines, tls: None };
    let mut new = Sentinels::watch(vec![server().await], 1, options).await;
    let mut stores = vec![];
    for hosts in [[old.hosts(), new.hosts()], [new.hosts(), old.hosts()]] {
        let url = format!("redis-sentinel://{}/{MASTER}", hosts.join(","));
        stores.push(connect(config(&url)).await);
    }
    // Nor is the first believed as soon as the second does not answer.
    new.unwatch();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        for store in &stores {
            set(store, "w", meta("A"), rec(1, b"x")).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(old.servers[0].cli(&["DBSIZE"]), "0");
    assert_ne!(new.servers[0].cli(&["DBSIZE"]), "0");
}
