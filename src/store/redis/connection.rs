//! Opens connections and refuses a Redis that does not fit.

use std::{io, path::Path, sync::Arc};

use redis::{
    AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, Value, aio::MultiplexedConnection,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::{
    config::{ClientCertificate, RedisConfig},
    url::Address,
};

/// Oldest Redis whose scripts can ask for their rights (`redis.acl_check_cmd`)
/// and pass error codes on unchanged.
const OLDEST: (u32, u32) = (7, 0);

/// Why a Redis is not used. Never holds what it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// No connection.
    #[error("Redis cannot be reached: {0}")]
    Unreachable(&'static str),
    /// The TLS settings or the server's certificate are no good.
    #[error("TLS to Redis failed: {0}")]
    Tls(&'static str),
    /// The user, the password or the ACL rights are no good.
    #[error("Redis denies access: {0}")]
    Denied(&'static str),
    /// It is loading its data, or is a replica.
    #[error("Redis cannot be written to: {0}")]
    NotWritable(&'static str),
    /// It would throw records away when short of memory.
    #[error("maxmemory-policy of Redis must be noeviction: secrets would be evicted")]
    Evicts,
    /// It would forget acknowledged writes when it stops.
    #[error("Redis has no append-only file (appendonly no), and durability is required")]
    NotDurable,
    /// It lacks what the scripts need.
    #[error("Redis must be version 7.0 or later")]
    TooOld,
    /// It is one node of a cluster, and the URL speaks of a single Redis.
    #[error("Redis is a node of a cluster: the store URL must be redis-cluster://")]
    IsCluster,
    /// Nobody says who is master.
    #[error("no master of Redis is known: {0}")]
    NoMaster(&'static str),
    /// It answers as no Redis does.
    #[error("Redis gave an answer that was not understood")]
    NotUnderstood,
}

/// As whom to log in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    Redis,
    Sentinel,
}

/// An open, checked connection with the task that drives it.
pub(super) struct Opened {
    pub(super) commands: MultiplexedConnection,
    pub(super) driver: JoinHandle<()>,
    /// It has an append-only file.
    pub(super) durable: bool,
}

/// Opens a connection to a Redis that fits, within the connect timeout.
pub(super) async fn open(config: &RedisConfig, address: &Address) -> Result<Opened, StartError> {
    let opening = async {
        let mut opened = dial(config, address, Login::Redis).await?;
        let info = opened.commands.send_packed_command(&redis::cmd("INFO")).await;
        match info.map_err(|_| StartError::Unreachable("connection lost"))? {
            Value::BulkString(info) => {
                let info = String::from_utf8_lossy(&info);
                opened.durable = check(&info, config.require_durable)?;
                let clustered = info.lines().any(|line| line == "cluster_enabled:1");
                if clustered && !config.url.is_cluster() {
                    return Err(StartError::IsCluster);
                }
                Ok(opened)
            }
            Value::ServerError(error) if error.code() == "NOPERM" => {
                Err(StartError::Denied("the ACL must grant INFO"))
            }
            Value::ServerError(error) if error.code() == "NOAUTH" => {
                Err(StartError::Denied("it demands a password"))
            }
            _ => Err(StartError::NotUnderstood),
        }
    };
    timeout(config.connect_timeout, opening)
        .await
        .unwrap_or(Err(StartError::Unreachable("timed out")))
}

/// Whether what this Redis acknowledges survives its end. Reads the answer to INFO, which says all there is to check, also where
/// CONFIG is denied or renamed, as managed services do.
fn check(info: &str, require_durable: bool) -> Result<bool, StartError> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .ok_or(StartError::NotUnderstood)
    };
    let mut version = field("redis_version")?.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (version.next(), version.next()) else {
        return Err(StartError::NotUnderstood);
    };
    if (major, minor) < OLDEST {
        return Err(StartError::TooOld);
    }
    if field("loading")? != "0" {
        return Err(StartError::NotWritable("it is loading its data"));
    }
    // Reads must not come from a replica either: it may lag behind an
    // acknowledged write.
    if field("role")? != "master" {
        return Err(StartError::NotWritable("it is a replica"));
    }
    if field("maxmemory_policy")? != "noeviction" {
        return Err(StartError::Evicts);
    }
    if field("aof_enabled")? != "1" {
        if require_durable {
            return Err(StartError::NotDurable);
        }
        return Ok(false);
    }
    Ok(true)
}

/// Opens a connection to whatever answers there.
pub(super) async fn dial(
    config: &RedisConfig,
    address: &Address,
    login: Login,
) -> Result<Opened, StartError> {
    let tcp =
        TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    if !config.url.tls {
        return authenticate(config, login, tcp).await;
    }
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| StartError::Tls("the host is no name that a certificate can hold"))?;
    let tls = tls_config(config.ca.as_deref(), config.client_certificate.as_ref()).await?;
    // Errors of the handshake are those of rustls, wrapped by tokio-rustls.
    let stream =
        TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| match error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>())
        {
            Some(rustls::Error::InvalidCertificate(_)) => {
                StartError::Tls("the server's certificate is not trusted for this host")
            }
            Some(_) => StartError::Tls("handshake failed"),
            None => unreachable(error),
        })?;
    authenticate(config, login, stream).await
}

