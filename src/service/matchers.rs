//! Matchers of workspaces, kept while their workspace stays as it is.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use lru::LruCache;
use tracing::Instrument as _;

use super::{
    Cause, Error, Secrets, Unresolved,
    open::Opened,
    turns::{Lane, LaneTurn},
};
use crate::{
    domain::{Revision, SecretName, WorkspaceId},
    envelope::Payload,
    matcher::{Matcher, MatcherOptions, Named},
    store::Key,
};

/// Most memory of all that are kept; the one used longest ago goes first.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// Most that are kept: all are looked at with each change of a workspace.
const MAX_KEPT: NonZeroUsize = const { NonZeroUsize::new(10_000).unwrap() };

/// Once all that are in use take so much memory, no further one is built: a
/// stream holds its own for as long as it lasts.
const MAX_BYTES_IN_USE: usize = 512 * 1024 * 1024;

/// One that nobody has asked for in this time goes.
const IDLE: Duration = Duration::from_secs(60);

/// Built at the same time, each for another workspace: it takes CPU time and
/// memory.
const MAX_BUILDING: usize = 2;

/// Templates looked through at the same time, each of another workspace: it
/// takes CPU time.
const MAX_LOOKING: usize = 2;

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
    building: Lane<WorkspaceId>,
    looking: Lane<WorkspaceId>,
    redacting: Lane<WorkspaceId>,
}

/// A turn at work that takes CPU time.
pub(super) type CpuTurn = LaneTurn<WorkspaceId>;

struct Kept {
    entries: LruCache<Wanted, Entry>,
    bytes: usize,
    /// All that were built, as far as they are in use.
    built: Vec<Weak<Matcher>>,
}

struct Entry {
    matcher: Arc<Matcher>,
    /// Of the workspace before its secrets were read.
    revision: Option<Revision>,
    used: Duration,
}

impl Default for Matchers {
    fn default() -> Self {
        let kept = Kept { entries: LruCache::new(MAX_KEPT), bytes: 0, built: Vec::new() };
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        // One of each workspace. Who may wait is bounded elsewhere.
        let lane = |at_once| Lane::new(1, at_once, usize::MAX);
        Self {
            kept: Mutex::new(kept),
            building: lane(MAX_BUILDING),
            looking: lane(MAX_LOOKING),
            // One core is left for the calls of runs.
            redacting: lane(cores.saturating_sub(1).max(1)),
        }
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
        kept.built.push(Arc::downgrade(&entry.matcher));
        kept.bytes += entry.matcher.bytes();
        if let Some((_, old)) = kept.entries.push(wanted, entry) {
            kept.bytes -= old.matcher.bytes();
        }
        while kept.bytes > MAX_BYTES
            && let Some((_, oldest)) = kept.entries.pop_lru()
        {
            kept.bytes -= oldest.matcher.bytes();
        }
    }

    /// Memory of all that are in use, kept or not.
    fn bytes_in_use(&self) -> usize {
        let mut kept = self.lock();
        kept.built.retain(|built| built.strong_count() > 0);
        kept.built.iter().filter_map(Weak::upgrade).map(|matcher| matcher.bytes()).sum()
    }

    /// A turn to look through a template. It belongs to the work, not to the
    /// call, which may be given up.
    pub(super) async fn looking(&self, workspace: &WorkspaceId) -> Result<CpuTurn, Error> {
        let turn = self.looking.wait(workspace).await;
        turn.ok_or(Error::Internal("templates are not looked through any more"))
    }

