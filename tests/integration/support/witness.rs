//! Well-behaved clients, who must not notice what befalls a replica.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use workflow_secrets::grpc::proto::secrets_service_client::SecretsServiceClient;

use super::{
    pki,
    platform::{resolve, value},
};

/// Far longer than a call takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Two who call Resolve all along: one on one connection, and one who opens a
/// new one for each call.
pub(crate) struct Witnesses {
    over: CancellationToken,
    each: [Witness; 2],
}

struct Witness {
    calls: Arc<AtomicUsize>,
    task: JoinHandle<Result<(), String>>,
}

impl Witnesses {
    /// They expect `value` behind `KEY` in the workspace `ws`.
    pub(crate) async fn start(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let over = CancellationToken::new();
        let each = [true, false].map(|lasting| {
            let (calls, over) = (Arc::<AtomicUsize>::default(), over.clone());
            let (config, made) = (Arc::clone(config), Arc::clone(&calls));
            let task = tokio::spawn(async move {
                let mut channel = connect(address, &config).await?;
                while !over.is_cancelled() {
                    if !lasting {
                        channel = connect(address, &config).await?;
                    }
                    call(channel.clone()).await?;
                    made.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(())
            });
            Witness { calls, task }
        });
        let witnesses = Self { over, each };
        witnesses.until_served(10).await;
        witnesses
    }

    /// Until both have made so many more calls, or have failed.
    pub(crate) async fn until_served(&self, more: usize) {
        let made = || self.each.each_ref().map(|one| one.calls.load(Ordering::Relaxed));
        let before = made();
        let served = async {
            while made().iter().zip(before).any(|(now, before)| *now < before + more) {
                if self.each.iter().any(|one| one.task.is_finished()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(2 * PATIENCE, served).await.expect("not served");
    }

    /// Asserts that no call was lost.
    pub(crate) async fn end(self) {
        self.over.cancel();
        for one in self.each {
            assert_eq!(timeout(2 * PATIENCE, one.task).await.unwrap().unwrap(), Ok(()));
        }
    }
}

async fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Result<Channel, String> {
    let channel = timeout(PATIENCE, pki::channel(address, Arc::clone(config))).await;
    channel.map_err(|_| "no connection in time")?.map_err(|error| format!("{error:?}"))
}

async fn call(channel: Channel) -> Result<(), String> {
    let mut client = SecretsServiceClient::new(channel);
    let answer = timeout(PATIENCE, client.resolve_secrets(resolve("ws", &["KEY"]))).await;
    let answer = answer.map_err(|_| "no answer in time")?.map_err(|error| format!("{error:?}"))?;
    assert_eq!(value(answer.get_ref(), "KEY"), "value");
    Ok(())
}
