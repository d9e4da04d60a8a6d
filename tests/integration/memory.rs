//! What is left of values in the memory of the process once they have gone.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use aws_lc_rs::hkdf;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::support::{
    documents::{open, prepare, redact, render_text},
    platform::{Platform, Replica, create, resolve, update, with},
    raw_redis::RawRedis,
    redis_server::{Options, until},
};

const WS: &str = "ws_memory";

/// All memory of a process that can be read; `None`: not even by its own user,
/// unless that is root.
fn memory(replica: &Replica) -> Option<Vec<Vec<u8>>> {
    let process = format!("/proc/{}", replica.pid());
    let memory = match File::open(format!("{process}/mem")) {
        Ok(memory) => memory,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            return None;
        }
    };
    let mut all = Vec::new();
    for line in fs::read_to_string(format!("{process}/maps")).unwrap().lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        // Writable memory: values are nowhere else.
        if rest.starts_with("rw") {
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                all.push(bytes);
            }
        }
    }
    Some(all)
}

fn holds(memory: &[Vec<u8>], what: impl AsRef<[u8]>) -> bool {
    let what = what.as_ref();
    let find = |bytes: &Vec<u8>| bytes.windows(what.len()).any(|part| part == what);
    memory.iter().any(find)
}

/// Waits for something to become true, long enough for a busy machine.
async fn within_a_minute(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "did not come about");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The key that seals one record, derived as the format says.
fn record_key(data_key: &[u8; 32], record: &[u8]) -> [u8; 32] {
    struct Length;
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            32
        }
    }
    // After the store's revision: magic, suite, data-key id, revision.
    let salt = &record[8 + 4 + 2 + 16 + 8..][..32];
    let label = b"workflow-secrets/v1/hkdf-sha512-aes-256-gcm/record-key";
    let mut key = [0; 32];
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA512, salt).extract(data_key);
    prk.expand(&[label], Length).unwrap().fill(&mut key).unwrap();
    key
}

/// Values pass through buffers of HTTP/2, TLS and protobuf libraries, which do
/// not overwrite them; the allocator does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_value_once_its_connections_have_ended() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    // 32 random bytes each, as no text of this program holds them.
    let [value, other] = [0, 1].map(|_| {
        hex::encode(
            [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes).concat(),
        )
    });
    {
        let mut people = platform.client(&replica, "platform").await;
        let mut reader = platform.client(&replica, "executor").await;
        people.create_secret(create(WS, "KEY", &value)).await.unwrap();
        for _ in 0..20 {
            reader.resolve_secrets(resolve(WS, &["KEY"])).await.unwrap();
            let request = render_text(WS, "Bearer {{secrets.KEY}}");
            reader.render_template(request).await.unwrap();
        }
        let text = format!("got {value}");
        redact(&mut reader, open(WS, &[]), &[text.as_bytes()]).await.unwrap();
        let pasted = serde_json::json!([value]).to_string();
        people.prepare_template(prepare(WS, &pasted)).await.unwrap();
        // The search can find what is there: the matcher holds the value.
        if let Some(memory) = memory(&replica) {
            assert!(holds(&memory, &value));
        }
        let change = with(update(WS, "KEY"), |r| r.value = Some(other.clone()));
        people.update_secret(change).await.unwrap();
        reader.resolve_secrets(resolve(WS, &["KEY"])).await.unwrap();
    }
    // Connections end, and with them their buffers, a moment later.
    let gone = |text: &str| memory(&replica).is_none_or(|memory| !holds(&memory, text));
    until(|| gone(&value) && gone(&other)).await;
    if let Some(memory) = memory(&replica) {
        assert!(holds(&memory, "spiffe://test/executor"), "the policy is still there");
    }
}

/// A data key goes through JSON, base64, HTTP and HKDF. Once it is too old, no
/// copy of it is left, nor a key that was derived from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_data_key_that_nobody_asks_for() {
    let mut platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica_with(&["--forget-data-keys-after", "20s"]).await;
    let mut people = platform.client(&replica, "platform").await;
    let mut reader = platform.client(&replica, "executor").await;
    for name in ["ONE", "TWO"] {
        people.create_secret(create(WS, name, "value")).await.unwrap();
    }
    for _ in 0..20 {
        reader.resolve_secrets(resolve(WS, &["ONE", "TWO"])).await.unwrap();
        reader.render_template(render_text(WS, "{{secrets.ONE}}")).await.unwrap();
    }
    let [data_key] = platform.kms.data_keys()[..] else { panic!("one data key") };
    let mut redis = RawRedis::connect(&platform.redis);
    let derived = ["ONE", "TWO"].map(|name| {
        let record = redis.record(WS, &format!("v/{name}"));
        assert_eq!(record[8..12], *b"WFS1");
        record_key(&data_key, &record)
    });
    // The search can find what is there: the key is cached.
    if let Some(memory) = memory(&replica) {
        assert!(holds(&memory, data_key));
        // So are keys that were derived from it: they tell nothing that it does not.
        assert!(derived.iter().all(|key| holds(&memory, key)));
    }
    // The connection to the KMS holds what came last until it is used again or
    // ends, after a minute and a half without use.
    platform.kms.stop().await;
    let left = || {
        let copies = [data_key.to_vec(), STANDARD.encode(data_key).into_bytes()];
        let all = copies.into_iter().chain([hex::encode(data_key).into_bytes()]);
        let all: Vec<_> = all.chain(derived.map(Vec::from)).collect();
        memory(&replica).is_some_and(|memory| all.iter().any(|key| holds(&memory, key)))
    };
    within_a_minute(|| !left()).await;
    if let Some(memory) = memory(&replica) {
        assert!(holds(&memory, "spiffe://test/executor"), "the policy is still there");
    }
    // It is not that the process could not read it again.
    platform.kms.restart().await;
    reader.resolve_secrets(resolve(WS, &["ONE"])).await.unwrap();
    if let Some(memory) = memory(&replica) {
        assert!(holds(&memory, data_key));
    }
}
