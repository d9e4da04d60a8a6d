//! What the Redis engine refuses at start, and how it logs in.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use workflow_secrets::store::{
    Store,
    redis::{ClientCertificate, Password, RedisConfig, RedisStore, RedisUrl, StartError},
};

use crate::{
    store_redis::config,
    support::{
        redis_server::{Options, RedisServer, TlsFiles},
        store::{get, meta, rec, set, ws},
    },
};

pub(crate) async fn refusal(config: RedisConfig) -> StartError {
    RedisStore::connect(config).await.err().expect("must be refused")
}

/// The rights that the engine's documentation asks for, and no more.
pub(crate) const RIGHTS: &str = "+info +select +hmget +get +del +unlink +scan +eval +evalsha +hlen +hget +hset \
     +hdel +zcard +zadd +zrem +zlexcount +zrangebylex +zrevrangebylex +set +incr +pexpireat \
     +pexpiretime +wait";

pub(crate) fn user(password: &str) -> Options {
    let password = format!(">{password}");
    let rules: Vec<_> =
        [password.as_str(), "~workflow-secrets:*"].into_iter().chain(RIGHTS.split(' ')).collect();
    Options::default().user("app", &rules)
}

pub(crate) fn login(mut config: RedisConfig, user: &str, password: &str) -> RedisConfig {
    config.username = Some(user.to_owned());
    let password = password.to_owned();
    config.password = Some(Arc::new(move || Ok(Password::new(password.clone()))));
    config
}

#[tokio::test]
async fn a_redis_that_evicts_is_refused() {
    for policy in ["allkeys-lru", "volatile-ttl", "allkeys-random"] {
        let server = RedisServer::start(Options::default().memory("100mb", policy)).await;
        assert_eq!(refusal(config(&server)).await, StartError::Evicts, "{policy}");
    }
}

#[tokio::test]
async fn durability_is_demanded_or_not() {
    let server = RedisServer::start(Options::default()).await;
    let mut durable = config(&server);
    durable.require_durable = true;
    assert_eq!(refusal(durable).await, StartError::NotDurable);
    RedisStore::connect(config(&server)).await.unwrap();

    let server = RedisServer::start(Options::default().durable()).await;
    let mut durable = config(&server);
    durable.require_durable = true;
    RedisStore::connect(durable).await.unwrap();
}

#[tokio::test]
async fn checks_work_without_config() {
    // As managed services have it.
    let options =
        Options::default().set("rename-command", &["CONFIG", ""]).memory("100mb", "allkeys-lru");
    let server = RedisServer::start(options).await;
    assert_eq!(refusal(config(&server)).await, StartError::Evicts);
}

#[tokio::test]
async fn replicas_are_refused() {
    let primary = RedisServer::start(Options::default()).await;
    let replica = RedisServer::start(Options::default().replica_of(&primary)).await;
    let refused = StartError::NotWritable("it is a replica");
    assert_eq!(refusal(config(&replica)).await, refused);
}

#[tokio::test]
async fn wrong_credentials_are_refused() {
    let server = RedisServer::start(user("right")).await;
    let denied = StartError::Denied("user or password is wrong");
    assert_eq!(refusal(login(config(&server), "app", "wrong")).await, denied);
    assert_eq!(refusal(login(config(&server), "nobody", "right")).await, denied);
    RedisStore::connect(login(config(&server), "app", "right")).await.unwrap();

    server.cli(&["ACL", "SETUSER", "default", "off"]);
    let demanded = StartError::Denied("it demands a password");
    assert_eq!(refusal(config(&server)).await, demanded);
}

#[tokio::test]
async fn what_cannot_be_reached_is_told() {
    let mut server = RedisServer::start(Options::default()).await;
    server.kill9();
    let refused = StartError::Unreachable("connection refused");
    assert_eq!(refusal(config(&server)).await, refused);

    // Accepts connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let mut config = RedisConfig::new(RedisUrl::parse(&url).unwrap());
    config.connect_timeout = Duration::from_millis(200);
    assert_eq!(refusal(config).await, StartError::Unreachable("timed out"));
}

