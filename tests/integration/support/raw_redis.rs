//! What lies in Redis, byte for byte, past the service.

use std::collections::BTreeMap;

use redis::{Client, Connection, FromRedisValue, Value};

use super::redis_server::RedisServer;

/// Records of a workspace by key, each with its revision in front.
pub(crate) type Records = BTreeMap<String, Vec<u8>>;

/// A connection of the test's own.
pub(crate) struct RawRedis(Connection);

impl RawRedis {
    pub(crate) fn connect(server: &RedisServer) -> Self {
        Self(Client::open(server.url()).unwrap().get_connection().unwrap())
    }

    pub(crate) fn command<T: FromRedisValue>(&mut self, parts: &[&[u8]]) -> T {
        let mut command = redis::Cmd::new();
        for part in parts {
            command.arg(*part);
        }
        command.query(&mut self.0).unwrap()
    }

    pub(crate) fn records(&mut self, workspace: &str) -> Records {
        self.command(&[b"HGETALL", hash(workspace).as_bytes()])
    }

    pub(crate) fn record(&mut self, workspace: &str, key: &str) -> Vec<u8> {
        self.records(workspace).remove(key).unwrap()
    }

    pub(crate) fn set(&mut self, workspace: &str, key: &str, record: &[u8]) {
        let hash = hash(workspace);
        self.command::<Value>(&[b"HSET", hash.as_bytes(), key.as_bytes(), record]);
    }

    pub(crate) fn remove(&mut self, workspace: &str, key: &str) {
        self.command::<Value>(&[b"HDEL", hash(workspace).as_bytes(), key.as_bytes()]);
    }

    /// Puts back all records as they were.
    pub(crate) fn restore(&mut self, workspace: &str, records: &Records) {
        self.command::<Value>(&[b"DEL", hash(workspace).as_bytes()]);
        for (key, record) in records {
            self.set(workspace, key, record);
        }
    }

    /// All keys of the server.
    pub(crate) fn keys(&mut self) -> Vec<Vec<u8>> {
        let (mut cursor, mut found) = (b"0".to_vec(), vec![]);
        loop {
            let (next, keys): (Vec<u8>, Vec<Vec<u8>>) =
                self.command(&[b"SCAN", &cursor, b"COUNT", b"1000"]);
            found.extend(keys);
            if next == b"0" {
                return found;
            }
            cursor = next;
        }
    }

    /// Every key with all that is under it.
    pub(crate) fn everything(&mut self) -> Vec<u8> {
        let mut all = vec![];
        for key in self.keys() {
            let kind: String = self.command(&[b"TYPE", &key]);
            let parts: Vec<Vec<u8>> = match kind.as_str() {
                "hash" => self.command(&[b"HGETALL", &key]),
                "zset" => self.command(&[b"ZRANGE", &key, b"0", b"-1"]),
                "list" => self.command(&[b"LRANGE", &key, b"0", b"-1"]),
                "string" => vec![self.command(&[b"GET", &key])],
                other => panic!("a key of type {other}"),
            };
            all.extend(
                [key].into_iter().chain(parts).flat_map(|part| [part, vec![b'\n']]).flatten(),
            );
        }
        all
    }
}

/// The Redis key of a workspace's records.
pub(crate) fn hash(workspace: &str) -> String {
    format!("workflow-secrets:{{{workspace}}}:records")
}
