//! A real redis-server of the test's own, on a free loopback port, with its
//! data in a directory of its own. Ended, by its pid, when dropped.

use std::{
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tempfile::TempDir;

use super::program;

/// How to start it. By default: no snapshots, no append-only file, no TLS, no
/// password.
#[derive(Clone, Default)]
pub(crate) struct Options {
    directives: Vec<(String, Vec<String>)>,
    tls: Option<TlsFiles>,
}

/// PEM files for TLS; clients may but need not show a certificate.
#[derive(Clone)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Options {
    /// One line of redis.conf.
    pub(crate) fn set(mut self, name: &str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        self.directives.push((name.to_owned(), arguments));
        self
    }

    /// An append-only file, on disk before each answer.
    pub(crate) fn durable(self) -> Self {
        self.set("appendonly", &["yes"]).set("appendfsync", &["always"])
    }

    /// A memory limit and what to do when it is reached.
    pub(crate) fn memory(self, limit: &str, policy: &str) -> Self {
        self.set("maxmemory", &[limit]).set("maxmemory-policy", &[policy])
    }

    /// An ACL user, by its rules (`>password ~keys +commands`).
    pub(crate) fn user(self, name: &str, rules: &[&str]) -> Self {
        self.set("user", &[&[name, "on"], rules].concat())
    }

    /// A replica of another server.
    pub(crate) fn replica_of(self, primary: &RedisServer) -> Self {
        self.set("replicaof", &["127.0.0.1", &primary.port.to_string()])
    }

    /// TLS instead of plain TCP.
    pub(crate) fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }
}

/// The running server.
pub(crate) struct RedisServer {
    options: Options,
    port: u16,
    directory: TempDir,
    child: Child,
}

impl RedisServer {
    pub(crate) async fn start(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Another process may take the port first.
        for _ in 0..5 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            if let Some(child) = launch(&options, port, directory.path()).await {
                return Self { options, port, directory, child };
            }
        }
        panic!("redis-server does not start");
    }

    /// `redis://` or `rediss://` address.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a crash would.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it without a last snapshot.
    pub(crate) fn shutdown_nosave(&mut self) {
        self.cli(&["SHUTDOWN", "NOSAVE"]);
        self.child.wait().unwrap();
    }

    /// A snapshot of all that it holds.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        assert_eq!(self.cli(&["SAVE"]), "OK");
        std::fs::read(self.directory.path().join("dump.rdb")).unwrap()
    }

    /// Ends it, puts a snapshot in the place of its data, and starts it again.
    pub(crate) async fn restore(&mut self, snapshot: &[u8]) {
        self.shutdown_nosave();
        std::fs::write(self.directory.path().join("dump.rdb"), snapshot).unwrap();
        self.restart().await;
    }

    /// Starts it again, on the same port and data, after it was ended.
    pub(crate) async fn restart(&mut self) {
        assert!(self.child.try_wait().unwrap().is_some(), "still running");
        for _ in 0..20 {
            if let Some(child) = launch(&self.options, self.port, self.directory.path()).await {
                self.child = child;
                return;
            }
        }
        panic!("redis-server does not start again");
    }

    /// Makes it hang: connections stay open and nothing is answered.
    pub(crate) fn stop_signal(&self) {
        program::signal(&self.child, "-STOP");
    }

    /// Lets it go on.
    pub(crate) fn cont_signal(&self) {
        program::signal(&self.child, "-CONT");
    }

    /// Its data directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Lets it write no file, as on a full disk, or any file again.
    pub(crate) fn fill_disk(&self, full: bool) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // The hard limit stays: raising it needs a right.
        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        let current = if full { Some(1) } else { maximum };
        prlimit(pid, Resource::Fsize, Rlimit { current, maximum }).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) {
        assert!(program::ended(&mut self.child, Duration::from_secs(30)).await.is_some());
    }

    /// What redis-cli prints, without the last line feed.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        cli(&self.options, self.port, arguments)
    }

    /// The same of a command that answers OK.
    pub(crate) fn expect(&self, arguments: &[&str]) {
        assert_eq!(self.cli(arguments), "OK", "{arguments:?}");
    }

    /// What redis-cli prints when it is fed these lines.
    pub(crate) fn feed(&self, lines: &str) -> String {
        feed(&self.options, self.port, &[], lines.as_bytes())
    }

    /// The first argument of an option that it was started with.
    pub(crate) fn option(&self, name: &str) -> String {
        let found = self.options.directives.iter().find(|(known, _)| known == name);
        found.unwrap().1[0].clone()
    }

    /// How often it has carried a command out since it started.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let head = format!("cmdstat_{}:calls=", command.to_lowercase());
        self.cli(&["INFO", "commandstats"])
            .lines()
            .find_map(|line| line.strip_prefix(&head)?.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }

    /// Digest of all that it holds.
    pub(crate) fn digest(&self) -> String {
        let digest = self.cli(&["DEBUG", "DIGEST"]);
        assert_eq!(digest.len(), 40, "{digest}");
        digest
    }

    /// Waits until a replica of it confirms a write. (INFO calls replicas
    /// online long before they do.)
    pub(crate) async fn replicated(&self) {
        // One connection, as WAIT covers the writes of its own.
        let probe = b"SET replicated 1\nWAIT 1 100\nDEL replicated\n";
        until(|| feed(&self.options, self.port, &[], probe).starts_with("OK\n1\n")).await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for something to become true, at most ten seconds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    until_within(Duration::from_secs(10), condition).await;
}

/// Waits for something to become true.
pub(crate) async fn until_within(bound: Duration, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < bound, "did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `None` if it ends at once, as it does when the port is taken.
async fn launch(options: &Options, port: u16, directory: &Path) -> Option<Child> {
    let port_text = port.to_string();
    // On a file that may not grow, the signal would kill it instead of the write
    // failing as on a full disk.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec redis-server \"$@\"", "redis-server"]);
    command.args(["--bind", "127.0.0.1", "--save", "", "--enable-debug-command", "local"]);
    command.args(["--repl-diskless-sync-delay", "0"]).arg("--dir").arg(directory);
    match &options.tls {
        None => command.args(["--port", &port_text]),
        Some(files) => command
            .args(["--port", "0", "--tls-port", &port_text, "--tls-auth-clients", "optional"])
            .arg("--tls-ca-cert-file")
            .arg(&files.ca)
            .arg("--tls-cert-file")
            .arg(&files.certificate)
            .arg("--tls-key-file")
            .arg(&files.key),
    };
    for (name, arguments) in &options.directives {
        command.arg(format!("--{name}")).args(arguments);
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        let pid = child.id();
        if cli(options, port, &["INFO", "server"]).contains(&format!("process_id:{pid}\r\n")) {
            return Some(child);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

pub(crate) fn cli(options: &Options, port: u16, arguments: &[&str]) -> String {
    feed(options, port, arguments, b"")
}

/// Runs redis-cli with arguments or, if there are none, with lines of input.
fn feed(options: &Options, port: u16, arguments: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    if let Some(files) = &options.tls {
        command.arg("--tls").arg("--cacert").arg(&files.ca);
    }
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
}
