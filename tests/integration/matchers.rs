//! How long what was made of values to look for them stays in memory, and how
//! often it may be asked: on a turned clock and a store that counts.

use std::{collections::BTreeSet, time::Duration};

use workflow_secrets::{
    domain::{Plaintext, SecretName, WorkspaceId},
    service::{CreateSecret, Error, ExpiryChange, OpenRedaction, UpdateSecret},
    store::{Store as _, StoreError},
};

use super::support::bench::{Bench, name, workspace};

const SECOND: Duration = Duration::from_secs(1);

/// A matcher that nobody asks for is dropped after so long.
const IDLE: Duration = Duration::from_secs(60);

/// Calls per workspace and minute, unless an operator sets it.
const RATE: u32 = 600;

fn open(names: Option<&[&str]>) -> OpenRedaction {
    let names = names.map(|names| names.iter().map(|text| name(text)).collect::<BTreeSet<_>>());
    let (workspace, workflow_id, run_id) = (workspace(), None, None);
    OpenRedaction { workspace, names, mask_short: false, workflow_id, run_id }
}

fn plaintext(text: &str) -> Plaintext {
    Plaintext::parse(text.to_owned()).ok().unwrap()
}

impl Bench {
    async fn store(&self, workspace: WorkspaceId, name: &str, value: &str) {
        let request = CreateSecret {
            workspace,
            name: SecretName::parse(name).unwrap(),
            value: plaintext(value),
            description: Default::default(),
            owner: None,
            expiry: None,
            request_id: None,
            validate_only: false,
        };
        self.secrets.create(&self.caller, request).await.unwrap();
    }

    async fn rotate(&self, name: &str, value: &str) {
        let request = UpdateSecret {
            workspace: workspace(),
            name: SecretName::parse(name).unwrap(),
            value: Some(plaintext(value)),
            description: None,
            expiry: ExpiryChange::Keep,
            etag: None,
            fencing_token: None,
            allow_missing: false,
            owner: None,
            request_id: None,
            validate_only: false,
        };
        self.secrets.update(&self.caller, request).await.unwrap();
    }

    /// Text without values, and how many reads of the store that took.
    async fn redacted(&self, names: Option<&[&str]>, text: &str) -> (String, usize) {
        let before = self.store.reads();
        let mut stream = self.secrets.redact(&self.caller, open(names)).await.ok().unwrap();
        let mut out = Vec::new();
        stream.push(text.as_bytes(), &mut out).await.unwrap();
        stream.finish(&mut out).await.unwrap();
        stream.end().await.ok().unwrap();
        (String::from_utf8(out).unwrap(), self.store.reads() - before)
    }

    /// Whether the next stream needs the values again.
    async fn reads_again(&self) -> bool {
        self.redacted(None, "").await.1 > 0
    }

    async fn revision(&self) -> u64 {
        self.store.revision(&workspace()).await.unwrap().unwrap().as_u64()
    }
}

#[tokio::test]
async fn values_are_read_once_until_the_workspace_changes() {
    let bench = Bench::new();
    bench.store(workspace(), "ONE", "first-value").await;
    let text = "first-value second-value third-value";
    let out = |text: &str, reads: usize| (text.to_owned(), reads);
    let first = "{{secrets.ONE}} second-value third-value";
    // Whether the workspace was destroyed, and the values.
    assert_eq!(bench.redacted(None, text).await, out(first, 2));
    assert_eq!(bench.redacted(None, text).await, out(first, 0));
    // Other names are another matter, and the first still stands.
    assert_eq!(bench.redacted(Some(&["ONE"]), text).await, out(first, 1));
    assert_eq!(bench.redacted(Some(&["ONE"]), text).await, out(first, 0));
    assert_eq!(bench.redacted(None, text).await, out(first, 0));

    bench.rotate("ONE", "second-value").await;
    let second = "first-value {{secrets.ONE}} third-value";
    assert_eq!(bench.redacted(None, text).await, out(second, 2));
    assert_eq!(bench.redacted(Some(&["ONE"]), text).await, out(second, 1));
    bench.store(workspace(), "TWO", "third-value").await;
    let both = "first-value {{secrets.ONE}} {{secrets.TWO}}";
    assert_eq!(bench.redacted(None, text).await, out(both, 2));
    assert_eq!(bench.redacted(None, text).await, out(both, 0));

    // Of another workspace nothing is known here, nor does its change matter.
    bench.store(WorkspaceId::parse("other").unwrap(), "ONE", "elsewhere-1").await;
    assert_eq!(bench.redacted(None, "elsewhere-1").await, out("elsewhere-1", 0));

    // As another replica would change it.
    bench.store.set_revision(&workspace(), bench.revision().await + 1);
    assert_eq!(bench.redacted(None, text).await, out(both, 2));
}