async fn authenticate<S>(
    config: &RedisConfig,
    login: Login,
    stream: S,
) -> Result<Opened, StartError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (database, username, password) = match login {
        Login::Redis => (config.url.database, &config.username, &config.password),
        Login::Sentinel => (0, &config.sentinel_username, &config.sentinel_password),
    };
    let mut login = RedisConnectionInfo::default().set_db(database).set_skip_set_lib_name();
    if let Some(username) = username {
        login = login.set_username(username);
    }
    if let Some(source) = password {
        let source = Arc::clone(source);
        let password = tokio::task::spawn_blocking(move || source()).await;
        let unreadable = StartError::Denied("the password cannot be read");
        let password = password.map_err(|_| unreadable)?.map_err(|fault| {
            tracing::warn!(fault, "Redis password cannot be read");
            unreadable
        })?;
        // The client library copies it for AUTH and does not overwrite that.
        login = login.set_password(password.expose());
    }
    // Each call has a deadline of its own.
    let settings = AsyncConnectionConfig::new().set_response_timeout(None);
    let (commands, driver) = MultiplexedConnection::new_with_config(&login, stream, settings)
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::AuthenticationFailed => StartError::Denied("user or password is wrong"),
            ErrorKind::Io => StartError::Unreachable("connection lost"),
            _ => StartError::NotUnderstood,
        })?;
    Ok(Opened { commands, driver: tokio::spawn(driver), durable: false })
}

async fn tls_config(
    ca: Option<&Path>,
    client: Option<&ClientCertificate>,
) -> Result<ClientConfig, StartError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path).await.ok_or(StartError::Tls("CA file"))? {
                roots.add(certificate).map_err(|_| StartError::Tls("CA file"))?;
            }
        }
        None => {
            let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            roots.add_parsable_certificates(found.map(|f| f.certs).unwrap_or_default());
        }
    }
    if roots.is_empty() {
        return Err(StartError::Tls("there is no certificate authority to trust"));
    }
    // The provider is named, so that no other crate's default can take over.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| StartError::Tls("no protocol version"))?
        .with_root_certificates(roots);
    let Some(client) = client else {
        return Ok(builder.with_no_client_auth());
    };
    let broken = StartError::Tls("client certificate or its key");
    let chain = certificates(&client.chain).await.ok_or(broken)?;
    let key = Zeroizing::new(tokio::fs::read(&client.key).await.map_err(|_| broken)?);
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| broken)?;
    builder.with_client_auth_cert(chain, key).map_err(|_| broken)
}

async fn certificates(path: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let pem = tokio::fs::read(path).await.ok()?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().ok()?;
    (!found.is_empty()).then_some(found)
}

fn unreachable(error: io::Error) -> StartError {
    StartError::Unreachable(match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => "connection lost",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route",
        _ => "host not found or connection failed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(version: &str, policy: &str, aof: &str, role: &str, loading: &str) -> String {
        format!(
            "# Server\r\nredis_version:{version}\r\nmaxmemory_policy:{policy}\r\n\
             # Persistence\r\nloading:{loading}\r\naof_enabled:{aof}\r\nrole:{role}\r\n"
        )
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let fit = info("7.0.0", "noeviction", "1", "master", "0");
        assert_eq!(check(&fit, true), Ok(true));
        let later = info("10.2.1", "noeviction", "0", "master", "0");
        assert_eq!(check(&later, false), Ok(false));
        assert_eq!(check(&later, true), Err(StartError::NotDurable));
        for (info, refusal) in [
            (info("6.2.14", "noeviction", "1", "master", "0"), StartError::TooOld),
            (info("7", "noeviction", "1", "master", "0"), StartError::NotUnderstood),
            (info("7.2.4", "allkeys-lru", "1", "master", "0"), StartError::Evicts),
            (
                info("7.2.4", "noeviction", "1", "slave", "0"),
                StartError::NotWritable("it is a replica"),
            ),
            (
                info("7.2.4", "noeviction", "1", "master", "1"),
                StartError::NotWritable("it is loading its data"),
            ),
            (String::new(), StartError::NotUnderstood),
        ] {
            assert_eq!(check(&info, false), Err(refusal));
        }
    }
}
