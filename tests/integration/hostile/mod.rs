//! Hostile clients against the very program: each is refused or cut off, takes
//! little memory, and harms no other client.

mod arrival;
mod frames;
mod messages;

use std::{fs, sync::Arc, time::Duration};

use rustls::ClientConfig;
use tonic::transport::Channel;

use crate::support::{
    http2::Http2,
    pki,
    platform::{Platform, Replica, create},
    redis_server::Options,
    witness::Witnesses,
};

const RESOLVE: &str = "/workflowsecrets.v1.SecretsService/ResolveSecrets";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// What an attack may add to the memory of the process.
const MEMORY: usize = 64 * 1024 * 1024;

/// Within this, whatever is to be cut is cut: the longest time that the server
/// gives, and the rest for a busy machine.
const CUT: Duration = Duration::from_secs(40);

/// A replica, and others whom it serves all along.
struct Siege {
    platform: Platform,
    replica: Replica,
    others: Witnesses,
}

impl Siege {
    async fn start() -> Self {
        let platform = Platform::start_with(Options::default()).await;
        // Whoever uses up the processor makes Redis look slow.
        // The allocator's settings are those of the manifests in deploy/.
        let variables = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "131072")];
        let replica = platform.launch_in(&variables, &["--redis-timeout", "5s"]);
        replica.ready(&platform).await;
        let mut writer = platform.client(&replica, "platform").await;
        writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
        let executor = pki::client_config(&platform.ca, Some(&platform.identity("executor")));
        let others = Witnesses::start(replica.address, &executor).await;
        Self { platform, replica, others }
    }

    /// A TLS client, as one of the callers or as nobody.
    fn config(&self, caller: Option<&str>) -> Arc<ClientConfig> {
        let identity = caller.map(|caller| self.platform.identity(caller));
        pki::client_config(&self.platform.ca, identity.as_ref())
    }

    /// A connection on which HTTP/2 has begun.
    async fn http2(&self, caller: Option<&str>, settings: &[(u16, u32)]) -> Http2 {
        Http2::open(self.replica.address, &self.config(caller), settings).await.unwrap()
    }

    async fn channel(&self, caller: Option<&str>) -> Channel {
        pki::channel(self.replica.address, self.config(caller)).await.unwrap()
    }

    /// Bytes, by their name in /proc/PID/status.
    fn memory(&self, name: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.replica.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let kib = line.trim_matches(|c: char| !c.is_ascii_digit());
        kib.parse::<usize>().unwrap() * 1024
    }

    /// Under an attack, memory stays bounded, and others are served after it as
    /// before.
    async fn under<T>(&self, what: &str, attack: impl Future<Output = T>) -> T {
        let before = self.memory("VmRSS");
        let outcome = attack.await;
        let grown = self.memory("VmHWM").saturating_sub(before);
        assert!(grown < MEMORY, "{what}: memory grew by {} KiB", grown / 1024);
        self.others.until_served(3).await;
        outcome
    }

    /// No call was lost.
    async fn end(self) {
        self.others.end().await;
    }
}
