//! Matchers of workspaces, kept while their workspace stays as it is.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use tokio::sync::Semaphore;

use super::{Cause, Error, Secrets, Unresolved, open::Opened};
use crate::{
    domain::{Revision, SecretName, WorkspaceId},
    envelope::Payload,
    matcher::{Matcher, MatcherOptions, Named},
    store::Key,
};

/// Most memory of all that are kept; the one used longest ago goes first.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// One that nobody has asked for in this time goes.
const IDLE: Duration = Duration::from_secs(60);

/// Built at the same time: it takes CPU time and memory.
const MAX_BUILDING: usize = 2;

/// Bytes of the values of one, before they are written in every encoding.
const MAX_VALUE_BYTES: usize = 8 * 1024 * 1024;

/// Names of one; more would have more bytes than allowed.
const MAX_NAMES: usize = 100_000;

/// Secrets read at once.
const STEP: usize = 100;

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) workspace: WorkspaceId,
    /// `None`: all secrets of the workspace.
    pub(super) names: Option<BTreeSet<SecretName>>,
    pub(super) mask_short: bool,
}

/// Matchers in memory. A replica that changes a workspace drops its matchers at
/// once; those of other replicas are dropped when they are next asked for, and
/// by [`Secrets::tidy`].
pub(super) struct Matchers {
    kept: Mutex<Kept>,
    building: Semaphore,
}

struct Kept {
    entries: LruCache<Wanted, Entry>,
    bytes: usize,
}

struct Entry {
    matcher: Arc<Matcher>,
    /// Of the workspace before its secrets were read.
    revision: Option<Revision>,
    used: Duration,
}

impl Default for Matchers {
    fn default() -> Self {
        let kept = Kept { entries: LruCache::unbounded(), bytes: 0 };
        Self { kept: Mutex::new(kept), building: Semaphore::new(MAX_BUILDING) }
    }
}

impl Matchers {
    fn find(
        &self,
        wanted: &Wanted,
        revision: Option<Revision>,
        now: Duration,
    ) -> Option<Arc<Matcher>> {
        let mut kept = self.lock();
        let entry = kept.entries.get_mut(wanted)?;
        if entry.revision != revision {
            kept.drop_where(|other, _| other.workspace == wanted.workspace);
            return None;
        }
        entry.used = now;
        Some(Arc::clone(&entry.matcher))
    }

    fn keep(&self, wanted: Wanted, entry: Entry) {
        let mut kept = self.lock();
        kept.bytes += entry.matcher.bytes();
        if let Some(old) = kept.entries.put(wanted, entry) {
            kept.bytes -= old.matcher.bytes();
        }
        while kept.bytes > MAX_BYTES
            && let Some((_, oldest)) = kept.entries.pop_lru()
        {
            kept.bytes -= oldest.matcher.bytes();
        }
    }

    /// Drops what was made of a workspace.
    pub(super) fn forget(&self, workspace: &WorkspaceId) {
        self.lock().drop_where(|wanted, _| wanted.workspace == *workspace);
    }

