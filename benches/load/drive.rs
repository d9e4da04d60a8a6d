//! Callers that ask again as soon as they have an answer.

use std::time::{Duration, Instant};

use tonic::transport::Channel;
use workflow_secrets::grpc::proto::{
    ResolveSecretsRequest, secrets_service_client::SecretsServiceClient,
};

use crate::{
    process::Server,
    support::{
        pki::{self, Identity},
        platform::{self, Client, Platform},
    },
};

/// What a turn came to.
#[derive(Clone)]
pub(crate) struct Turn {
    pub(crate) seconds: f64,
    /// Of each call, in microseconds, in order of size.
    pub(crate) latencies: Vec<u32>,
    pub(crate) cpu_micros: f64,
    pub(crate) allocations: u64,
}

impl Turn {
    pub(crate) fn calls(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// So many of a thousand calls took at most this, in microseconds.
    pub(crate) fn permille(&self, share: usize) -> f64 {
        let last = self.latencies.len() - 1;
        f64::from(self.latencies[(self.latencies.len() * share / 1000).min(last)])
    }

    /// Several turns as one.
    pub(crate) fn sum(turns: &[Self]) -> Self {
        let mut latencies: Vec<_> =
            turns.iter().flat_map(|turn| &turn.latencies).copied().collect();
        latencies.sort_unstable();
        Self {
            seconds: turns.iter().map(|turn| turn.seconds).sum(),
            latencies,
            cpu_micros: turns.iter().map(|turn| turn.cpu_micros).sum(),
            allocations: turns.iter().map(|turn| turn.allocations).sum(),
        }
    }
}

/// A client with a connection of its own, as a caller of the platform.
pub(crate) async fn client(platform: &Platform, server: &Server, caller: &str) -> Client {
    let read =
        |end: &str| std::fs::read_to_string(platform.file(&format!("{caller}.{end}"))).unwrap();
    let identity = Identity { cert: read("crt"), key: read("key") };
    let config = pki::client_config(&platform.ca, Some(&identity));
    for _ in 0..400 {
        if let Ok(channel) = pki::channel(server.address, config.clone()).await {
            return SecretsServiceClient::<Channel>::new(channel)
                .max_decoding_message_size(16 * 1024 * 1024);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the server does not start");
}

/// `KEY_0` to `KEY_9` of a workspace.
pub(crate) fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("KEY_{number}")).collect()
}

pub(crate) fn request(workspace: &str, names: &[String]) -> ResolveSecretsRequest {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut request = platform::resolve(workspace, &names);
    request.workflow_id = "4c0ff3a0-7c3e-4000-8000-000000000000".to_owned();
    request
}

/// `at_once` callers resolve for a while. The request of a call is made from its number.
pub(crate) async fn resolve(
    server: &mut Server,
    clients: &[Client],
    at_once: usize,
    during: Duration,
    request: impl Fn(usize) -> ResolveSecretsRequest + Clone + Send + 'static,
) -> Turn {
    let before = server.used();
    let start = Instant::now();
    let callers: Vec<_> = (0..at_once)
        .map(|caller| {
            let (mut client, request) = (clients[caller % clients.len()].clone(), request.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                for call in 0.. {
                    let sent = Instant::now();
                    if sent - start > during {
                        break;
                    }
                    client.resolve_secrets(request(caller + call * at_once)).await.unwrap();
                    latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for caller in callers {
        latencies.extend(caller.await.unwrap());
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = server.used();
    latencies.sort_unstable();
    Turn {
        seconds,
        latencies,
        cpu_micros: after.cpu_micros - before.cpu_micros,
        allocations: after.allocations - before.allocations,
    }
}
