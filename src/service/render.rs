//! RenderTemplate: values in place of references.

use std::collections::{BTreeMap, BTreeSet};

use zeroize::Zeroizing;

use super::{
    Caller, Credential, Credentials, Error, Resolved, Secrets,
    admission::Weight,
    audit::{Action, AuditEvent},
    open::Versions,
    references,
    resolve::resolved,
    values::ValueTurn,
};
use crate::{
    domain::{RunId, SecretName, WorkflowId, WorkspaceId},
    template::{RenderError, Template},
};

/// A document to render, and secrets to resolve with it.
pub struct RenderTemplate {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The document.
    pub template: Template,
    /// The credentials list.
    pub credentials: Credentials,
    /// For the audit stream.
    pub workflow_id: Option<WorkflowId>,
    /// For the audit stream.
    pub run_id: Option<RunId>,
}

/// A rendered document.
pub struct Rendered {
    /// The document.
    pub text: Zeroizing<String>,
    /// The credentials, resolved.
    pub context: Vec<Resolved>,
    /// Name and version of each value that is in the answer.
    pub used: BTreeSet<(SecretName, u64)>,
}

impl Secrets {
    /// Puts values in place of references and resolves a credentials list, all
    /// from one moment: all or nothing.
    ///
    /// One store read, however many names, and one more if earlier versions are
    /// asked for. Nothing is returned before the audit lines, one per credential and per name in the document, are
    /// written.
    ///
    /// # Errors
    /// [`Error::Unresolved`] names everything missing, expired or malformed at
    /// once; [`Error::TooManyReferences`], [`Error::RenderedTooLarge`].
    pub async fn render(
        &self,
        caller: &Caller,
        request: RenderTemplate,
    ) -> Result<Rendered, Error> {
        let outcome = self.in_time(caller, self.rendered(caller, &request)).await;
        let events = self.render_events(caller, &request, &outcome);
        self.audited(caller.deadline, events, outcome).await
    }

    async fn rendered(&self, caller: &Caller, request: &RenderTemplate) -> Result<Rendered, Error> {
        let RenderTemplate { workspace, template, credentials, .. } = request;
        let grants = self.grants(caller, workspace);
        if !grants.resolve() {
            return Err(Error::NotGranted);
        }
        let _place = self.document(caller, workspace)?;
        let _turn = self.turn(caller, workspace, Weight::DOCUMENT).await?;
        let credentials = credentials.all();
        let names = references::distinct(Some(template), secrets(credentials))?;
        // Documents have places, and these are few.
        let mut turn = ValueTurn::of(0);
        let (opened, versions) = match names.is_empty() {
            true => (BTreeMap::new(), Versions::new()),
            false => self.open_with_versions(workspace, &names, credentials, &mut turn).await?,
        };
        let (asked, workflow) = (names.iter().copied(), request.workflow_id.as_ref());
        self.usage.asked(workspace, asked, workflow, self.clock.now());
        let unresolved = references::unresolved(template, credentials, &opened);
        self.all_resolved(&grants, workspace, unresolved).await?;

        let current = |name: &SecretName| opened.get(name)?.current().ok();
        let text = template.render(|name| current(name).map(|payload| &payload.value));
        let text = text.map_err(|error| match error {
            RenderError::TooLarge => Error::RenderedTooLarge,
            RenderError::Malformed | RenderError::Missing(_) => {
                Error::Internal("a reference was not looked at")
            }
        })?;
        let context = credentials.iter().filter_map(|one| resolved(one, &opened, &versions, &turn));
        let context: Vec<_> = context.collect();
        let in_text = template.names().into_iter();
        let in_text = in_text.filter_map(|name| Some((name.clone(), current(name)?.version)));
        let in_context = context.iter().map(|one| (one.name.clone(), one.payload.version));
        let used = in_text.chain(in_context).collect();
        Ok(Rendered { text, context, used })
    }

    /// One line per credential and per name in the document; one in all for a
    /// call that is refused before it touches a secret, or names none.
    fn render_events(
        &self,
        caller: &Caller,
        request: &RenderTemplate,
        outcome: &Result<Rendered, Error>,
    ) -> Vec<AuditEvent> {
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let line =
            |secret: Option<&SecretName>, credential: Option<&Credential>, version| AuditEvent {
                secret: secret.cloned(),
                alias: credential.map(|credential| credential.alias.clone()),
                version,
                workflow_id: request.workflow_id.clone(),
                run_id: request.run_id.clone(),
                ..self.event(caller, &request.workspace, Action::Render, reason)
            };
        if let Err(Error::NotGranted | Error::TooManyReferences(_)) = outcome {
            return vec![line(None, None, None)];
        }
        let credentials = request.credentials.all();
        let names = request.template.names();
        let done = outcome.as_ref().ok();
        // Of several versions of one name, that of the document is the newest.
        let in_text = |name: &SecretName| {
            let versions = (name.clone(), 0)..=(name.clone(), u64::MAX);
            done?.used.range(versions).next_back().map(|(_, version)| *version)
        };
        let in_context = |index: usize| Some(done?.context.get(index)?.payload.version);
        let lines = names.into_iter().map(|name| line(Some(name), None, in_text(name)));
        let credentials = credentials.iter().enumerate();
        let mut lines: Vec<_> = lines
            .chain(credentials.map(|(i, one)| line(Some(&one.secret), Some(one), in_context(i))))
            .collect();
        if lines.is_empty() {
            lines.push(line(None, None, None));
        }
        lines
    }
}

fn secrets(credentials: &[Credential]) -> impl Iterator<Item = &SecretName> {
    credentials.iter().map(|credential| &credential.secret)
}