    /// A turn to look through a part of a stream.
    pub(super) async fn redacting(&self, workspace: &WorkspaceId) -> Result<CpuTurn, Error> {
        let turn = self.redacting.wait(workspace).await;
        turn.ok_or(Error::Internal("streams are not looked through any more"))
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
    pub(super) async fn matcher(self: &Arc<Self>, wanted: Wanted) -> Result<Arc<Matcher>, Error> {
        let revision = self.store.revision(&wanted.workspace).await?;
        if let Some(matcher) = self.matchers.find(&wanted, revision, self.clock.monotonic()) {
            return Ok(matcher);
        }
        let building = self.matchers.building.wait(&wanted.workspace).await;
        let building = building.ok_or(Error::Internal("matchers are not built any more"))?;
        // Once begun, it is built to the end and kept, also if the call is given
        // up: the next one finds it.
        let secrets = Arc::clone(self);
        let build = async move { secrets.build(wanted, building).await };
        let built = tokio::spawn(build.in_current_span()).await;
        built.unwrap_or(Err(Error::Internal("building a matcher failed")))
    }

    async fn build(&self, wanted: Wanted, building: CpuTurn) -> Result<Arc<Matcher>, Error> {
        let workspace = &wanted.workspace;
        let find = |revision| self.matchers.find(&wanted, revision, self.clock.monotonic());
        // Another call may have built it meanwhile. The revision comes before
        // the secrets: whatever changes after it makes the matcher outdated.
        let revision = self.store.revision(workspace).await?;
        if let Some(matcher) = find(revision) {
            return Ok(matcher);
        }
        if self.matchers.bytes_in_use() > MAX_BYTES_IN_USE {
            return Err(Error::Overloaded);
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
        // The next in line finds it.
        drop(building);
        Ok(matcher)
    }

    async fn all_names(&self, workspace: &WorkspaceId) -> Result<Vec<SecretName>, Error> {
        let keys = self.store.keys(workspace, Key::METADATA, MAX_NAMES + 1).await?;
        // Where a workspace was destroyed, there is nothing to look for.
        let [] = self.read(workspace, []).await?;
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
                    Opened::Current(payload, _) | Opened::Expired(payload) => {
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
        self.tell_regressions().await;
        self.keyring.drop_idle().await;
        self.admission.tidy();
        self.redactions.tidy();
        self.preparations.tidy();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Plaintext;

    fn wanted(workspace: &str) -> Wanted {
        let workspace = WorkspaceId::parse(workspace).unwrap();
        Wanted { workspace, names: None, mask_short: false }
    }

    fn entry(length: usize) -> Entry {
        let (name, value) = (SecretName::parse("KEY").unwrap(), "x".repeat(length));
        let value = Plaintext::parse(value).ok().unwrap();
        let named = [Named { name: &name, value: &value }];
        let matcher = Matcher::new(named.into_iter(), MatcherOptions::default()).unwrap();
        Entry { matcher: Arc::new(matcher), revision: None, used: Duration::ZERO }
    }

    #[test]
    fn what_a_stream_holds_counts_after_it_is_dropped_here() {
        let (matchers, one) = (Matchers::default(), wanted("ws"));
        matchers.keep(one.clone(), entry(60_000));
        let stream = matchers.find(&one, None, Duration::ZERO).unwrap();
        matchers.forget(&one.workspace);
        assert_eq!(matchers.lock().bytes, 0);
        assert_eq!(matchers.bytes_in_use(), stream.bytes());
        drop(stream);
        assert_eq!((matchers.bytes_in_use(), matchers.lock().built.len()), (0, 0));
    }

    #[test]
    fn so_many_are_kept_and_of_so_many_bytes() {
        for (length, keep) in [(8, MAX_KEPT.get() + 10), (60_000, 1_000)] {
            let (matchers, one) = (Matchers::default(), entry(length));
            for n in 0..keep {
                let matcher = Arc::clone(&one.matcher);
                matchers.keep(wanted(&format!("ws{n}")), Entry { matcher, ..one });
            }
            let (kept, size) = (matchers.lock(), one.matcher.bytes());
            let fit = MAX_KEPT.get().min(MAX_BYTES / size);
            assert!(fit < keep, "{size}");
            assert_eq!((kept.entries.len(), kept.bytes), (fit, fit * size));
        }
    }
}
