//! A Redis that is there but refuses, lags or says nothing, seen by callers.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::support::{
    lossy_proxy::LossyProxy,
    platform::{
        Client, Platform, Replica, SERVICE, assert_refused, assert_unavailable, create, resolve,
        value,
    },
    redis_server::{Options, RedisServer},
};

/// A call asks the store at most twice, for 1 s each; the rest is for a busy
/// machine.
const DEADLINE: Duration = Duration::from_secs(4);

/// For what must come about some time.
const PATIENCE: Duration = Duration::from_secs(30);

struct Setting {
    platform: Platform,
    replica: Replica,
    executor: Client,
    writer: Client,
    created: usize,
}

impl Setting {
    async fn start(redis: Options) -> Self {
        Self::start_on(Platform::start_with(redis).await, &[]).await
    }

    async fn start_on(platform: Platform, flags: &[&str]) -> Self {
        let replica = platform.replica_with(flags).await;
        let mut writer = platform.client(&replica, "platform").await;
        writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
        let executor = platform.client(&replica, "executor").await;
        Self { platform, replica, executor, writer, created: 0 }
    }

    fn redis(&self) -> &RedisServer {
        &self.platform.redis
    }

    /// Tries one more secret.
    async fn create(&mut self) -> Result<tonic::Response<()>, tonic::Status> {
        let request = create("ws", &format!("K{}", self.created), "v");
        let start = Instant::now();
        let outcome = self.writer.create_secret(request).await;
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        self.created += usize::from(outcome.is_ok());
        outcome.map(|_| tonic::Response::new(()))
    }

    /// Everything acknowledged is there.
    async fn reads_go_on(&mut self) {
        for number in 0..self.created {
            let name = format!("K{number}");
            self.executor.resolve_secrets(resolve("ws", &[&name])).await.unwrap();
        }
        for _ in 0..50 {
            let answer = self.executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
            assert_eq!(value(&answer.into_inner(), "KEY"), "value");
        }
    }

