//! What is there to be broken: the replicas, their Redis and the wire to it,
//! and the KMS.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    process::Lives,
    proxy::Proxy,
    site::{CALLERS, REPLICAS, Site},
    support::{
        platform::{Platform, Replica, free_address, spiffe_id},
        redis_server::Options,
    },
};

/// How long a replica may take to end when it is asked to: its grace period,
/// and a margin.
const END: Duration = Duration::from_secs(40);

pub(crate) struct Rig {
    pub(crate) platform: Platform,
    pub(crate) wire: Proxy,
    pub(crate) site: Arc<Site>,
    pub(crate) lives: Arc<Lives>,
    replicas: Vec<Option<Replica>>,
    dir: TempDir,
    /// What went wrong with processes, and what their logs tell.
    pub(crate) findings: Vec<String>,
}

impl Rig {
    /// Two replicas, ready, on a Redis that syncs each write.
    pub(crate) async fn start() -> Self {
        let platform = Platform::start_with(Options::default().durable()).await;
        let wire = Proxy::start(platform.redis.port()).await;
        let addresses = std::array::from_fn(|_| free_address());
        let site = Arc::new(Site::new(addresses, &platform.ca));
        let mut rig = Self {
            platform,
            wire,
            site,
            lives: Arc::default(),
            replicas: (0..REPLICAS).map(|_| None).collect(),
            dir: tempfile::tempdir().unwrap(),
            findings: Vec::new(),
        };
        rig.write_policy(&policy());
        for replica in 0..REPLICAS {
            rig.launch(replica);
        }
        for replica in rig.replicas.iter().flatten() {
            replica.ready(&rig.platform).await;
        }
        rig
    }

    /// The audit files of all replicas; each outlives its processes.
    pub(crate) fn audit_files(&self) -> Vec<PathBuf> {
        (0..REPLICAS).map(|replica| self.audit_file(replica)).collect()
    }

    fn audit_file(&self, replica: usize) -> PathBuf {
        self.dir.path().join(format!("audit-{replica}.jsonl"))
    }

    /// A process in the place of one that has ended, or that never was.
    pub(crate) fn launch(&mut self, replica: usize) {
        let audit = self.audit_file(replica);
        let store = format!("redis://{}", self.wire.address());
        let flags = [("--audit", audit.to_str().unwrap()), ("--store", store.as_str())];
        let flags: Vec<_> = flags.into_iter().flat_map(|(flag, value)| [flag, value]).collect();
        let address: SocketAddr = self.site.addresses[replica];
        let launched = self.platform.launch_at(address, &[], &flags);
        self.lives.begins(replica, launched.pid());
        self.replicas[replica] = Some(launched);
    }

    pub(crate) fn replica(&self, replica: usize) -> &Replica {
        self.replicas[replica].as_ref().unwrap()
    }

    pub(crate) fn kill9(&mut self, replica: usize) {
        self.replicas[replica].as_mut().unwrap().kill9();
        self.bury(replica);
    }

    /// SIGTERM, and waits for the end, which has to be a good one.
    pub(crate) async fn terminate(&mut self, replica: usize) {
        let ending = self.replicas[replica].as_mut().unwrap();
        ending.terminate();
        let status = ending.ended(END).await;
        if !status.success() {
            self.findings.push(format!("replica {replica} ended with {status} on SIGTERM"));
        }
        self.bury(replica);
    }

    /// Whoever has ended by itself is started again, as an orchestrator does. A
    /// replica may do so only while it starts and the store is away.
    pub(crate) fn tend(&mut self) {
        for number in 0..REPLICAS {
            let ended = self.replicas[number].as_mut().and_then(Replica::exited);
            if let Some(status) = ended {
                // 69: the store cannot be reached at start.
                if status.code() != Some(69) {
                    let log = self.replica(number).stderr();
                    let end: Vec<_> = log.lines().rev().take(3).collect();
                    self.findings.push(format!("replica {number} ended with {status}: {end:?}"));
                }
                self.bury(number);
                self.launch(number);
            }
        }
    }

    fn bury(&mut self, replica: usize) {
        let ended = self.replicas[replica].take().unwrap();
        self.lives.ends(ended.pid());
        self.read_log(&ended);
    }

    fn read_log(&mut self, replica: &Replica) {
        let log = replica.stderr();
        let panics = log.lines().filter(|line| line.contains("panicked"));
        self.findings.extend(panics.take(5).map(str::to_owned));
    }

    /// What the logs of those that live tell.
    pub(crate) fn read_logs(&mut self) {
        for replica in 0..REPLICAS {
            if let Some(living) = self.replicas[replica].take() {
                self.read_log(&living);
                self.replicas[replica] = Some(living);
            }
        }
    }

    /// In one step, so that nobody reads half of it.
    pub(crate) fn write_policy(&self, text: &str) {
        replace(&self.platform.file("policy.toml"), text);
    }

    /// The server's certificate and key, each in one step. Between the two they
    /// do not fit.
    pub(crate) fn new_certificates(&self) {
        let server = self.platform.ca.server();
        crate::support::pki::write_key(&self.platform.file("tls.key.new"), &server.key);
        fs::rename(self.platform.file("tls.key.new"), self.platform.file("tls.key")).unwrap();
        replace(&self.platform.file("tls.crt"), &server.cert);
        self.site.new_certificates(&self.platform.ca);
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// One role for each caller.
pub(crate) fn policy() -> String {
    let grant = |caller: &&str| {
        let (role, more) = match *caller {
            "sheets" => ("integration", "integrations = [\"google_sheets\"]\n"),
            "flooder" => ("executor", ""),
            role => (role, ""),
        };
        let caller = spiffe_id(caller);
        format!("[[grant]]\ncaller = \"{caller}\"\nrole = \"{role}\"\n{more}workspaces = [\"*\"]\n")
    };
    CALLERS.iter().map(grant).collect()
}
