//! The policy and the TLS files are loaded again when they change.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use workflow_secrets::{
    domain::{CallerId, WorkspaceId},
    grpc::tls,
    service::access::Policy,
    watch::Watch,
};

use crate::support::pki::{self, Ca};

const INTERVAL: Duration = Duration::from_millis(10);
/// Far longer than anything here takes: a hung test fails instead.
const PATIENCE: Duration = Duration::from_secs(20);

fn policy(workspace: &str) -> String {
    format!(
        "[[grant]]\ncaller = 'spiffe://td/a'\nrole = 'executor'\nworkspaces = ['{workspace}']\n"
    )
}

struct Watched {
    policy: Arc<ArcSwap<Policy>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Watched {
    fn start(file: &Path) -> Self {
        let path = file.to_owned();
        let load = move || {
            let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            Policy::parse(&text).map(Arc::new).map_err(|errors| errors.to_string())
        };
        let watch = Watch::start("policy", vec![file.to_owned()], load).unwrap();
        let (policy, shutdown) = (watch.current(), CancellationToken::new());
        let task = tokio::spawn(watch.run(INTERVAL, shutdown.clone()));
        Self { policy, shutdown, task }
    }

    fn grants(&self, workspace: &str) -> bool {
        let caller = CallerId::parse("spiffe://td/a").unwrap();
        self.policy.load().grants(&caller, &WorkspaceId::parse(workspace).unwrap()).resolve()
    }

    async fn comes_to_grant(&self, workspace: &str) {
        until(|| self.grants(workspace)).await;
    }
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("never came true");
}

/// Replaces a file as editors do.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, text)?;
    fs::rename(next, file)
}

#[tokio::test]
async fn a_change_counts_and_a_bad_one_keeps_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    fs::write(&file, policy("one")).unwrap();
    let watched = Watched::start(&file);
    assert!(watched.grants("one"));

    fs::write(&file, policy("two")).unwrap();
    watched.comes_to_grant("two").await;
    assert!(!watched.grants("one"), "what is no longer granted is denied");
    replace(&file, &policy("three")).unwrap();
    watched.comes_to_grant("three").await;

    // A good grant beside a bad one: refused whole.
    for bad in [format!("{}[[grant]]\n", policy("four")), String::new()] {
        fs::write(&file, bad).unwrap();
        tokio::time::sleep(10 * INTERVAL).await;
        assert!(watched.grants("three") && !watched.grants("four"));
    }
    fs::remove_file(&file).unwrap();
    tokio::time::sleep(10 * INTERVAL).await;
    assert!(watched.grants("three"));
    replace(&file, &policy("five")).unwrap();
    watched.comes_to_grant("five").await;

    watched.shutdown.cancel();
    tokio::time::timeout(PATIENCE, watched.task).await.unwrap().unwrap();
}

/// A Kubernetes volume: the file is a link through `..data`, which is swapped.
#[tokio::test]
async fn a_swapped_symlink_counts() {
    let dir = tempfile::tempdir().unwrap();
    let publish = |version: &str| {
        let inner = dir.path().join(version);
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("policy.toml"), policy(version)).unwrap();
        symlink(version, dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    publish("one");
    let file: PathBuf = dir.path().join("policy.toml");
    symlink("..data/policy.toml", &file).unwrap();
    let watched = Watched::start(&file);
    assert!(watched.grants("one"));
    publish("two");
    watched.comes_to_grant("two").await;
    assert!(!watched.grants("one"));
    watched.shutdown.cancel();
}

/// The certificate and its key cannot change at one moment.
#[tokio::test]
async fn tls_files_count_once_they_fit() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let files = pki::write_server_files(dir.path(), &ca.server(), &ca);
    let paths = vec![files.cert.clone(), files.key.clone(), files.client_ca.clone()];
    let load = {
        let files = files.clone();
        move || tls::load(&files)
    };
    let watch = Watch::start("TLS", paths, load).unwrap();
    let (current, shutdown) = (watch.current(), CancellationToken::new());
    let task = tokio::spawn(watch.run(INTERVAL, shutdown.clone()));

    let first = current.load_full();
    let renewed = ca.server();
    fs::write(&files.cert, &renewed.cert).unwrap();
    tokio::time::sleep(10 * INTERVAL).await;
    assert!(Arc::ptr_eq(&first, &current.load_full()), "a certificate without its key");
    fs::write(&files.key, &renewed.key).unwrap();
    until(|| !Arc::ptr_eq(&first, &current.load_full())).await;
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}