    /// Until a write succeeds, without a restart.
    async fn writes_return(&mut self) {
        let start = Instant::now();
        while let Err(error) = self.create().await {
            assert!(start.elapsed() < PATIENCE, "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is_down(&mut self) {
        let start = Instant::now();
        let outcome = self.executor.resolve_secrets(resolve("ws", &["KEY"])).await;
        assert_unavailable(outcome, "STORE_UNAVAILABLE");
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        assert_unavailable(self.create().await, "STORE_UNAVAILABLE");
        self.replica.until_health(&self.platform, SERVICE, ServingStatus::NotServing).await;
        let alive = self.replica.health(&self.platform, "").await;
        assert_eq!(alive, Some(ServingStatus::Serving));
    }

    async fn is_back(&mut self) {
        self.writes_return().await;
        self.reads_go_on().await;
        self.replica.until_health(&self.platform, SERVICE, ServingStatus::Serving).await;
    }

    /// Readiness, after the service has looked at the store anew.
    async fn stays_ready(&self) {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let health = self.replica.health(&self.platform, SERVICE).await;
        assert_eq!(health, Some(ServingStatus::Serving));
    }
}

#[tokio::test]
async fn without_memory_every_read_succeeds() {
    let mut setting = Setting::start(Options::default()).await;
    for _ in 0..2 {
        setting.redis().cli(&["CONFIG", "SET", "maxmemory", "1"]);
        let refused = setting.create().await;
        assert_refused(refused, Code::ResourceExhausted, "STORE_FULL");
        setting.reads_go_on().await;
        setting.redis().cli(&["CONFIG", "SET", "maxmemory", "0"]);
        setting.is_back().await;
    }
}

/// A snapshot that cannot be written stops all writes of Redis.
#[tokio::test]
async fn without_snapshots_every_read_succeeds() {
    let mut setting = Setting::start(Options::default()).await;
    // Snapshots may be taken, but not within this test.
    setting.redis().cli(&["CONFIG", "SET", "save", "86400 1"]);
    // Nothing can be put in the place of a directory that is not empty.
    let dump = setting.redis().directory().join("dump.rdb");
    fs::create_dir_all(dump.join("x")).unwrap();
    let snapshot = async |setting: &Setting, status: &str| {
        let start = Instant::now();
        setting.redis().cli(&["BGSAVE"]);
        let status = format!("rdb_last_bgsave_status:{status}");
        while !setting.redis().cli(&["INFO", "persistence"]).contains(&status) {
            assert!(start.elapsed() < PATIENCE, "no {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    snapshot(&setting, "err").await;
    assert_unavailable(setting.create().await, "STORE_UNAVAILABLE");
    setting.reads_go_on().await;
    setting.stays_ready().await;
    fs::remove_dir_all(&dump).unwrap();
    snapshot(&setting, "ok").await;
    setting.is_back().await;
}

/// The append-only file cannot grow.
#[tokio::test]
async fn on_a_full_disk_every_read_succeeds() {
    let options = Options::default().set("appendonly", &["yes"]).set("appendfsync", &["everysec"]);
    let mut setting = Setting::start(options).await;
    setting.redis().fill_disk(true);
    let start = Instant::now();
    let refused = loop {
        // Redis acknowledges the write by which it notices, and keeps it in
        // memory until there is room.
        match setting.create().await {
            Err(refused) => break refused,
            Ok(_) => assert!(start.elapsed() < PATIENCE, "never refused"),
        }
    };
    assert_unavailable::<()>(Err(refused), "STORE_UNAVAILABLE");
    setting.reads_go_on().await;
    setting.stays_ready().await;
    setting.redis().fill_disk(false);
    setting.is_back().await;
    setting.platform.redis.kill9();
    setting.platform.redis.restart().await;
    setting.is_back().await;
}

/// With an append-only file that is synced on each write, Redis ends rather
/// than acknowledge what it cannot keep.
#[tokio::test]
async fn on_a_full_disk_a_durable_redis_acknowledges_nothing() {
    let mut setting = Setting::start(Options::default().durable()).await;
    setting.create().await.unwrap();
    setting.redis().fill_disk(true);
    assert_unavailable(setting.create().await, "STORE_UNAVAILABLE");
    setting.platform.redis.ended().await;
    setting.is_down().await;
    setting.platform.redis.restart().await;
    setting.is_back().await;
}

#[tokio::test]
async fn a_redis_that_loads_its_data_is_waited_for() {
    let options = Options::default()
        .set("key-load-delay", &["1000"])
        .set("loading-process-events-interval-bytes", &["1024"]);
    let mut setting = Setting::start(options).await;
    let loading = async |setting: &Setting| {
        let start = Instant::now();
        while !setting.redis().cli(&["INFO", "persistence"]).contains("\nloading:1") {
            assert!(start.elapsed() < PATIENCE, "does not load");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    setting.create().await.unwrap();
    // Loading takes a minute, unless told otherwise.
    setting.redis().cli(&["DEBUG", "POPULATE", "60000", "filler", "100"]);
    setting.redis().cli(&["SAVE"]);
    setting.platform.redis.kill9();
    setting.platform.redis.restart().await;
    loading(&setting).await;
    setting.is_down().await;
    setting.redis().cli(&["CONFIG", "SET", "key-load-delay", "0"]);
    setting.is_back().await;

    // The same under open connections.
    setting.redis().cli(&["CONFIG", "SET", "key-load-delay", "1000"]);
    let port = setting.redis().port().to_string();
    let mut reload = std::process::Command::new("redis-cli")
        .args(["-p", &port, "DEBUG", "RELOAD"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    loading(&setting).await;
    setting.is_down().await;
    setting.redis().cli(&["CONFIG", "SET", "key-load-delay", "0"]);
    setting.is_back().await;
    assert!(reload.wait().unwrap().success());
}

fn write_password(path: &Path, password: &str) {
    // As a mounted secret is replaced: at once.
    let new = path.with_extension("new");
    fs::write(&new, format!("{password}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, path).unwrap();
}

#[tokio::test]
async fn a_rotated_password_needs_no_restart() {
    let rules = [">first", "~workflow-secrets:*", "+@all", "-@admin", "+info"];
    let platform = Platform::start_with(Options::default().user("app", &rules)).await;
    let file = platform.file("redis-password");
    write_password(&file, "first");
    let flags = ["--redis-username", "app", "--redis-password-file", file.to_str().unwrap()]
        .map(str::to_owned);
    let flags = flags.each_ref().map(String::as_str);
    let mut setting = Setting::start_on(platform, &flags).await;
    let acl = |setting: &Setting, rules: &[&str]| {
        let rules = [&["ACL", "SETUSER", "app"], rules].concat();
        assert_eq!(setting.redis().cli(&rules), "OK");
    };
    let cut = |setting: &Setting| setting.redis().cli(&["CLIENT", "KILL", "USER", "app"]);

    // With both passwords good for a while, no call fails.
    acl(&setting, &[">second"]);
    setting.create().await.unwrap();
    cut(&setting);
    setting.reads_go_on().await;
    write_password(&file, "second");
    cut(&setting);
    setting.reads_go_on().await;
    acl(&setting, &["<first"]);
    for _ in 0..5 {
        cut(&setting);
        setting.reads_go_on().await;
    }
    setting.create().await.unwrap();

    // At one stroke: open connections go on, new ones wait for the file.
    acl(&setting, &["resetpass", ">third"]);
    setting.reads_go_on().await;
    cut(&setting);
    setting.is_down().await;
    write_password(&file, "third");
    setting.is_back().await;

    // A file that cannot be read is no end either.
    fs::remove_file(&file).unwrap();
    cut(&setting);
    setting.is_down().await;
    write_password(&file, "third");
    setting.is_back().await;
    let log = setting.replica.stderr();
    assert!(log.contains("redis-password"), "{log}");
    for password in ["first", "second", "third"] {
        assert!(!log.contains(password));
    }
}

/// As a proxy before Redis does after the password behind it was changed.
#[tokio::test]
async fn who_is_asked_for_a_password_shows_it_anew() {
    let platform = Platform::start_with(Options::default()).await;
    let proxy = LossyProxy::start(platform.redis.port()).await;
    let store = format!("redis://{}", proxy.address());
    let mut setting = Setting::start_on(platform, &["--store", &store]).await;
    for _ in 0..3 {
        let before = setting.redis().calls("info");
        // A read is two commands.
        proxy.answer(b"-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n");
        setting.reads_go_on().await;
        assert!(setting.redis().calls("info") > before, "a new connection was checked");
    }
    setting.writes_return().await;
}

#[tokio::test]
async fn half_open_connections_are_replaced() {
    let platform = Platform::start_with(Options::default()).await;
    let proxy = LossyProxy::start(platform.redis.port()).await;
    let store = format!("redis://{}", proxy.address());
    let mut setting = Setting::start_on(platform, &["--store", &store]).await;
    proxy.swallow();
    setting.is_down().await;
    // New connections are no better.
    setting.is_down().await;
    proxy.heal();
    setting.is_back().await;
}

/// Connections are not even refused: packets to that address get lost.
#[tokio::test]
async fn attempts_to_connect_that_hang_are_given_up() {
    let platform = Platform::start_with(Options::default()).await;
    let proxy = LossyProxy::start(platform.redis.port()).await;
    let address = proxy.address();
    let store = format!("redis://{address}");
    let mut setting = Setting::start_on(platform, &["--store", &store]).await;
    drop(proxy);
    let deaf = Deaf::start(address).await;
    setting.is_down().await;
    drop(deaf);
    let _proxy = LossyProxy::start_at(address, setting.redis().port()).await;
    setting.is_back().await;
}

/// An address whose queue of connections is full: the kernel drops all further
/// attempts.
struct Deaf {
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Deaf {
    async fn start(address: SocketAddr) -> Self {
        let start = Instant::now();
        // Until who listened there has gone.
        let listener = loop {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            if let Ok(listener) = socket.bind(address).and_then(|()| socket.listen(1)) {
                break listener;
            }
            assert!(start.elapsed() < PATIENCE, "the address stays in use");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut queued = Vec::new();
        let attempt = || tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address));
        while let Ok(connected) = attempt().await {
            queued.push(connected.unwrap());
            assert!(queued.len() < 10, "the queue has no end");
        }
        Self { _listener: listener, _queued: queued }
    }
}
