//! The same of `dev`: values and keys are nowhere but in the answer of a
//! Resolve or Render, and the key-encryption key in its file.

use std::{
    fs::{self, File},
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use tonic::{
    Code::{DataLoss, FailedPrecondition, InvalidArgument, NotFound},
    transport::Endpoint,
};
use workflow_secrets::{
    domain::{Environment, SystemClock, WorkspaceId},
    grpc::proto::secrets_service_client::SecretsServiceClient,
    kms::{EncryptionContext, Kms as _, local::LocalKms},
    store::{
        Batch, Key, Operation, Record, Store as _, Write, codec::decode_data_key,
        embedded::EmbeddedStore,
    },
};

use super::{
    canary::{CANARIES, Told, canaries, files},
    support::{
        documents::{open, prepare, redact, render_text},
        needles::Needles,
        platform::{Client, create, delete, free_address, get, list, resolve, update, value},
    },
};

/// One run of `dev`; killed when dropped.
struct Dev(Child);

impl Dev {
    async fn start(directory: &std::path::Path, run: &str) -> (Self, Client) {
        let address = free_address();
        let output = |name: &str| File::create(directory.join(format!("{name}.{run}"))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_workflow-secrets"))
            .args(["dev", "--log", "trace", "--listen", &address.to_string(), "--data-dir"])
            .arg(directory.join("data"))
            .env("RUST_LOG", "trace")
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .unwrap();
        let dev = Self(child);
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        for _ in 0..500 {
            if let Ok(channel) = endpoint.connect().await {
                return (dev, SecretsServiceClient::new(channel));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("does not start");
    }

    fn end(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_keeps_values_and_keys_to_itself() {
    let directory = tempfile::tempdir().unwrap();
    let mut told = Told::default();
    let (dev, mut client) = Dev::start(directory.path(), "1").await;
    for (i, canary) in CANARIES.into_iter().enumerate() {
        told.refused(
            client.create_secret(create("ws", canary, canary)).await,
            InvalidArgument,
            "INVALID_FIELD",
        );
        let mut change = update("ws", "KEY");
        change.value = Some(canary.to_owned());
        told.refused(client.update_secret(change.clone()).await, NotFound, "SECRET_NOT_FOUND");
        change.allow_missing = true;
        change.request_id = format!("once-{i}");
        told.keep(client.update_secret(change.clone()).await).unwrap();
        told.keep(client.update_secret(change).await).unwrap();
        told.keep(client.create_secret(create("ws", "KEY", canary)).await).unwrap_err();
        told.keep(client.get_secret(get("ws", "KEY")).await).unwrap();
        told.keep(client.list_secrets(list("ws")).await).unwrap();
        let answer = client.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
        assert_eq!(value(&answer.into_inner(), "KEY"), canary);
        let text = format!("{canary} {{{{secrets.KEY}}}}");
        let answer = client.render_template(render_text("ws", &text)).await.unwrap();
        assert_eq!(answer.get_ref().rendered, format!("{canary} {canary}"));
        let document = serde_json::json!({ canary: text }).to_string();
        let prepared = told.keep(client.prepare_template(prepare("ws", &document)).await).unwrap();
        assert_eq!(prepared.pasted.len(), 2);
        let done = redact(&mut client, open("ws", &[]), &[text.as_bytes()]).await.unwrap();
        assert_eq!(done.text, "{{secrets.KEY}} {{secrets.KEY}}");
        told.keep(client.delete_secret(delete("ws", "KEY")).await).unwrap();
        told.refused(
            client.render_template(render_text("ws", &text)).await,
            FailedPrecondition,
            "SECRETS_UNRESOLVED",
        );
        let mut request = create("ws", "KEY", canary);
        request.request_id = format!("once-{i}");
        told.refused(client.create_secret(request).await, InvalidArgument, "REQUEST_ID_REUSED");
    }
    told.keep(client.create_secret(create("ws", "KEY", CANARIES[1])).await).unwrap();
    drop(client);
    dev.end();

    // The data key, from the files that hold it, and damage for the next run.
    let data = directory.path().join("data");
    let workspace = WorkspaceId::parse("ws").unwrap();
    let kms = LocalKms::open_or_create(&data.join("kek")).unwrap();
    let store = EmbeddedStore::open(&data.join("store.redb"), Arc::new(SystemClock::default()));
    let store = store.unwrap_or_else(|error| panic!("{error}"));
    let records = store.read(&workspace, &[Key::active_data_key()]).await.unwrap();
    let wrapped = decode_data_key(&records[0].as_ref().unwrap().bytes).unwrap().wrapped;
    let environment = Environment::parse("dev").unwrap();
    let context =
        EncryptionContext { environment, workspace: workspace.clone(), data_key: wrapped.id };
    let key = kms.decrypt(&context, &wrapped).await.unwrap_or_else(|error| panic!("{error}"));
    let metadata = store.scan(&workspace, Key::VALUE, None, 1).await.unwrap().remove(0);
    let (at, Record { revision, mut bytes }) = metadata;
    *bytes.last_mut().unwrap() ^= 1;
    let write = Write::Put(Record { revision, bytes });
    let operations = vec![Operation { key: at, expect: None, write }];
    store.commit(&workspace, Batch { operations, ..Batch::default() }).await.unwrap();
    drop(store);

    let (dev, mut client) = Dev::start(directory.path(), "2").await;
    let refused = client.resolve_secrets(resolve("ws", &["KEY"])).await;
    told.refused(refused, DataLoss, "RECORD_CORRUPT");
    drop(client);
    dev.end();

    let kek = fs::read(data.join("kek")).unwrap();
    let mut places = vec![("answers and errors".to_owned(), told.into_bytes())];
    files(directory.path(), &mut places);
    // The file is that key behind a few bytes that mark it.
    let kek = Needles::new([("key-encryption key", &kek[kek.len() - 32..])]);
    Needles::new(canaries().chain([("data key", key.expose().as_slice())])).assert_absent(&places);
    for name in ["store.redb", "audit.jsonl", "stdout.1", "stderr.1", "stderr.2", "/kek"] {
        assert!(places.iter().any(|(place, _)| place.ends_with(name)), "no {name}");
    }
    let (file, others): (Vec<_>, Vec<_>) =
        places.into_iter().partition(|(place, _)| place.ends_with("/kek"));
    assert_eq!(kek.found_in(&file[0].1), ["key-encryption key, raw"]);
    kek.assert_absent(&others);
}