    /// Drops what nobody asks for; the workspaces and revisions of the rest.
    fn drop_idle(&self, now: Duration) -> BTreeSet<(WorkspaceId, Option<Revision>)> {
        let mut kept = self.lock();
        kept.drop_where(|_, entry| now.saturating_sub(entry.used) >= IDLE);
        let rest = kept.entries.iter();
        rest.map(|(wanted, entry)| (wanted.workspace.clone(), entry.revision)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // No step under the lock leaves the count wrong.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn drop_where(&mut self, gone: impl Fn(&Wanted, &Entry) -> bool) {
        let all = self.entries.iter();
        let gone: Vec<_> =
            all.filter(|(wanted, entry)| gone(wanted, entry)).map(|(w, _)| w.clone()).collect();
        for wanted in gone {
            if let Some(entry) = self.entries.pop(&wanted) {
                self.bytes -= entry.matcher.bytes();
            }
        }
    }
}

impl Secrets {
    /// A matcher of the workspace as it is now: also of values that have
    /// expired, which are still worth hiding.
    ///
    /// # Errors
    /// [`Error::Unresolved`] for names that are missing,
    /// [`Error::TooMuchToMatch`]. A value that cannot be opened fails it: to go
    /// on without it would let it pass.
    pub(super) async fn matcher(&self, wanted: Wanted) -> Result<Arc<Matcher>, Error> {
        let workspace = &wanted.workspace;
        let revision = self.store.revision(workspace).await?;
        let find = |revision| self.matchers.find(&wanted, revision, self.clock.monotonic());
        if let Some(matcher) = find(revision) {
            return Ok(matcher);
        }
        let built = self.matchers.building.acquire().await;
        let _building = built.map_err(|_| Error::Internal("matchers are not built any more"))?;
        // Another call may have built it meanwhile. The revision comes before
        // the secrets: whatever changes after it makes the matcher outdated.
        let revision = self.store.revision(workspace).await?;
        if let Some(matcher) = find(revision) {
            return Ok(matcher);
        }
        let names = match &wanted.names {
            Some(names) => names.iter().cloned().collect(),
            None => self.all_names(workspace).await?,
        };
        let values = self.values(workspace, &names, wanted.names.is_some()).await?;
        let options = MatcherOptions { mask_short: wanted.mask_short };
        let matcher = tokio::task::spawn_blocking(move || {
            let all = values.iter().map(|(name, payload)| Named { name, value: &payload.value });
            Matcher::new(all, options)
        });
        let matcher = matcher
            .await
            .map_err(|_| Error::Internal("building a matcher failed"))?
            .map_err(|_| Error::TooMuchToMatch)?;
        let matcher = Arc::new(matcher);
        let used = self.clock.monotonic();
        self.matchers.keep(wanted, Entry { matcher: Arc::clone(&matcher), revision, used });
        Ok(matcher)
    }

    async fn all_names(&self, workspace: &WorkspaceId) -> Result<Vec<SecretName>, Error> {
        let keys = self.store.keys(workspace, Key::METADATA, MAX_NAMES + 1).await?;
        if keys.len() > MAX_NAMES {
            return Err(Error::TooMuchToMatch);
        }
        let name = |key: &Key| SecretName::parse(key.as_str().strip_prefix(Key::METADATA)?).ok();
        keys.iter().map(|key| name(key).ok_or(Error::RecordCorrupt("name of a record"))).collect()
    }

    async fn values(
        &self,
        workspace: &WorkspaceId,
        names: &[SecretName],
        all_must_exist: bool,
    ) -> Result<Vec<(SecretName, Arc<Payload>)>, Error> {
        let (mut values, mut missing, mut bytes) = (Vec::new(), Vec::new(), 0);
        for names in names.chunks(STEP) {
            for (name, opened) in self.open(workspace, &names.iter().collect()).await? {
                match opened {
                    Opened::Current(payload) | Opened::Expired(payload) => {
                        bytes += payload.value.expose().len();
                        values.push((name.clone(), payload));
                    }
                    // Deleted since its name was read.
                    Opened::Missing if !all_must_exist => {}
                    Opened::Missing => missing.push(Unresolved {
                        name: Some(name.clone()),
                        cause: Cause::Missing(None),
                        place: None,
                    }),
                }
            }
            if bytes > MAX_VALUE_BYTES {
                return Err(Error::TooMuchToMatch);
            }
        }
        if missing.is_empty() { Ok(values) } else { Err(Error::Unresolved(missing)) }
    }

    /// Drops what was derived from values and is not wanted or not true any
    /// more. To be called every few seconds.
    pub async fn tidy(&self) {
        self.keyring.drop_idle();
        self.rates.tidy();
        let mut reachable = true;
        for (workspace, revision) in self.matchers.drop_idle(self.clock.monotonic()) {
            // A store that does not answer is not asked again for each: what is
            // not known to be true counts as not true.
            let now = match reachable {
                true => self.store.revision(&workspace).await.ok(),
                false => None,
            };
            reachable = now.is_some();
            if now != Some(revision) {
                self.matchers.forget(&workspace);
            }
        }
    }
}
