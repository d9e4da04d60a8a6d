//! The same contract on moto, a KMS that others wrote. It ignores key states
//! and never throttles, so faults are tested elsewhere.

use std::{env, net::TcpListener, process::Stdio, time::Duration};

use tokio::{
    net::TcpStream,
    process::{Child, Command},
};
use workflow_secrets::{
    domain::{DataKeyId, WrappedDataKey},
    kms::{
        EncryptionContext, Kms as _,
        aws::{AwsKms, AwsKmsConfig, KmsKeyId, PreviousKey},
    },
};

use crate::{
    kms::{assert_wrong, context, contract, now},
    support::kms_endpoint::sdk_config,
};

struct Moto {
    url: String,
    // Killed on drop.
    _process: Child,
}

impl Moto {
    /// Starts `moto.server` of the Python in `WFS_TOOLS_PYTHON`, or `python3`.
    async fn start() -> Self {
        let python = env::var("WFS_TOOLS_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut process = Command::new(&python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {python} (see WFS_TOOLS_PYTHON): {error}"));
        let answers = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                if let Some(status) = process.try_wait().unwrap() {
                    panic!(
                        "{python} -m moto.server ended with {status}: install moto[server] \
                         there, or name a Python that has it in WFS_TOOLS_PYTHON"
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), answers).await.expect("moto answers");
        Self { url: format!("http://127.0.0.1:{port}"), _process: process }
    }

    fn admin(&self) -> aws_sdk_kms::Client {
        let config = aws_sdk_kms::config::Builder::from(&sdk_config()).endpoint_url(&self.url);
        aws_sdk_kms::Client::from_conf(config.build())
    }

    fn kms(&self, key: &str, previous: &[&str]) -> AwsKms {
        let config = AwsKmsConfig {
            previous_keys: previous.iter().map(|key| PreviousKey::parse(key).unwrap()).collect(),
            endpoint: Some(self.url.clone()),
            // A Python server on a busy machine; limits are tested elsewhere.
            attempt_timeout: Duration::from_secs(30),
            operation_timeout: Duration::from_secs(60),
            ..AwsKmsConfig::new(KmsKeyId::parse(key).unwrap())
        };
        AwsKms::new(config, &sdk_config()).unwrap()
    }
}

#[tokio::test]
async fn moto_agrees() {
    let moto = Moto::start().await;
    let admin = moto.admin();
    // No multi-Region key: moto 5.2 cannot decrypt what it encrypts with one.
    let mut arns = Vec::new();
    for _ in 0..2 {
        let made = admin.create_key().send().await.unwrap();
        arns.push(made.key_metadata.unwrap().arn.unwrap());
    }
    let [old, new] = &*arns else { panic!("two keys") };
    admin.create_alias().alias_name("alias/secrets").target_key_id(old).send().await.unwrap();
    for key in ["alias/secrets", old, old.rsplit('/').next().unwrap()] {
        contract(&moto.kms(key, &[])).await;
    }

    let wrapped =
        moto.kms("alias/secrets", &[]).generate_data_key(&context(), now()).await.unwrap();
    assert_eq!(&wrapped.kms_key_id, old);
    admin.update_alias().alias_name("alias/secrets").target_key_id(new).send().await.unwrap();
    let kms = moto.kms("alias/secrets", &[old]);
    kms.decrypt(&context(), &wrapped).await.unwrap();
    assert_eq!(&kms.generate_data_key(&context(), now()).await.unwrap().kms_key_id, new);
    let anew = kms.rewrap(&context(), &wrapped).await.unwrap();
    assert_eq!(&anew.kms_key_id, new);
    let before = kms.decrypt(&context(), &wrapped).await.unwrap();
    let after = moto.kms("alias/secrets", &[]).decrypt(&context(), &anew).await.unwrap();
    assert_eq!(before.expose(), after.expose());

    let mut blob = wrapped.blob.clone();
    *blob.last_mut().unwrap() ^= 1;
    assert_wrong(kms.decrypt(&context(), &WrappedDataKey { blob, ..wrapped.clone() }).await);
    let id = DataKeyId::from_bytes([9; 16]);
    let other = EncryptionContext { data_key: id, ..context() };
    assert_wrong(kms.decrypt(&other, &WrappedDataKey { id, ..wrapped }).await);
}
