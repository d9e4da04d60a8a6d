//! The address of a Redis as a setting.

use std::fmt;

/// Host and port of one process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Who is master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Whoever is found there.
    One(Address),
    /// Whoever these sentinels say, under this name.
    Sentinels(Vec<Address>, String),
    /// For each slot, whoever these nodes and those that they name say.
    Cluster(Vec<Address>),
}

/// Address of a Redis, without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) tls: bool,
    pub(super) place: Place,
    pub(super) database: i64,
}

const FORM: &str = "must be redis[s]://host[:port][/database], \
                    redis[s]-sentinel://host[:port],.../master-name[/database] or \
                    redis[s]-cluster://host[:port],...";

impl RedisUrl {
    /// Parses one of
    ///
    /// - `redis://host[:port][/database]`: one Redis,
    /// - `redis-sentinel://host[:port],.../master-name[/database]`: sentinels,
    ///   which say where the master is,
    /// - `redis-cluster://host[:port],...`: nodes of a cluster, which name the
    ///   others,
    ///
    /// or the same with `rediss` for TLS, also to the sentinels. The port is
    /// 6379 unless told, of sentinels 26379; the database 0.
    ///
    /// # Errors
    /// The rule it breaks. Credentials are refused, since a URL is printed by
    /// many tools; and a database, of a cluster, which has but one.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let (tls, kind) = match scheme.split_once('-').unwrap_or((scheme, "")) {
            ("redis", kind) => (false, kind),
            ("rediss", kind) => (true, kind),
            _ => return Err(FORM),
        };
        if rest.contains('@') {
            return Err("must not hold a user or a password: they have settings of their own");
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        match kind {
            "" => {
                let place = Place::One(address(hosts, 6379)?);
                Ok(Self { tls, place, database: database(path)? })
            }
            "sentinel" => {
                let (name, number) = path.split_once('/').unwrap_or((path, ""));
                // As sentinels demand it.
                let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
                if name.is_empty() || !name.bytes().all(ok) {
                    return Err("must name the master after the sentinels, such as /mymaster");
                }
                let place = Place::Sentinels(addresses(hosts, 26379)?, name.to_owned());
                Ok(Self { tls, place, database: database(number)? })
            }
            "cluster" if database(path)? == 0 => {
                Ok(Self { tls, place: Place::Cluster(addresses(hosts, 6379)?), database: 0 })
            }
            "cluster" => Err("must not name a database: a cluster has only database 0"),
            _ => Err(FORM),
        }
    }

    /// Whether it demands TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether it leads to sentinels.
    pub fn has_sentinels(&self) -> bool {
        matches!(self.place, Place::Sentinels(..))
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster(_))
    }

    /// The hosts that it names.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let addresses = match &self.place {
            Place::One(address) => std::slice::from_ref(address),
            Place::Sentinels(addresses, _) | Place::Cluster(addresses) => addresses,
        };
        addresses.iter().map(|address| address.host.as_str())
    }
}

fn database(text: &str) -> Result<i64, &'static str> {
    match text {
        "" => Ok(0),
        text => text
            .parse::<u16>()
            .map(i64::from)
            .map_err(|_| "must end with a database number or none"),
    }
}

fn addresses(text: &str, port: u16) -> Result<Vec<Address>, &'static str> {
    text.split(',').map(|text| address(text, port)).collect()
}

fn address(text: &str, default: u16) -> Result<Address, &'static str> {
    let (host, port) = match text.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((host, port)) => (host, port),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| "must have ports of 1 to 65535 or none")?,
        None if port.is_empty() => default,
        None => return Err(FORM),
    };
    let host_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(host_ok) || port == 0 {
        return Err(FORM);
    }
    Ok(Address { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn urls_follow_the_rule() {
        for (text, tls, place, database) in [
            ("redis://localhost", false, Place::One(at("localhost", 6379)), 0),
            ("redis://10.0.0.1:6380/", false, Place::One(at("10.0.0.1", 6380)), 0),
            ("rediss://cache.example:6390/3", true, Place::One(at("cache.example", 6390)), 3),
            ("redis://[::1]", false, Place::One(at("::1", 6379)), 0),
            ("rediss://[::1]:7000/1", true, Place::One(at("::1", 7000)), 1),
            (
                "redis-sentinel://a,b:1/my-master",
                false,
                Place::Sentinels(vec![at("a", 26379), at("b", 1)], "my-master".into()),
                0,
            ),
            (
                "rediss-sentinel://[::1]:5,c/m.1_2/7",
                true,
                Place::Sentinels(vec![at("::1", 5), at("c", 26379)], "m.1_2".into()),
                7,
            ),
            ("redis-cluster://a", false, Place::Cluster(vec![at("a", 6379)]), 0),
            ("rediss-cluster://a:1,b/0", true, Place::Cluster(vec![at("a", 1), at("b", 6379)]), 0),
        ] {
            assert_eq!(RedisUrl::parse(text), Ok(RedisUrl { tls, place, database }), "{text}");
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
            "redis://a,b",
            "redis-other://a",
            "redis-sentinel://a,b",
            "redis-sentinel://a,b/",
            "redis-sentinel://a,/m",
            "redis-sentinel:///m",
            "redis-sentinel://a/m/x",
            "redis-sentinel://a/m m",
            "redis-sentinel://user:secret@a/m",
            "redis-cluster://",
            "redis-cluster://a,,b",
            "redis-cluster://a/1",
            "redis-cluster://a/x",
        ] {
            assert!(RedisUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_shown_as_they_are_read() {
        for text in ["host:6379", "[::1]:1"] {
            assert_eq!(address(text, 9).map(|address| address.to_string()), Ok(text.to_owned()));
        }
    }
}
