//! A store that has gone back is counted, once a workspace.

use std::time::{Duration, Instant};

use super::http::{scrape, watched};
use crate::support::{
    platform::{Platform, create, resolve, update, with},
    redis_server::Options,
};

#[tokio::test]
async fn a_store_that_has_gone_back_is_counted_once_a_workspace() {
    const NAME: &str = "workflow_secrets_store_regressions_total";
    let mut platform = Platform::start_with(Options::default()).await;
    let (replica, admin) = watched(&platform, &[], &[]).await;
    let counted = async || {
        let shown = scrape(admin).await;
        let of = |kind| shown[NAME].samples[&format!("{NAME}{{kind=\"{kind}\"}}")];
        (of("older"), of("shredded_data_back"))
    };
    let mut writer = platform.client(&replica, "platform").await;
    let mut reader = platform.client(&replica, "executor").await;
    for workspace in ["one", "other"] {
        writer.create_secret(create(workspace, "KEY", "old")).await.unwrap();
    }
    let snapshot = platform.redis.snapshot();
    for workspace in ["one", "other"] {
        let new = with(update(workspace, "KEY"), |r| r.value = Some("new".into()));
        writer.update_secret(new).await.unwrap();
    }
    assert_eq!(counted().await, (0.0, 0.0));
    platform.redis.restore(&snapshot).await;

    let start = Instant::now();
    while counted().await != (2.0, 0.0) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", counted().await);
        for workspace in ["one", "other"] {
            let _ = reader.resolve_secrets(resolve(workspace, &["KEY"])).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for workspace in ["one", "other"] {
        reader.resolve_secrets(resolve(workspace, &["KEY"])).await.unwrap();
    }
    // Looked at again every 2 s.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(counted().await, (2.0, 0.0));
}
