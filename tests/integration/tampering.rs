//! Whoever may write to Redis can destroy secrets, but cannot make the service
//! hand out another value than the right one, nor make it fall over.

use std::collections::BTreeSet;

use tonic::{Code, Status};

use super::support::{
    platform::{
        Client, Platform, Replica, assert_refused, create, delete, get, list, reason, resolve,
        update, value,
    },
    raw_redis::RawRedis,
    redis_server::Options,
};

/// A platform with one replica, its clients, and the attacker's connection.
struct Scene {
    platform: Platform,
    replica: Replica,
    writer: Client,
    reader: Client,
    raw: RawRedis,
}

impl Scene {
    async fn set() -> Self {
        let platform = Platform::start_with(Options::default()).await;
        let replica = platform.replica().await;
        let writer = platform.client(&replica, "platform").await;
        let reader = platform.client(&replica, "executor").await;
        let raw = RawRedis::connect(&platform.redis);
        Self { platform, replica, writer, reader, raw }
    }

    async fn create(&mut self, workspace: &str, name: &str, value: &str) {
        self.writer.create_secret(create(workspace, name, value)).await.unwrap();
    }

    async fn update(&mut self, workspace: &str, name: &str, value: &str) {
        let mut change = update(workspace, name);
        change.value = Some(value.to_owned());
        self.writer.update_secret(change).await.unwrap();
    }

    /// A replica that has no data key in memory, and a reader of it.
    async fn cold(&self, flags: &[&str]) -> (Replica, Client) {
        let replica = self.platform.replica_with(flags).await;
        let reader = self.platform.client(&replica, "executor").await;
        (replica, reader)
    }

    async fn intact(&self, replica: &Replica) {
        let health = replica.health(&self.platform, "").await;
        assert!(health.is_some(), "gone: {}", replica.stderr());
        assert!(!replica.stderr().contains("panicked"), "{}", replica.stderr());
    }
}

async fn read(reader: &mut Client, workspace: &str, name: &str) -> Result<String, Status> {
    let answer = reader.resolve_secrets(resolve(workspace, &[name])).await?;
    Ok(value(&answer.into_inner(), name))
}

/// That a record is lost, and for which of the two reasons.
#[track_caller]
fn lost(outcome: Result<String, Status>, what: &str) -> String {
    let status = outcome.expect_err(what);
    let (code, reason) = reason(&status);
    assert_eq!(code, Code::DataLoss, "{what}: {status:?}");
    assert!(["RECORD_CORRUPT", "DATA_KEY_MISSING"].contains(&reason.as_str()), "{what}: {reason}");
    reason
}

fn flipped(record: &[u8], byte: usize) -> Vec<u8> {
    let mut record = record.to_vec();
    record[byte] ^= 1 << (byte % 8);
    record
}

