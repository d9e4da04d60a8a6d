//! What is left of values in the memory of the process once they have gone.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::FileExt as _,
};

use super::support::{
    documents::{open, prepare, redact, render_text},
    platform::{Platform, Replica, create, resolve, update, with},
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

fn holds(memory: &[Vec<u8>], text: &str) -> bool {
    let find = |bytes: &Vec<u8>| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    memory.iter().any(find)
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
