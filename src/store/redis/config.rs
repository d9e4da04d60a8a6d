//! Settings of the Redis engine, parsed.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use tokio::runtime::Handle;
use zeroize::Zeroizing;

use super::url::RedisUrl;
use crate::metrics::Metrics;

/// How to reach Redis and what to demand of it.
///
/// No `Debug`: it leads to the password.
pub struct RedisConfig {
    /// Where it is.
    pub url: RedisUrl,
    /// ACL user; `None` is Redis's `default` user.
    pub username: Option<String>,
    /// Where its password is. Asked for each connection, so a new password
    /// needs no restart.
    pub password: Option<PasswordSource>,
    /// ACL user of the sentinels; `None` is their `default` user.
    pub sentinel_username: Option<String>,
    /// Where its password is. Asked for each connection.
    pub sentinel_password: Option<PasswordSource>,
    /// PEM file of the authorities that may vouch for servers and sentinels;
    /// `None`: those of the operating system. Only with TLS.
    pub ca: Option<PathBuf>,
    /// Shown to a server or sentinel that asks for one. Only with TLS.
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
    /// Runtimes besides the one that connects. Each has a connection of its own to
    /// each master, by which its calls go: to wake another thread for each answer
    /// would take longer than the call.
    pub runtimes: Vec<Handle>,
}

impl RedisConfig {
    /// The defaults: key prefix `workflow-secrets`, 1 s for each timeout,
    /// nothing demanded beyond what is always refused.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            ca: None,
            client_certificate: None,
            prefix: KeyPrefix::default(),
            response_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            min_replicas: 0,
            require_durable: false,
            metrics: Metrics::none(),
            runtimes: Vec::new(),
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

/// Reads the password, or says why it cannot. May block on a disk.
pub type PasswordSource = Arc<dyn Fn() -> Result<Password, String> + Send + Sync>;

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

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
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
    fn prefixes_follow_the_rule() {
        assert!(KeyPrefix::parse("prod:secrets-1.2_3").is_ok());
        for bad in ["", "a{b", "a}b", "a*", "a?", "a[b]", "a b", "ä", &"x".repeat(65)] {
            assert!(KeyPrefix::parse(bad).is_err(), "{bad}");
        }
    }
}
