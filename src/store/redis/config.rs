//! Settings of the Redis engine, parsed.

use std::{fmt, path::PathBuf, time::Duration};

use zeroize::Zeroizing;

use crate::metrics::Metrics;

/// How to reach Redis and what to demand of it.
///
/// No `Debug`: it holds the password.
pub struct RedisConfig {
    /// Where it is.
    pub url: RedisUrl,
    /// ACL user; `None` is Redis's `default` user.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// PEM file of the authorities that may vouch for the server; `None`: those
    /// of the operating system. Only for `rediss://`.
    pub ca: Option<PathBuf>,
    /// Shown to the server if it asks for one. Only for `rediss://`.
    pub client_certificate: Option<ClientCertificate>,
    /// First part of every key.
    pub prefix: KeyPrefix,
    /// Longest time of one call, waiting for a connection included.
    pub response_timeout: Duration,
    /// Longest time to open a connection, TLS and AUTH included.
    pub connect_timeout: Duration,
    /// Replicas that must confirm a commit before it is acknowledged; 0 asks
    /// none.
    ///
    /// `WAIT` blocks its connection, so commits then have a connection of their
    /// own and run one after another: at most one per round trip to the
    /// slowest replica demanded.
    pub min_replicas: u32,
    /// Refuses a Redis without an append-only file instead of warning.
    pub require_durable: bool,
    /// Counts the connections that are replaced.
    pub metrics: Metrics,
}

impl RedisConfig {
    /// The defaults: key prefix `workflow-secrets`, 1 s for each timeout,
    /// nothing demanded beyond what is always refused.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            username: None,
            password: None,
            ca: None,
            client_certificate: None,
            prefix: KeyPrefix::default(),
            response_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            min_replicas: 0,
            require_durable: false,
            metrics: Metrics::none(),
        }
    }
}

/// PEM files of a client certificate. They are read anew for each connection,
/// so a renewed certificate needs no restart.
pub struct ClientCertificate {
    /// The certificate and its intermediates.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The password of the ACL user. Cannot be printed; overwritten on drop.
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes it over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// For AUTH only.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

/// Address of a Redis, without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: i64,
}

impl RedisUrl {
    /// Parses `redis://host[:port][/database]`, or `rediss://` for TLS. The
    /// port is 6379 unless told, the database 0.
    ///
    /// # Errors
    /// The rule it breaks. Credentials are refused, since a URL is printed by
    /// many tools.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (tls, rest) = match (text.strip_prefix("redis://"), text.strip_prefix("rediss://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err("must start with redis:// or rediss://"),
        };
        if rest.contains('@') {
            return Err("must not hold a user or a password: they have settings of their own");
        }
        let (address, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = match database {
            "" => 0,
            text => text.parse::<u16>().map_err(|_| "must end with a database number or none")?,
        };
        let (host, port) = match address.strip_prefix('[').and_then(|a| a.split_once(']')) {
            Some((host, port)) => (host, port),
            None => address.split_at(address.find(':').unwrap_or(address.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| "must have a port of 1 to 65535 or none")?,
            None if port.is_empty() => 6379,
            None => return Err("must be redis[s]://host[:port][/database]"),
        };
        let host_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
        if host.is_empty() || !host.bytes().all(host_ok) || port == 0 {
            return Err("must be redis[s]://host[:port][/database]");
        }
        Ok(Self { tls, host: host.to_owned(), port, database: database.into() })
    }

    /// Whether it is `rediss://`.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

/// First part of every key: `^[A-Za-z0-9_.:-]{1,64}$`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPrefix(String);

impl KeyPrefix {
    /// Parses a prefix. Braces are refused, since they would take the place of
    /// the hash tag, and so is whatever has a meaning in a glob.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
        if (1..=64).contains(&text.len()) && text.bytes().all(ok) {
            Ok(Self(text.to_owned()))
        } else {
            Err("must match ^[A-Za-z0-9_.:-]{1,64}$")
        }
    }
}

impl Default for KeyPrefix {
    fn default() -> Self {
        Self("workflow-secrets".to_owned())
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_follow_the_rule() {
        for (text, tls, host, port, database) in [
            ("redis://localhost", false, "localhost", 6379, 0),
            ("redis://10.0.0.1:6380/", false, "10.0.0.1", 6380, 0),
            ("rediss://cache.example:6390/3", true, "cache.example", 6390, 3),
            ("redis://[::1]", false, "::1", 6379, 0),
            ("rediss://[::1]:7000/1", true, "::1", 7000, 1),
        ] {
            let url = RedisUrl { tls, host: host.into(), port, database };
            assert_eq!(RedisUrl::parse(text), Ok(url), "{text}");
        }
        for bad in [
            "",
            "localhost:6379",
            "http://localhost",
            "redis://",
            "redis://:6379",
            "redis://host:0",
            "redis://host:65536",
            "redis://host:",
            "redis://host/x",
            "redis://host/-1",
            "redis://host?protocol=resp3",
            "rediss://host#insecure",
            "redis://user:secret@host",
            "redis://[::1",
            "redis://[::1]7000",
            "redis://ho st",
        ] {
            assert!(RedisUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_follow_the_rule() {
        assert!(KeyPrefix::parse("prod:secrets-1.2_3").is_ok());
        for bad in ["", "a{b", "a}b", "a*", "a?", "a[b]", "a b", "ä", &"x".repeat(65)] {
            assert!(KeyPrefix::parse(bad).is_err(), "{bad}");
        }
    }
}