#[tokio::test]
async fn a_change_drops_what_was_made_of_the_workspace_at_once() {
    let bench = Bench::new();
    bench.store(workspace(), "ONE", "first-value").await;
    assert!(bench.reads_again().await);
    let revision = bench.revision().await;
    // With the revision back at what it was, what was kept would be found.
    bench.store.set_revision(&workspace(), revision + 7);
    bench.store.set_revision(&workspace(), revision);
    assert!(!bench.reads_again().await);
    bench.rotate("ONE", "second-value").await;
    bench.store.set_revision(&workspace(), revision);
    assert!(bench.reads_again().await);
    assert!(!bench.reads_again().await);
}

#[tokio::test]
async fn what_nobody_asks_for_is_dropped() {
    let bench = Bench::new();
    bench.store(workspace(), "ONE", "first-value").await;
    assert!(bench.reads_again().await);
    for _ in 0..3 {
        bench.clock.advance(IDLE - SECOND);
        bench.secrets.tidy().await;
        // Asked for, so kept that long once more.
        assert!(!bench.reads_again().await);
    }
    bench.clock.advance(IDLE);
    bench.secrets.tidy().await;
    assert!(bench.reads_again().await);
}

#[tokio::test]
async fn what_is_not_known_to_be_true_any_more_is_dropped() {
    let bench = Bench::new();
    bench.store(workspace(), "ONE", "first-value").await;
    assert!(bench.reads_again().await);
    let revision = bench.revision().await;
    bench.secrets.tidy().await;
    assert!(!bench.reads_again().await);

    // Changed by another replica, and found out without anyone asking.
    bench.store.set_revision(&workspace(), revision + 1);
    bench.secrets.tidy().await;
    bench.store.set_revision(&workspace(), revision);
    assert!(bench.reads_again().await);

    bench.store.fail_reads(Some(StoreError::Unavailable("as demanded")));
    bench.secrets.tidy().await;
    let refused = bench.secrets.redact(&bench.caller, open(None)).await.err();
    assert_eq!(refused, Some(Error::StoreUnavailable("as demanded")));
    bench.store.fail_reads(None);
    assert!(bench.reads_again().await);
}

#[tokio::test]
async fn the_rate_is_exact_and_does_not_add_up() {
    let bench = Bench::new();
    bench.store(workspace(), "ONE", "first-value").await;
    let opened = async || bench.secrets.redact(&bench.caller, open(None)).await.err();
    let step = 60 * SECOND / RATE;
    // However long nobody has called.
    for rest in [Duration::ZERO, 3_600 * SECOND] {
        bench.clock.advance(rest);
        bench.secrets.tidy().await;
        for _ in 0..RATE {
            assert_eq!(opened().await, None);
        }
        assert_eq!(opened().await, Some(Error::RateLimited { wait: step }));
        bench.clock.advance(step / 4);
        assert_eq!(opened().await, Some(Error::RateLimited { wait: step * 3 / 4 }));
        bench.secrets.tidy().await;
        bench.clock.advance(step * 3 / 4);
        assert_eq!(opened().await, None);
        assert_eq!(opened().await, Some(Error::RateLimited { wait: step }));
    }
}

#[tokio::test]
async fn a_matcher_is_built_to_the_end_though_nobody_waits_for_it() {
    let bench = Bench::new();
    bench.store(workspace(), "KEY", "a-long-enough-value").await;
    let before = bench.store.reads();
    {
        let mut opening = Box::pin(bench.secrets.redact(&bench.caller, open(None)));
        // It gets as far as to wait for the build, and is given up.
        assert!(futures_util::poll!(&mut opening).is_pending());
    }
    while bench.store.reads() == before {
        tokio::task::yield_now().await;
    }
    assert!(!bench.reads_again().await, "the next call finds it");
}
