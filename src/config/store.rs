//! Settings of the store.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::{Faults, ServeArgs, file_at, is_loopback, read_file};
use crate::store::redis::{
    ClientCertificate, KeyPrefix, Password, PasswordSource, RedisConfig, RedisUrl,
};

/// Which store.
pub enum StoreConfig {
    /// Redis.
    Redis(Box<RedisConfig>),
    /// A file of this machine.
    Embedded(PathBuf),
}

impl StoreConfig {
    /// Whether it is Redis without TLS on another machine.
    pub(super) fn crosses_in_clear(&self) -> bool {
        match self {
            Self::Redis(config) => !config.url.is_tls() && !config.url.hosts().all(is_loopback),
            Self::Embedded(_) => false,
        }
    }
}

fn parse(text: &str) -> Result<StoreConfig, String> {
    match text.strip_prefix("embedded:") {
        Some("") => Err("embedded: must be followed by a file".to_owned()),
        Some(path) => file_at(path).map(StoreConfig::Embedded),
        None => RedisUrl::parse(text)
            .map(|url| StoreConfig::Redis(Box::new(RedisConfig::new(url))))
            .map_err(|rule| format!("{rule} (or be embedded:/path/to/file)")),
    }
}

/// The settings of Redis are parsed for whatever store: a fault in them would
/// only wait for the day they count.
pub(super) fn store(f: &mut Faults, args: &ServeArgs) -> Option<StoreConfig> {
    let store =
        f.required("--store", args.store.as_ref()).and_then(|text| f.note("--store", parse(text)));
    f.not_empty("--redis-username", args.redis_username.as_ref());
    f.not_empty("--redis-sentinel-username", args.redis_sentinel_username.as_ref());
    let password = password(f, "--redis-password-file", args.redis_password_file.as_ref());
    let sentinel_password = password_of_sentinels(f, args);
    let ca = args.redis_ca.as_ref().and_then(|path| {
        f.note(&format!("--redis-ca {path}"), check_certificates(Path::new(path)))?;
        Some(PathBuf::from(path))
    });
    let certificate = certificate(f, args);
    let prefix = f.note("--redis-key-prefix", KeyPrefix::parse(&args.redis_key_prefix));
    let min_replicas =
        f.parsed("--redis-min-replicas", &args.redis_min_replicas, "a number of replicas");
    let timeout = f.duration("--redis-timeout", &args.redis_timeout);
    // The longest call must have room for several answers.
    if timeout.is_some_and(|timeout| timeout.is_zero() || timeout > Duration::from_secs(5)) {
        f.0.push("--redis-timeout: must be longer than 0 and at most 5s".into());
    }
    let require_durable = f.switch("--require-durable", &args.require_durable);
    let mut store = store?;
    if let StoreConfig::Redis(config) = &mut store {
        misplaced(f, args, &config.url);
        config.username = args.redis_username.clone();
        config.password = password;
        config.sentinel_username = args.redis_sentinel_username.clone();
        config.sentinel_password = sentinel_password;
        config.ca = ca;
        config.client_certificate = certificate;
        config.prefix = prefix?;
        config.response_timeout = timeout?;
        config.min_replicas = min_replicas?;
        config.require_durable = require_durable?;
    }
    Some(store)
}

/// Settings that would have no effect on this Redis.
fn misplaced(f: &mut Faults, args: &ServeArgs, url: &RedisUrl) {
    for (flag, value) in [
        ("--redis-ca", &args.redis_ca),
        ("--redis-cert", &args.redis_cert),
        ("--redis-key", &args.redis_key),
    ] {
        if value.is_some() && !url.is_tls() {
            f.0.push(format!("{flag}: needs a rediss:// store"));
        }
    }
    for (flag, value) in [
        ("--redis-sentinel-username", &args.redis_sentinel_username),
        ("--redis-sentinel-password-file", &args.redis_sentinel_password_file),
    ] {
        if value.is_some() && !url.has_sentinels() {
            f.0.push(format!("{flag}: needs a redis-sentinel:// store"));
        }
    }
}

fn password_of_sentinels(f: &mut Faults, args: &ServeArgs) -> Option<PasswordSource> {
    let path = args.redis_sentinel_password_file.as_ref();
    password(f, "--redis-sentinel-password-file", path)
}

fn password(f: &mut Faults, flag: &str, path: Option<&String>) -> Option<PasswordSource> {
    let path = PathBuf::from(path?);
    let file = format!("{flag} {}", path.display());
    f.note(&file, read_password(&path))?;
    Some(Arc::new(move || read_password(&path).map_err(|fault| format!("{file}: {fault}"))))
}

fn read_password(path: &Path) -> Result<Password, String> {
    let mut text = read_file(path, 0o007)?;
    // Editors end files with a newline that is no part of the password.
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(Password::new(text))
}

fn certificate(f: &mut Faults, args: &ServeArgs) -> Option<ClientCertificate> {
    let chain = args.redis_cert.as_ref().and_then(|path| {
        f.note(&format!("--redis-cert {path}"), check_certificates(Path::new(path)))?;
        Some(PathBuf::from(path))
    });
    let key = args.redis_key.as_ref().and_then(|path| {
        f.note(&format!("--redis-key {path}"), check_key(Path::new(path)))?;
        Some(PathBuf::from(path))
    });
    match (&args.redis_cert, &args.redis_key) {
        (Some(_), None) => f.0.push("--redis-cert: needs --redis-key".into()),
        (None, Some(_)) => f.0.push("--redis-key: needs --redis-cert".into()),
        _ => {}
    }
    Some(ClientCertificate { chain: chain?, key: key? })
}

pub(super) fn check_certificates(path: &Path) -> Result<(), String> {
    let pem = fs::read(path).map_err(|error| error.to_string())?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let some = found.is_ok_and(|certificates| !certificates.is_empty());
    some.then_some(()).ok_or_else(|| "holds no certificates in PEM".to_owned())
}

fn check_key(path: &Path) -> Result<(), String> {
    let pem = Zeroizing::new(read_file(path, 0o007)?);
    let found = PrivateKeyDer::from_pem_slice(pem.as_bytes());
    found.map(|_| ()).map_err(|_| "holds no private key in PEM".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_in_the_clear_is_fine_on_this_machine_only() {
        let clear = |url| parse(url).is_ok_and(|store| store.crosses_in_clear());
        for url in [
            "redis://redis:6379/0",
            "redis-sentinel://127.0.0.1,10.0.0.2/m",
            "redis-cluster://localhost,redis",
        ] {
            assert!(clear(url), "{url}");
        }
        for url in [
            "rediss://redis:6379/0",
            "redis://[::1]:1",
            "redis-sentinel://127.0.0.1,localhost/m",
            "rediss-cluster://redis",
        ] {
            assert!(!clear(url), "{url}");
        }
    }
}