/// A certificate authority with a server's and a client's certificate.
pub(crate) struct Authority {
    directory: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(directory.path().join(name), text);
        let mut ca = CertificateParams::new([]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate with its issuer's name for self-signed.
        ca.distinguished_name.push(DnType::CommonName, "authority");
        let ca_key = KeyPair::generate().unwrap();
        write("ca.pem", ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        for (name, host) in [("server", "127.0.0.1"), ("elsewhere", "10.1.2.3"), ("client", "c")] {
            let key = KeyPair::generate().unwrap();
            let leaf = CertificateParams::new([host.to_owned()]).unwrap();
            write(&format!("{name}.pem"), leaf.signed_by(&key, &issuer).unwrap().pem()).unwrap();
            write(&format!("{name}.key"), key.serialize_pem()).unwrap();
        }
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            ca: self.path("ca.pem"),
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        }
    }
}

#[tokio::test]
async fn tls_with_an_acl_user_works() {
    let authority = Authority::new();
    let mut server = RedisServer::start(user("s3cret").tls(authority.files("server"))).await;
    let mut config = login(config(&server), "app", "s3cret");
    config.ca = Some(authority.path("ca.pem"));
    let store: Arc<dyn Store> = Arc::new(RedisStore::connect(config).await.unwrap());
    set(&store, "w", meta("A"), rec(1, &[7; 70_000])).await;
    assert!(get(&store, "w", &meta("A")).await == Some(rec(1, &[7; 70_000])));
    assert_eq!(store.scan(&ws("w"), "", None, 9).await.unwrap().len(), 1);
    assert_eq!(store.workspaces(None).await.unwrap().0.len(), 1);
    assert_eq!(store.health().await, Ok(()));

    server.kill9();
    server.restart().await;
    let start = std::time::Instant::now();
    while store.health().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(3));
    }
}

#[tokio::test]
async fn a_server_that_is_not_vouched_for_is_refused() {
    let authority = Authority::new();
    let server = RedisServer::start(Options::default().tls(authority.files("server"))).await;
    let trusting = |ca: Option<PathBuf>| {
        let mut config = config(&server);
        config.ca = ca;
        config
    };
    let distrust = StartError::Tls("the server's certificate is not trusted for this host");
    assert_eq!(refusal(trusting(Some(Authority::new().path("ca.pem")))).await, distrust);
    let system = refusal(trusting(None)).await;
    assert!(matches!(system, StartError::Tls(_)), "{system}");
    let missing = refusal(trusting(Some(authority.path("none.pem")))).await;
    assert_eq!(missing, StartError::Tls("CA file"));
    let no_certificate = refusal(trusting(Some(authority.path("server.key")))).await;
    assert_eq!(no_certificate, StartError::Tls("CA file"));

    let server = RedisServer::start(Options::default().tls(authority.files("elsewhere"))).await;
    let mut config = config(&server);
    config.ca = Some(authority.path("ca.pem"));
    assert_eq!(refusal(config).await, distrust);

    // Plain TCP where TLS is demanded.
    let server = RedisServer::start(Options::default()).await;
    let url = format!("rediss://127.0.0.1:{}", server.port());
    let mut config = RedisConfig::new(RedisUrl::parse(&url).unwrap());
    config.ca = Some(authority.path("ca.pem"));
    let refused = refusal(config).await;
    assert!(matches!(refused, StartError::Tls(_) | StartError::Unreachable(_)), "{refused}");
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let authority = Authority::new();
    let options = Options::default().tls(authority.files("server"));
    let server = RedisServer::start(options).await;
    // Only now, since the test's own redis-cli has none.
    server.cli(&["CONFIG", "SET", "tls-auth-clients", "yes"]);
    let mut bare = config(&server);
    bare.ca = Some(authority.path("ca.pem"));
    assert!(RedisStore::connect(bare).await.is_err());
    let mut shown = config(&server);
    shown.ca = Some(authority.path("ca.pem"));
    shown.client_certificate = Some(ClientCertificate {
        chain: authority.path("client.pem"),
        key: authority.path("client.key"),
    });
    RedisStore::connect(shown).await.unwrap();
}
