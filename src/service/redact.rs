//! Redact: values in a stream replaced by their references.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Caller, Error, Secrets,
    audit::{Action, AuditEvent},
    matchers::Wanted,
};
use crate::{
    domain::{RunId, SecretName, WorkflowId, WorkspaceId},
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
    /// [`Error::RateLimited`], [`Error::TooMuchToMatch`], and
    /// [`Error::Unresolved`] for names that do not exist.
    pub async fn redact(
        self: &Arc<Self>,
        caller: &Caller,
        request: OpenRedaction,
    ) -> Result<Redaction, Error> {
        let outcome = self.redaction_matcher(caller, &request).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let line = AuditEvent {
            workflow_id: request.workflow_id,
            run_id: request.run_id,
            ..self.event(caller, &request.workspace, Action::Redact, reason)
        };
        let named = match (&outcome, request.names) {
            (Err(Error::NotGranted | Error::RateLimited { .. }), _) | (_, None) => vec![None],
            (_, Some(names)) => names.into_iter().map(Some).collect(),
        };
        let lines = named.into_iter().map(|secret| AuditEvent { secret, ..line.clone() });
        let matcher = self.audited(lines.collect(), outcome).await?;
        let redactor = Redactor::new(Arc::clone(&matcher));
        Ok(Redaction { secrets: Arc::clone(self), matcher, redactor, line })
    }

    async fn redaction_matcher(
        &self,
        caller: &Caller,
        request: &OpenRedaction,
    ) -> Result<Arc<Matcher>, Error> {
        let OpenRedaction { workspace, names, mask_short, .. } = request;
        if !self.grants(caller, workspace).resolve() {
            return Err(Error::NotGranted);
        }
        self.redactions.count(workspace)?;
        let (workspace, names) = (workspace.clone(), names.clone());
        self.matcher(Wanted { workspace, names, mask_short: *mask_short }).await
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
    /// Takes more of the stream; appends to `out` what is decided.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        self.redactor.push(chunk, out);
    }

    /// Appends the rest: the stream has come to its end.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.redactor.finish(out);
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
            self.secrets.audited(events, Ok(())).await?;
        }
        Ok(Tally { masked, unmasked: self.matcher.skipped().to_vec() })
    }
}
