//! What the process forbids itself and others.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::geteuid;
use tempfile::TempDir;

use super::support::{
    kms_endpoint::ACCESS_KEY_ID,
    platform::{Platform, create, free_address, resolve},
    program::{self, run},
    redis_server::Options,
};

/// A running process with its log; killed when dropped.
struct Running {
    child: Child,
    log: PathBuf,
    _dir: TempDir,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let child =
            command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Self { child, log, _dir: dir }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }

    /// Waits long enough for a busy machine.
    async fn until(&self, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn listening(&self, address: SocketAddr) {
        self.until(|| std::net::TcpStream::connect(address).is_ok()).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of a file in /proc.
fn line(file: &Path, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// `dev` in this directory, as a user without rights.
fn dev(dir: &Path, address: SocketAddr) -> Command {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_workflow-secrets"));
    let mut command = if geteuid().is_root() {
        // The build may lie where nobody else can go.
        let copy = dir.join("workflow-secrets");
        fs::copy(program, &copy).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(dir, Some(65534), Some(65534)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(copy);
        command
    } else {
        Command::new(program)
    };
    let address = address.to_string();
    command.args(["dev", "--listen", &address, "--data-dir"]).arg(dir.join("data"));
    command
}

#[tokio::test]
async fn nothing_dumps_or_reads_it_and_it_gains_no_rights() {
    let (dir, address) = (tempfile::tempdir().unwrap(), free_address());
    let dev = Running::start(dev(dir.path(), address));
    dev.listening(address).await;
    assert_eq!(line(&dev.proc("limits"), "Max core file size"), "0 0 bytes");
    let status = dev.proc("status");
    assert_eq!(line(&status, "Umask:"), "0077");
    let user = line(&status, "Uid:");
    assert!(!user.starts_with("0 "), "{user}");
    // The kernel gives what others may not read to root.
    assert_eq!(fs::metadata(dev.proc("environ")).unwrap().uid(), 0);
    let mut threads = 0;
    for task in fs::read_dir(dev.proc("task")).unwrap() {
        assert_eq!(line(&task.unwrap().path().join("status"), "NoNewPrivs:"), "1");
        threads += 1;
    }
    assert!(threads > 2, "{threads}");
    for file in ["data/store.redb", "data/kek", "data/audit.jsonl"] {
        let file = dir.path().join(file);
        dev.until(|| file.exists()).await;
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", file.display());
    }
}

/// `serve` under this limit on locked memory, and without the capability that
/// is above it.
fn limited(platform: &Platform, address: SocketAddr, limit: &str) -> Command {
    let prlimit = ["prlimit", "--memlock"];
    let mut command = if geteuid().is_root() {
        // Drops it once the limit is set: raising one takes a capability too.
        let mut command = Command::new(prlimit[0]);
        command.arg(format!("{}={limit}", prlimit[1]));
        command.args(["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"]);
        command
    } else {
        let mut command = Command::new(prlimit[0]);
        command.arg(format!("{}={limit}", prlimit[1]));
        command
    };
    command.arg(env!("CARGO_BIN_EXE_workflow-secrets")).arg("serve").args(platform.flags(address));
    command.envs([("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID), ("AWS_SECRET_ACCESS_KEY", "test")]);
    command
}

/// Whether a limit can be set here.
fn can_set(limit: &str) -> bool {
    let status = Command::new("prlimit")
        .args([&format!("--memlock={limit}"), "true"])
        .stderr(Stdio::null())
        .status();
    status.unwrap().success()
}

const LOCKED: &str = "\"memory is locked: nothing is written to swap\"";
const UNLOCKED: &str = "memory is not locked";
const WHY: &str = "RLIMIT_MEMLOCK is not unlimited and CAP_IPC_LOCK is not held";

#[tokio::test]
async fn under_a_limit_memory_is_not_locked_and_it_says_so_or_refuses() {
    let platform = Platform::start_with(Options::default()).await;
    // Enough for all it has at first, but not for ever; and too little.
    for limit in ["8388608:8388608", "0:0"] {
        if !can_set(limit) {
            continue;
        }
        let address = free_address();
        let serve = Running::start(limited(&platform, address, limit));
        serve.listening(address).await;
        let log = serve.log();
        assert_eq!(log.matches(UNLOCKED).count(), 1, "{log}");
        assert!(log.contains(WHY) && !log.contains(LOCKED), "{log}");
        assert_eq!(line(&serve.proc("status"), "VmLck:"), "0 kB");
        let [soft, hard] = limit.split(':').collect::<Vec<_>>()[..] else { panic!("{limit}") };
        let after = line(&serve.proc("limits"), "Max locked memory");
        assert_eq!(after, format!("{soft} {hard} bytes"));

        let mut command = limited(&platform, free_address(), limit);
        let outcome = run(command.arg("--require-locked-memory")).await;
        assert_eq!(outcome.code, Some(64), "{}", outcome.stderr);
        let told = format!("--require-locked-memory: memory cannot be locked: {WHY}");
        assert!(outcome.stderr.contains(&told), "{}", outcome.stderr);
    }
}

#[tokio::test]
async fn without_a_limit_memory_is_locked_and_stays_so() {
    let platform = Platform::start_with(Options::default()).await;
    // The soft limit is no obstacle.
    let limit = "65536:unlimited";
    if !can_set(limit) {
        return;
    }
    let address = free_address();
    let mut command = limited(&platform, address, limit);
    command.arg("--require-locked-memory");
    let serve = Running::start(command);
    serve.listening(address).await;
    let log = serve.log();
    assert_eq!(log.matches(LOCKED).count(), 1, "{log}");
    assert!(!log.contains(UNLOCKED), "{log}");
    let locked = || {
        let locked = line(&serve.proc("status"), "VmLck:");
        locked.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let before = locked();
    assert!(before > 64, "{before}");
    // Under the limit it had, allocations would fail from now on.
    let after = line(&serve.proc("limits"), "Max locked memory");
    assert_eq!(after, "unlimited unlimited bytes");
    // What came later is locked too.
    let maps = fs::read_to_string(serve.proc("smaps")).unwrap();
    let unlocked = maps.split("VmFlags:").skip(1).filter(|flags| {
        let flags = flags.lines().next().unwrap();
        // Not of what the kernel puts there.
        flags.contains(" wr ") && !flags.contains(" lo") && !flags.contains(" io")
    });
    assert_eq!(unlocked.count(), 0, "{maps}");
}

/// Whatever this machine permits.
#[tokio::test]
async fn what_the_log_says_of_memory_is_true() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let log = replica.stderr();
    assert_eq!(log.matches(LOCKED).count() + log.matches(UNLOCKED).count(), 1, "{log}");
    let locked = log.contains(LOCKED);
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", replica.pid()));
    // Only root may look.
    if let Ok(smaps) = smaps {
        let flags = smaps.split("VmFlags:").skip(1).map(|flags| flags.lines().next().unwrap());
        let writable: Vec<_> = flags.filter(|flags| flags.contains(" wr ")).collect();
        let all = |is: bool| writable.iter().all(|flags| flags.contains(" lo") == is);
        assert!(all(locked), "{locked}: {smaps}");
    }
    // Who is to demand it has what is demanded, or does not start.
    let mut demanding = platform.launch(&["--require-locked-memory=true"]);
    if locked {
        demanding.ready(&platform).await;
    } else {
        let status = demanding.ended(Duration::from_secs(60)).await;
        assert_eq!(status.code(), Some(64), "{}", demanding.stderr());
    }
}

/// Set, it makes some TLS libraries write the keys of every connection to a file.
#[tokio::test]
async fn no_tls_key_is_written_to_a_file() {
    let platform = Platform::start_with(Options::default()).await;
    let file = platform.file("tls-keys");
    let variables = [
        ("SSLKEYLOGFILE", file.to_str().unwrap()),
        ("RUST_BACKTRACE", "full"),
        ("RUST_LOG", "trace"),
    ];
    let replica = platform.launch_in(&variables, &[]);
    replica.ready(&platform).await;
    let mut client = platform.client(&replica, "platform").await;
    client.create_secret(create("ws", "KEY", "value of a secret")).await.unwrap();
    let mut client = platform.client(&replica, "executor").await;
    client.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
    assert!(!file.exists());
    // Nor does the log say more than it is told to.
    let log = replica.stderr();
    assert!(!log.contains("TRACE") && !log.contains("value of a secret"), "{log}");
    // And so for clients.
    let address = format!("https://{}", replica.address);
    let ca = platform.file("ca.crt");
    let mut probe = program::command("probe");
    probe.env("SSLKEYLOGFILE", &file).args(["--address", &address, "--ca"]).arg(ca);
    let outcome = run(&mut probe).await;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!file.exists());
}
