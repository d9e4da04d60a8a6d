//! What is counted when calls are refused, audit lines fail and data keys grow
//! old.

use std::{io::pipe, net::SocketAddr, time::Duration};

use tonic::Code;
use workflow_secrets::grpc::proto::secrets_service_client::SecretsServiceClient;

use super::http::{scrape, watched};
use crate::support::{
    platform::{
        Platform, assert_refused, assert_unavailable, create, free_address, list, reason, resolve,
    },
    redis_server::Options,
};

/// One number at `/metrics`.
async fn number(admin: SocketAddr, family: &str, sample: &str) -> f64 {
    let shown = scrape(admin).await;
    let samples = &shown[family].samples;
    *samples.get(sample).unwrap_or_else(|| panic!("no {sample} in {samples:?}"))
}

#[tokio::test]
async fn calls_that_are_shed_are_counted_by_their_reason() {
    let platform = Platform::start_with(Options::default()).await;
    let (replica, admin) = watched(&platform, &[], &["--max-caller-calls-per-second", "1"]).await;
    let family = "workflow_secrets_calls_shed_total";
    let shed = async |reason: &str| {
        number(admin, family, &format!("{family}{{reason=\"{reason}\"}}")).await
    };
    let reasons = ["OVERLOADED", "RATE_LIMITED", "TIMEOUT", "UNAUTHENTICATED"];
    for reason in reasons {
        assert_eq!(shed(reason).await, 0.0, "{reason}");
    }
    let mut nobody = SecretsServiceClient::new(platform.channel(&replica, None).await);
    for _ in 0..3 {
        let answer = nobody.list_secrets(list("ws")).await;
        assert_refused(answer, Code::Unauthenticated, "UNAUTHENTICATED");
    }
    let mut writer = platform.client(&replica, "platform").await;
    let mut limited = 0_u32;
    // 10 pass at once, and one a second.
    for _ in 0..100 {
        match writer.list_secrets(list("ws")).await {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(reason(&status).1, "RATE_LIMITED");
                limited += 1;
            }
        }
        if limited == 2 {
            break;
        }
    }
    assert_eq!(limited, 2);
    for (reason, expected) in reasons.into_iter().zip([0.0, 2.0, 0.0, 3.0]) {
        assert_eq!(shed(reason).await, expected, "{reason}");
    }
}

#[tokio::test]
async fn audit_lines_that_cannot_be_written_are_counted() {
    let platform = Platform::start_with(Options::default()).await;
    let (reader, stdout) = pipe().unwrap();
    let admin = free_address();
    let flags = ["--admin-listen", &admin.to_string()];
    let replica = platform.replica_to_with(stdout, &flags).await;
    let mut writer = platform.client(&replica, "platform").await;
    let family = "workflow_secrets_audit_failures_total";
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    assert_eq!(number(admin, family, family).await, 0.0);
    drop(reader);
    let mut executor = platform.client(&replica, "executor").await;
    for failures in [1.0, 2.0, 3.0] {
        let answer = executor.resolve_secrets(resolve("ws", &["KEY"])).await;
        assert_unavailable(answer, "AUDIT_UNAVAILABLE");
        assert_eq!(number(admin, family, family).await, failures);
    }
}

#[tokio::test]
async fn the_age_of_a_data_key_is_told_when_it_is_unwrapped() {
    let platform = Platform::start_with(Options::default()).await;
    let (first, admin) = watched(&platform, &[], &[]).await;
    let family = "workflow_secrets_data_key_age_seconds";
    let age = async |admin| {
        let sample = |end: &str| format!("{family}_{end}");
        let count = number(admin, family, &sample("count")).await;
        (count, number(admin, family, &sample("sum")).await)
    };
    let start = std::time::Instant::now();
    let mut writer = platform.client(&first, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    let (count, new) = age(admin).await;
    let made_within = start.elapsed().as_secs_f64();
    assert!(count == 1.0 && new <= made_within, "{count} {new}");

    tokio::time::sleep(Duration::from_secs(2)).await;
    let (second, admin) = watched(&platform, &[], &[]).await;
    let mut executor = platform.client(&second, "executor").await;
    for _ in 0..3 {
        executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
    }
    // Once, and from memory then.
    let (count, old) = age(admin).await;
    let longest = start.elapsed().as_secs_f64();
    assert!(count == 1.0 && (2.0..=longest).contains(&old), "{count} {old}");
}
