//! A Redis with replicas and sentinels that watch over them, all real processes
//! of the test's own, ended by their pids.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use tempfile::TempDir;

use super::{
    platform::free_address,
    redis_server::{Options, RedisServer, TlsFiles, cli, until_within},
};

/// The name under which sentinels know the master.
pub(crate) const MASTER: &str = "mymaster";

/// How sentinels are started. By default: no TLS, no password.
#[derive(Clone, Default)]
pub(crate) struct SentinelOptions {
    pub(crate) lines: Vec<String>,
    pub(crate) tls: Option<TlsFiles>,
}

pub(crate) struct Sentinels {
    /// The first primary, then its replicas.
    pub(crate) servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
    tls: bool,
}

struct Sentinel {
    port: u16,
    child: Child,
    _directory: TempDir,
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sentinels {
    /// A primary, two replicas and three sentinels, who know each other.
    pub(crate) async fn start() -> Self {
        let primary = RedisServer::start(Options::default()).await;
        let replica = || RedisServer::start(Options::default().replica_of(&primary));
        let replicas = join_all([replica(), replica()]).await;
        let servers: Vec<_> = [primary].into_iter().chain(replicas).collect();
        let linked = |server: &RedisServer| {
            server.cli(&["INFO", "replication"]).contains("master_link_status:up")
        };
        until_within(MINUTE, || servers[1..].iter().all(linked)).await;
        Self::watch(servers, 3, SentinelOptions::default()).await
    }

    /// Sentinels over these servers, the first of which is the primary.
    pub(crate) async fn watch(
        servers: Vec<RedisServer>,
        count: usize,
        options: SentinelOptions,
    ) -> Self {
        let primary = servers[0].port();
        let quorum = count / 2 + 1;
        let sentinels: Vec<_> =
            (0..count).map(|_| Sentinel::launch(primary, quorum, &options)).collect();
        let sentinels = Self { servers, sentinels, tls: options.tls.is_some() };
        // Over TLS they tell it to their user only.
        if !sentinels.tls {
            until_within(MINUTE, || sentinels.complete()).await;
        }
        sentinels
    }

    /// Whether each sentinel knows all others and all replicas.
    fn complete(&self) -> bool {
        let others = format!("num-other-sentinels\n{}", self.sentinels.len() - 1);
        let replicas = format!("num-slaves\n{}", self.servers.len() - 1);
        self.sentinels.iter().all(|sentinel| {
            let state = cli(&Options::default(), sentinel.port, &["SENTINEL", "MASTER", MASTER]);
            state.contains(&others) && state.contains(&replicas)
        })
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "rediss-sentinel" } else { "redis-sentinel" };
        format!("{scheme}://{}/{MASTER}", self.hosts())
    }

    /// The sentinels, as a URL lists them.
    pub(crate) fn hosts(&self) -> String {
        let hosts: Vec<_> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        hosts.join(",")
    }

    /// Ends the sentinels.
    pub(crate) fn unwatch(&mut self) {
        self.sentinels.clear();
    }

    /// Waits until another than this server is master. (It is not asked: it may
    /// hang.) Returns which.
    pub(crate) async fn promoted(&self, other_than: usize) -> usize {
        let master = || {
            (0..self.servers.len()).find(|server| {
                *server != other_than && self.servers[*server].cli(&["ROLE"]).starts_with("master")
            })
        };
        until_within(MINUTE, || master().is_some()).await;
        master().unwrap()
    }

    /// Which server the sentinels call master.
    pub(crate) fn master(&self) -> usize {
        let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER];
        let told = cli(&Options::default(), self.sentinels[0].port, &ask);
        let port: u16 = told.lines().nth(1).unwrap().parse().unwrap();
        self.servers.iter().position(|server| server.port() == port).unwrap()
    }
}

const MINUTE: Duration = Duration::from_secs(60);

impl Sentinel {
    fn launch(primary: u16, quorum: usize, options: &SentinelOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_address().port();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let mut config = match &options.tls {
            None => format!("port {port}\n"),
            Some(files) => format!(
                "port 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients optional\n\
                 tls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\n",
                path(&files.ca),
                path(&files.certificate),
                path(&files.key),
            ),
        };
        write!(
            config,
            "bind 127.0.0.1\ndir {}\n\
             sentinel monitor {MASTER} 127.0.0.1 {primary} {quorum}\n\
             sentinel down-after-milliseconds {MASTER} 1000\n\
             sentinel failover-timeout {MASTER} 5000\n",
            directory.path().display()
        )
        .unwrap();
        for line in &options.lines {
            writeln!(config, "{line}").unwrap();
        }
        let file = directory.path().join("sentinel.conf");
        fs::write(&file, config).unwrap();
        let child = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { port, child, _directory: directory }
    }
}