#[tokio::test]
async fn a_value_opens_in_no_other_place() {
    let mut scene = Scene::set().await;
    scene.create("a", "ONE", "first").await;
    let first = scene.raw.records("a");
    scene.update("a", "ONE", "second").await;
    scene.create("a", "TWO", "other").await;
    scene.create("a", "AGAIN", "before").await;
    let before = scene.raw.record("a", "v/AGAIN");
    scene.writer.delete_secret(delete("a", "AGAIN")).await.unwrap();
    scene.create("a", "AGAIN", "after").await;
    scene.create("b", "ONE", "elsewhere").await;
    scene.create("c", "ONE", "elsewhere").await;
    let (a, b, c) = (scene.raw.records("a"), scene.raw.records("b"), scene.raw.records("c"));
    let (revision, sealed) = (&a["v/ONE"][..8], &a["v/TWO"][8..]);
    let disguised = [revision, sealed].concat();

    // Workspace, secret, what is put where, and the reason.
    type Put<'a> = (&'a str, &'a Vec<u8>);
    let cases: [(&str, &str, &[Put<'_>], &str); 9] = [
        ("a", "ONE", &[("v/ONE", &a["v/TWO"])], "RECORD_CORRUPT"),
        ("a", "ONE", &[("v/ONE", &disguised)], "RECORD_CORRUPT"),
        ("a", "ONE", &[("v/ONE", &a["v/TWO"]), ("m/ONE", &a["m/TWO"])], "RECORD_CORRUPT"),
        ("a", "ONE", &[("v/ONE", &first["v/ONE"])], "RECORD_CORRUPT"),
        ("a", "ONE", &[("m/ONE", &first["m/ONE"])], "RECORD_CORRUPT"),
        ("a", "AGAIN", &[("v/AGAIN", &before)], "RECORD_CORRUPT"),
        ("b", "ONE", &[("v/ONE", &a["v/ONE"])], "DATA_KEY_MISSING"),
        ("b", "ONE", &[("v/ONE", &a["v/ONE"]), ("m/ONE", &a["m/ONE"])], "DATA_KEY_MISSING"),
        (
            "c",
            "ONE",
            &[("v/ONE", &a["v/ONE"]), ("m/ONE", &a["m/ONE"]), ("k/active", &a["k/active"])],
            "RECORD_CORRUPT",
        ),
    ];
    // Both with the data keys in memory and without.
    let (cold, mut stranger) = scene.cold(&[]).await;
    for (i, (workspace, name, puts, why)) in cases.into_iter().enumerate() {
        for (key, record) in puts {
            scene.raw.set(workspace, key, record);
        }
        let what = format!("case {i}");
        assert_eq!(lost(read(&mut scene.reader, workspace, name).await, &what), why, "{what}");
        assert_eq!(lost(read(&mut stranger, workspace, name).await, &what), why, "{what}");
        scene.raw.restore("a", &a);
        scene.raw.restore("b", &b);
        scene.raw.restore("c", &c);
        let right = match (workspace, name) {
            ("a", "ONE") => "second",
            ("a", _) => "after",
            _ => "elsewhere",
        };
        // Nothing of it sticks.
        assert_eq!(read(&mut scene.reader, workspace, name).await.unwrap(), right, "{what}");
    }

    // Half a secret is none.
    scene.raw.remove("a", "v/ONE");
    assert_eq!(lost(read(&mut scene.reader, "a", "ONE").await, "no value"), "RECORD_CORRUPT");
    scene.raw.restore("a", &a);
    scene.raw.remove("a", "m/ONE");
    let absent = scene.reader.resolve_secrets(resolve("a", &["ONE"])).await;
    assert_refused(absent, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    scene.intact(&scene.replica).await;
    scene.intact(&cold).await;
}

#[tokio::test]
async fn a_replica_of_another_environment_opens_and_adds_nothing() {
    let mut scene = Scene::set().await;
    scene.create("a", "ONE", "value").await;
    let before = scene.raw.records("a");
    let (other, mut reader) = scene.cold(&["--environment", "other"]).await;
    assert_eq!(lost(read(&mut reader, "a", "ONE").await, "read"), "RECORD_CORRUPT");
    let mut writer = scene.platform.client(&other, "platform").await;
    let added = writer.create_secret(create("a", "TWO", "value")).await;
    lost(added.map(|_| String::new()), "create");
    let mut change = update("a", "ONE");
    change.value = Some("changed".to_owned());
    lost(writer.update_secret(change).await.map(|_| String::new()), "update");
    assert!(scene.raw.records("a") == before);
    assert_eq!(read(&mut scene.reader, "a", "ONE").await.unwrap(), "value");
    scene.intact(&other).await;
}

#[tokio::test]
async fn no_flipped_byte_and_no_truncation_of_a_value_opens() {
    let mut scene = Scene::set().await;
    scene.create("a", "ONE", "value").await;
    let record = scene.raw.record("a", "v/ONE");
    assert_eq!(record.len(), 8 + 106 + 64 + 16);
    for byte in 0..record.len() {
        scene.raw.set("a", "v/ONE", &flipped(&record, byte));
        let outcome = read(&mut scene.reader, "a", "ONE").await;
        // The engine's own copy of the revision is not what opening goes by.
        match (byte < 8, outcome) {
            (true, Ok(value)) => assert_eq!(value, "value"),
            (_, outcome) => drop(lost(outcome, &format!("byte {byte}"))),
        }
    }
    for len in 0..record.len() {
        scene.raw.set("a", "v/ONE", &record[..len]);
        lost(read(&mut scene.reader, "a", "ONE").await, &format!("{len} bytes"));
    }
    for more in [1, 16, 64, 4_096, 70_000] {
        let longer = [record.as_slice(), &vec![0; more]].concat();
        scene.raw.set("a", "v/ONE", &longer);
        lost(read(&mut scene.reader, "a", "ONE").await, &format!("{more} bytes more"));
    }
    scene.raw.set("a", "v/ONE", &record);
    assert_eq!(read(&mut scene.reader, "a", "ONE").await.unwrap(), "value");
    scene.intact(&scene.replica).await;
}

#[tokio::test]
async fn no_changed_metadata_opens_another_value() {
    let mut scene = Scene::set().await;
    let mut request = create("a", "ONE", "value");
    request.description = "für Zahlungen".to_owned();
    scene.writer.create_secret(request).await.unwrap();
    scene.create("a", "TWO", "other").await;
    let record = scene.raw.record("a", "m/ONE");
    let mut refused = 0;
    for byte in 0..record.len() {
        for changed in [flipped(&record, byte), record[..byte].to_vec()] {
            scene.raw.set("a", "m/ONE", &changed);
            match read(&mut scene.reader, "a", "ONE").await {
                Ok(value) => assert_eq!(value, "value", "byte {byte}"),
                outcome => {
                    lost(outcome, &format!("byte {byte}"));
                    refused += 1;
                }
            }
            // What shows metadata shows it or tells the loss.
            let shown = scene.writer.get_secret(get("a", "ONE")).await.map(drop);
            let listed = scene.writer.list_secrets(list("a")).await.map(drop);
            for status in [shown, listed].into_iter().filter_map(Result::err) {
                assert_eq!(reason(&status), (Code::DataLoss, "RECORD_CORRUPT".to_owned()));
            }
        }
    }
    // At the least what it binds: name, uid, revision of the value.
    assert!(refused > 2 * (3 + 16 + 8), "{refused}");
    scene.intact(&scene.replica).await;
}

#[tokio::test]
async fn no_changed_data_key_opens_or_seals_anything() {
    let mut scene = Scene::set().await;
    scene.create("probe", "ONE", "value").await;
    let len = scene.raw.record("probe", "k/active").len();
    // A workspace per byte: each is cold on the second replica.
    for byte in 0..len {
        let workspace = format!("w{byte}");
        scene.create(&workspace, "ONE", "value").await;
        let record = scene.raw.record(&workspace, "k/active");
        // The time in it may be a byte longer or shorter.
        scene.raw.set(&workspace, "k/active", &flipped(&record, byte % record.len()));
    }
    let (cold, mut reader) = scene.cold(&[]).await;
    let mut writer = scene.platform.client(&cold, "platform").await;
    let (generates, mut opened) = (scene.platform.kms.generates(), 0);
    for byte in 0..len {
        let workspace = format!("w{byte}");
        match read(&mut reader, &workspace, "ONE").await {
            Ok(value) => {
                assert_eq!(value, "value");
                opened += 1;
            }
            outcome => {
                lost(outcome, &format!("byte {byte}"));
                let records = scene.raw.records(&workspace);
                let added = writer.create_secret(create(&workspace, "TWO", "value")).await;
                lost(added.map(|_| String::new()), &format!("byte {byte}, create"));
                assert!(scene.raw.records(&workspace) == records);
            }
        }
    }
    assert!(opened < len / 2, "{opened} of {len}: id and blob must not be open to change");
    assert_eq!(scene.platform.kms.generates(), generates);

    // Swapped between workspaces, whole or only the wrapped key.
    for (workspace, record) in [("x", "value x"), ("y", "value y")] {
        scene.create(workspace, "ONE", record).await;
    }
    let (x, y) = (scene.raw.record("x", "k/active"), scene.raw.record("y", "k/active"));
    // Revision 8, tag and length 2, id 16.
    let blob = [&x[..26], &y[26..]].concat();
    scene.raw.set("x", "k/active", &blob);
    assert_eq!(lost(read(&mut reader, "x", "ONE").await, "blob"), "RECORD_CORRUPT");
    let (colder, mut reader) = scene.cold(&[]).await;
    scene.raw.set("x", "k/active", &y);
    scene.raw.set("y", "k/active", &x);
    for workspace in ["x", "y"] {
        assert_eq!(lost(read(&mut reader, workspace, "ONE").await, "swap"), "DATA_KEY_MISSING");
        let added = scene.writer.create_secret(create(workspace, "TWO", "value")).await;
        assert_eq!(lost(added.map(|_| String::new()), "create"), "RECORD_CORRUPT");
        // Where the right key is in memory, it opens the right value.
        let value = read(&mut scene.reader, workspace, "ONE").await.unwrap();
        assert_eq!(value, format!("value {workspace}"));
    }
    for replica in [&scene.replica, &cold, &colder] {
        scene.intact(replica).await;
    }
}

#[tokio::test]
async fn over_a_missing_data_key_nothing_is_made() {
    let mut scene = Scene::set().await;
    // Records left, a tombstone alone, something foreign alone.
    scene.create("left", "ONE", "value").await;
    let key = scene.raw.record("left", "k/active");
    scene.raw.remove("left", "k/active");
    scene.raw.set("dead", "t/", b"\0\0\0\0\0\0\0\x01");
    scene.raw.set("foreign", "what", b"ever");
    let (cold, mut stranger) = scene.cold(&[]).await;
    let mut cold_writer = scene.platform.client(&cold, "platform").await;
    let generates = scene.platform.kms.generates();
    let before = BTreeSet::from_iter(scene.raw.keys());

    for workspace in ["left", "dead", "foreign"] {
        let records = scene.raw.records(workspace);
        for writer in [&mut scene.writer, &mut cold_writer] {
            for name in ["ONE", "TWO"] {
                let mut change = update(workspace, name);
                change.value = Some("new".to_owned());
                change.allow_missing = true;
                change.request_id = format!("update-{name}");
                let changed = writer.update_secret(change).await.map(|_| String::new());
                assert_eq!(lost(changed, workspace), "DATA_KEY_MISSING");
            }
            let mut request = create(workspace, "TWO", "new");
            request.request_id = "create".to_owned();
            let created = writer.create_secret(request).await.map(|_| String::new());
            assert_eq!(lost(created, workspace), "DATA_KEY_MISSING");
        }
        assert!(scene.raw.records(workspace) == records, "{workspace}");
    }
    assert_eq!(scene.platform.kms.generates(), generates, "not even made");
    assert!(BTreeSet::from_iter(scene.raw.keys()) == before, "nothing is remembered");

    // What is in memory goes on opening; what is not is lost until the key is
    // put back.
    assert_eq!(read(&mut scene.reader, "left", "ONE").await.unwrap(), "value");
    assert_eq!(lost(read(&mut stranger, "left", "ONE").await, "cold"), "DATA_KEY_MISSING");
    scene.raw.set("left", "k/active", &key);
    scene.create("left", "TWO", "more").await;
    let (fresh, mut reader) = scene.cold(&[]).await;
    assert_eq!(read(&mut reader, "left", "ONE").await.unwrap(), "value");
    assert_eq!(read(&mut reader, "left", "TWO").await.unwrap(), "more");
    for replica in [&scene.replica, &cold, &fresh] {
        scene.intact(replica).await;
    }
}

#[tokio::test]
async fn a_workspace_without_secrets_keeps_its_data_key() {
    let mut scene = Scene::set().await;
    scene.create("a", "ONE", "value").await;
    scene.create("a", "TWO", "value").await;
    let key = scene.raw.record("a", "k/active");
    for name in ["ONE", "TWO"] {
        let mut deletion = delete("a", name);
        deletion.permanent = true;
        scene.writer.delete_secret(deletion).await.unwrap();
    }
    let left = scene.raw.records("a").into_iter().filter(|(key, _)| !key.starts_with("a/"));
    let left: Vec<_> = left.collect();
    assert!(left == [("k/active".to_owned(), key.clone())]);
    let generates = scene.platform.kms.generates();
    scene.create("a", "ONE", "again").await;
    assert_eq!(scene.platform.kms.generates(), generates);
    assert!(scene.raw.record("a", "k/active") == key);
    assert_eq!(read(&mut scene.reader, "a", "ONE").await.unwrap(), "again");
}
