//! Redact: values in a stream replaced by their references.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Caller, Error, Secrets,
    admission::Place,
    audit::{Action, AuditEvent},
    matchers::Wanted,
};
use crate::{
    domain::{Deadline, RunId, SecretName, WorkflowId, WorkspaceId},
    matcher::{Encoding, Matcher, Redactor, Skipped},
};

/// What a stream is to be looked through for.
pub struct OpenRedaction {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The secrets; `None`: all of the workspace.
    pub names: Option<BTreeSet<SecretName>>,
    /// Also values of fewer than 8 bytes and obvious words.
    pub mask_short: bool,
    /// For the audit stream.
    pub workflow_id: Option<WorkflowId>,
    /// For the audit stream.
    pub run_id: Option<RunId>,
}

/// What was found in a stream.
pub struct Tally {
    /// How often, by name and encoding.
    pub masked: Vec<(SecretName, Encoding, u64)>,
    /// What was not looked for.
    pub unmasked: Vec<(SecretName, Skipped)>,
}

/// A stream under way. Ask for its [`end`](Self::end) however it ends, or what
/// it found goes without audit lines.
pub struct Redaction {
    secrets: Arc<Secrets>,
    matcher: Arc<Matcher>,
    redactor: Redactor,
    workspace: WorkspaceId,
    _place: Place,
    /// What all its audit lines have in common.
    line: AuditEvent,
}

impl Secrets {
    /// Opens a stream. The audit lines, one per name asked for, are written
    /// first.
    ///
    /// The values looked for stay those of this moment.
    ///
    /// # Errors
    /// [`Error::RateLimited`], [`Error::Overloaded`],
    /// [`Error::TooMuchToMatch`], and
    /// [`Error::Unresolved`] for names that do not exist.
    pub async fn redact(
        self: &Arc<Self>,
        caller: &Caller,
        request: OpenRedaction,
    ) -> Result<Redaction, Error> {
        let outcome = self.in_time(caller, self.redaction_matcher(caller, &request)).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let line = AuditEvent {
            workflow_id: request.workflow_id,
            run_id: request.run_id,
            ..self.event(caller, &request.workspace, Action::Redact, reason)
        };
        let named = match (&outcome, request.names) {
            (Err(Error::NotGranted), _) | (_, None) => vec![None],
            (_, Some(names)) => names.into_iter().map(Some).collect(),
        };
        let lines = named.into_iter().map(|secret| AuditEvent { secret, ..line.clone() });
        let opened = self.audited(caller.deadline, lines.collect(), outcome).await?;
        let (matcher, place) = opened;
        let redactor = Redactor::new(Arc::clone(&matcher));
        let (secrets, workspace) = (Arc::clone(self), request.workspace);
        Ok(Redaction { secrets, matcher, redactor, workspace, _place: place, line })
    }

    async fn redaction_matcher(
        self: &Arc<Self>,
        caller: &Caller,
        request: &OpenRedaction,
    ) -> Result<(Arc<Matcher>, Place), Error> {
        let OpenRedaction { workspace, names, mask_short, .. } = request;
        if !self.grants(caller, workspace).resolve() {
            return Err(Error::NotGranted);
        }
        // No turn: it would be held for as long as a matcher takes.
        self.counted(caller, workspace)?;
        let place = self.redaction(caller, workspace)?;
        self.redactions.count(workspace)?;
        let (workspace, names) = (workspace.clone(), names.clone());
        let matcher = self.matcher(Wanted { workspace, names, mask_short: *mask_short }).await?;
        Ok((matcher, place))
    }

    /// One line per secret found, with how often.
    pub(super) fn found_events(
        &self,
        line: &AuditEvent,
        found: impl Iterator<Item = (SecretName, u64)>,
    ) -> Vec<AuditEvent> {
        let mut all = BTreeMap::<SecretName, u64>::new();
        for (name, count) in found {
            let sum = all.entry(name).or_default();
            *sum = sum.saturating_add(count);
        }
        let found = |(name, count)| AuditEvent {
            time: self.clock.now(),
            secret: Some(name),
            matches: Some(count),
            outcome: "found",
            ..line.clone()
        };
        all.into_iter().map(found).collect()
    }
}

impl Redaction {
    /// Takes more of the stream; appends to `out` what is decided. Waits for
    /// its turn: streams have all cores but one, and workspaces take turns.
    ///
    /// # Errors
    /// [`Error::Internal`] if there are no turns.
    pub async fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let _turn = self.secrets.matchers.redacting(&self.workspace).await?;
        self.redactor.push(chunk, out);
        Ok(())
    }

    /// Appends the rest: the stream has come to its end.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub async fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        let _turn = self.secrets.matchers.redacting(&self.workspace).await?;
        self.redactor.finish(out);
        Ok(())
    }

    /// How many bytes of the stream the output so far stands for.
    pub fn input_bytes(&self) -> u64 {
        self.redactor.consumed()
    }

    /// Writes an audit line per secret found. To be called however the stream
    /// ends.
    ///
    /// # Errors
    /// [`Error::AuditUnavailable`].
    pub async fn end(self) -> Result<Tally, Error> {
        let masked: Vec<_> = self
            .redactor
            .tally()
            .map(|(name, encoding, count)| (name.clone(), encoding, count))
            .collect();
        let found = masked.iter().map(|(name, _, count)| (name.clone(), *count));
        let events = self.secrets.found_events(&self.line, found);
        if !events.is_empty() {
            self.secrets.audited(Deadline::NONE, events, Ok(())).await?;
        }
        Ok(Tally { masked, unmasked: self.matcher.skipped().to_vec() })
    }
}
