//! What a workspace's records tell, in words that two workspaces of the same
//! history share: no times, no ids.

use workflow_secrets::{
    domain::{EarlierVersion, RequestId, SecretMetadata, SecretName, WorkspaceId},
    store::{Key, Store, codec},
};

/// All of it, bookkeeping of usage left out.
pub(crate) struct Told {
    pub(crate) lines: Vec<String>,
    /// Each secret with the versions that there should be, the current one last.
    pub(crate) secrets: Vec<(SecretName, Vec<u64>)>,
}

/// Reads the records, and which of the request ids are remembered.
pub(crate) async fn told(store: &dyn Store, workspace: &WorkspaceId, requests: &[&str]) -> Told {
    let (mut lines, mut secrets) = (Vec::new(), Vec::new());
    let records = store.scan(workspace, "", None, 1_000).await.unwrap();
    let keys = store.keys(workspace, "", 1_000).await.unwrap();
    assert!(keys.iter().eq(records.iter().map(|(key, _)| key)), "the index is another");
    for (key, record) in records {
        let (kind, name) = key.as_str().split_once('/').unwrap();
        let bytes = &record.bytes;
        lines.push(match kind {
            "m" => {
                let name = SecretName::parse(name).unwrap();
                let secret = codec::decode_metadata(&name, bytes).unwrap();
                let mut versions = earlier(&secret);
                versions.push(secret.version);
                let line = format!("secret {name} {:?} {versions:?}", secret.managed_by);
                secrets.push((name, versions));
                line
            }
            "v" => format!("value {name}"),
            "h" => format!("earlier value {}", name.split_once('/').unwrap().1),
            "d" => {
                let secret = codec::decode_deleted(&key, bytes).unwrap().metadata;
                format!("deleted {} {} {:?}", secret.name, secret.version, earlier(&secret))
            }
            "a" => {
                let entry = codec::decode_trail(bytes).unwrap();
                let name = entry.name.map(|name| name.to_string());
                let (action, restored) = (entry.action, entry.restored_version);
                let request = entry.request_id.is_some();
                format!("trail {action} {name:?} {} {restored} {request}", entry.version)
            }
            "k" => {
                let retired = codec::decode_data_key(bytes).unwrap().retire_time.is_some();
                assert_eq!(retired, key != Key::active_data_key());
                format!("data key, retired: {retired}")
            }
            "l" => {
                let lease = codec::decode_lease(&SecretName::parse(name).unwrap(), bytes).unwrap();
                format!("lease {name} {} {:?}", lease.version, lease.held_by)
            }
            "t" => "tombstone".to_owned(),
            // Marks for who destroys data keys, and usage.
            "p" | "u" | "w" => continue,
            _ => panic!("{key}"),
        });
    }
    for id in requests {
        let remembered = store.request(workspace, &RequestId::parse(id).unwrap()).await.unwrap();
        lines.push(format!("request {id}: {}", remembered.is_some()));
    }
    lines.sort();
    Told { lines, secrets }
}

fn earlier(secret: &SecretMetadata) -> Vec<u64> {
    secret.earlier.iter().map(|EarlierVersion { version, .. }| *version).collect()
}
