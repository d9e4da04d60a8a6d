//! Several replicas on one store.

use super::support::platform::{Platform, create, resolve, update, value};

#[tokio::test]
async fn a_resolve_after_an_acknowledged_update_sees_it_on_every_replica() {
    let platform = Platform::start().await;
    let (one, two) = (platform.replica().await, platform.replica().await);
    let mut writer = platform.client(&one, "platform").await;
    let mut readers =
        [platform.client(&one, "executor").await, platform.client(&two, "executor").await];
    writer.create_secret(create("ws", "KEY", "value-0")).await.unwrap();
    for round in 1..=50 {
        let mut change = update("ws", "KEY");
        change.value = Some(format!("value-{round}"));
        writer.update_secret(change).await.unwrap();
        for reader in &mut readers {
            let answer = reader.resolve_secrets(resolve("ws", &["KEY=k"])).await.unwrap();
            let answer = answer.into_inner();
            assert_eq!(value(&answer, "k"), format!("value-{round}"));
            assert_eq!(answer.secrets["k"].version, round + 1);
        }
    }
}
