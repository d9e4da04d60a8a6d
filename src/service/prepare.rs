//! PrepareTemplate: a workflow without values, for publishing.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use zeroize::Zeroizing;

use super::{
    Caller, Error, Secrets,
    audit::{Action, AuditEvent},
    check::CandidateCredential,
    matchers::Wanted,
    references::{credential_place, distinct, places},
};
use crate::{
    domain::{ManagedBy, SecretMetadata, SecretName, WorkspaceId},
    matcher::{Encoding, Finding, Matcher, Redactor},
    template::{Edit, Format, Replacement, RewriteError, Template, Token, references_in},
};

/// Most places told of one secret.
const MAX_PLACES: usize = 20;

/// Most finds, and most malformed references, told one by one.
const MAX_LISTED: usize = 1_000;

/// A workflow to publish.
pub struct PrepareTemplate {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The workflow, as JSON.
    pub template: Template,
    /// Credentials lists of its nodes.
    pub credentials: Vec<CandidateCredential>,
    /// Fail if any value is found.
    pub strict: bool,
}

/// A workflow fit for publishing.
pub struct Prepared {
    /// The workflow, without values.
    pub json: Zeroizing<String>,
    /// What was found, the first 1,000.
    pub pasted: Vec<Pasted>,
    /// How much more was found.
    pub unlisted: usize,
    /// The secrets it needs, by name.
    pub manifest: BTreeMap<SecretName, Required>,
    /// Places of malformed references, the first 1,000.
    pub malformed: Vec<String>,
}

/// A stored value that stood in a workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pasted {
    /// Where.
    pub place: String,
    /// Whose.
    pub name: SecretName,
    /// How it was written.
    pub written: Written,
    /// Only part of the value stood there.
    pub partial: bool,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// In one of the encodings that are looked for.
    As(Encoding),
    /// In the base64 of `Basic` credentials (RFC 7617).
    Basic,
}

impl Written {
    /// The word in placeholders and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::As(Encoding::Raw) => "RAW",
            Self::As(Encoding::Base64) => "BASE64",
            Self::As(Encoding::Base64Url) => "BASE64URL",
            Self::As(Encoding::Hex) => "HEX",
            Self::As(Encoding::Url) => "URL",
            Self::As(Encoding::Json) => "JSON",
            Self::As(Encoding::Line) => "LINE",
            Self::Basic => "BASIC",
        }
    }
}

/// What a user of a template must provide.
#[derive(Default)]
pub struct Required {
    /// What is known of it here, its description without values; `None`: it
    /// does not exist.
    pub known: Option<(String, ManagedBy)>,
    /// Where it is used.
    pub places: Vec<String>,
    /// How many more places there are.
    pub unlisted_places: usize,
}

impl Required {
    fn used(&mut self, place: impl FnOnce() -> String) {
        if self.places.len() < MAX_PLACES {
            self.places.push(place());
        } else {
            self.unlisted_places += 1;
        }
    }
}

/// How often the values of a secret were found.
type Found = BTreeMap<SecretName, u64>;

impl Secrets {
    /// Takes the values of a workspace out of a workflow, and tells what its
    /// users must provide.
    ///
    /// Leaves an audit line, and one more for each secret whose value was
    /// found.
    ///
    /// # Errors
    /// [`Error::ValuesPasted`] if `strict`; [`Error::RateLimited`],
    /// [`Error::TooMuchToMatch`], [`Error::TooManyReferences`],
    /// [`Error::RenderedTooLarge`].
    pub async fn prepare(
        self: &Arc<Self>,
        caller: &Caller,
        request: PrepareTemplate,
    ) -> Result<Prepared, Error> {
        let (workspace, mut found) = (request.workspace.clone(), Found::new());
        let outcome = self.in_time(caller, self.prepared(caller, request, &mut found)).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let line: AuditEvent = self.event(caller, &workspace, Action::Prepare, reason);
        let tells = !found.is_empty();
        let mut events = self.found_events(&line, found.into_iter());
        events.insert(0, line);
        match tells {
            // Of values, even if it is an error.
            true => self.audited(caller.deadline, events, Ok(outcome)).await?,
            false => self.audited(caller.deadline, events, outcome).await,
        }
    }

    async fn prepared(
        self: &Arc<Self>,
        caller: &Caller,
        request: PrepareTemplate,
        found: &mut Found,
    ) -> Result<Prepared, Error> {
        let PrepareTemplate { workspace, template, credentials, strict } = request;
        if !self.grants(caller, &workspace).manage_user() {
            return Err(Error::NotGranted);
        }
        // No turn: it would be held for as long as a matcher takes.
        self.counted(caller, &workspace)?;
        let _place = self.document(caller, &workspace)?;
        self.preparations.count(&workspace)?;
        let wanted = Wanted { workspace: workspace.clone(), names: None, mask_short: false };
        let matcher = self.matcher(wanted).await?;
        let turn = self.matchers.looking(&workspace).await?;
        let sanitize = {
            let matcher = Arc::clone(&matcher);
            move || {
                let _turn = turn;
                let mut found = Found::new();
                let sanitized = sanitize(&template, &matcher, &mut found);
                (sanitized, found)
            }
        };
        let (sanitized, all) = tokio::task::spawn_blocking(sanitize)
            .await
            .map_err(|_| Error::Internal("looking through a template failed"))?;
        *found = all;
        let Sanitized { json, template, pasted, unlisted } = sanitized?;
        if strict && !pasted.is_empty() {
            return Err(Error::ValuesPasted(pasted));
        }

        let listed = || credentials.iter().map(|credential| credential.secret.as_ref());
        let names = distinct(Some(&template), listed().flatten())?;
        let known = self.metadata_of(&workspace, &names).await?;
        let (mut manifest, mut malformed) = (BTreeMap::<SecretName, Required>::new(), Vec::new());
        for (name, location) in places(&template) {
            let place = || location.place().to_string();
            match name {
                Some(name) => manifest.entry(name.clone()).or_default().used(place),
                None if malformed.len() < MAX_LISTED => malformed.push(place()),
                None => {}
            }
        }
        for (index, name) in listed().enumerate() {
            let place = || credential_place(index);
            match name {
                Some(name) => manifest.entry(name.clone()).or_default().used(place),
                None => malformed.push(place()),
            }
        }
        for (name, required) in &mut manifest {
            required.known = known.get(name).map(|secret| describe(secret, &matcher));
        }
        Ok(Prepared { json, pasted, unlisted, manifest, malformed })
    }
}

/// A description may repeat a value too.
fn describe(secret: &SecretMetadata, matcher: &Arc<Matcher>) -> (String, ManagedBy) {
    let mut redactor = Redactor::new(Arc::clone(matcher));
    let mut description = Vec::new();
    redactor.push(secret.description.as_str().as_bytes(), &mut description);
    redactor.finish(&mut description);
    // Values are UTF-8, but a part of one may begin or end within a character.
    (String::from_utf8_lossy(&description).into_owned(), secret.managed_by.clone())
}

/// A template without values, and what was in it.
struct Sanitized {
    json: Zeroizing<String>,
    /// The same.
    template: Template,
    pasted: Vec<Pasted>,
    unlisted: usize,
}

/// The template with references and placeholders in place of values. What was
/// found is told in `sums` also if it fails.
fn sanitize(template: &Template, matcher: &Matcher, sums: &mut Found) -> Result<Sanitized, Error> {
    let (mut pasted, mut unlisted) = (Vec::new(), 0);
    let mut tokens = 0;
    let json = template.rewrite(|_, token| {
        tokens += 1;
        let (Token::String(text) | Token::Number(text)) = token;
        let mut findings = matcher.find(text.as_bytes());
        if !findings.is_empty() {
            // A value in the place of a name is no reference to a secret.
            let references = references_in(text).filter(|(_, name)| matcher.knows(name));
            let references: Vec<_> = references.map(|(range, _)| range).collect();
            findings.retain(|finding| !is_part(&finding.range, &references));
        }
        let found = whole(text, findings);
        let mut edits = Vec::with_capacity(found.len());
        for Whole { range, name, written, partial } in found {
            let with = match (written, partial) {
                (Written::As(Encoding::Raw), false) => Replacement::Reference(name.clone()),
                (_, true) => Replacement::Text(format!("<<part of secrets.{name}>>")),
                (written, false) => {
                    let encoding = written.as_str().to_ascii_lowercase();
                    Replacement::Text(format!("<<{encoding} of secrets.{name}>>"))
                }
            };
            edits.push(Edit { range, with });
            *sums.entry(name.clone()).or_default() += 1;
            if pasted.len() < MAX_LISTED {
                pasted.push((
                    tokens,
                    Pasted { place: String::new(), name: name.clone(), written, partial },
                ));
            } else {
                unlisted += 1;
            }
        }
        edits
    });
    let json = json.map_err(|error| match error {
        RewriteError::TooLarge => Error::RenderedTooLarge,
        RewriteError::Unfit => Error::Internal("a value was found where it cannot be"),
    })?;
    let template = Template::parse(Format::Json, String::clone(&json))
        .map_err(|_| Error::Internal("a sanitized template is not JSON"))?;
    // Told as places of the result, which has the same tokens: those of the
    // source are made of its keys, and values may stand there too.
    let (mut unplaced, mut tokens) = (pasted.iter_mut().peekable(), 0);
    template.tokens(|location, _| {
        tokens += 1;
        while let Some((_, pasted)) = unplaced.next_if(|(token, _)| *token == tokens) {
            pasted.place = location.place().to_string();
        }
    });
    let pasted = pasted.into_iter().map(|(_, pasted)| pasted).collect();
    Ok(Sanitized { json, template, pasted, unlisted })
}

/// Whether a finding is a part of a reference, or all of it: a value that reads
/// like one, or like a name, does not make others' references its own.
fn is_part(finding: &Range<usize>, references: &[Range<usize>]) -> bool {
    let next = references.partition_point(|reference| reference.end < finding.end);
    references.get(next).is_some_and(|reference| reference.start <= finding.start)
}

/// A finding, widened to what has to go with it.
struct Whole<'m> {
    range: Range<usize>,
    name: &'m SecretName,
    written: Written,
    partial: bool,
}

/// Findings widened: to whole characters, and in base64 to all of it, since the
/// rest is of no use and may hold what belongs to the value, such as the user of
/// `Basic` credentials. What then overlaps becomes one.
fn whole<'m>(text: &str, found: Vec<Finding<'m>>) -> Vec<Whole<'m>> {
    let mut all: Vec<Whole<'m>> = Vec::with_capacity(found.len());
    for Finding { range, name, encoding, partial } in found {
        // Each stretch of base64 is widened to once.
        if all.last().is_some_and(|last| range.end <= last.range.end) {
            continue;
        }
        let start = (0..=range.start).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let end = (range.end..text.len()).find(|at| text.is_char_boundary(*at));
        let mut range = start..end.unwrap_or(text.len());
        let mut written = Written::As(encoding);
        if matches!(encoding, Encoding::Base64 | Encoding::Base64Url) {
            let (before, after) = (text.get(..range.start), text.get(range.end..));
            let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_');
            let before = before.unwrap_or_default().trim_end_matches(base64);
            let rest = after.unwrap_or_default();
            let rest = rest.trim_start_matches(base64).trim_start_matches('=');
            range = before.len()..text.len() - rest.len();
            let scheme = before.strip_suffix(' ').map(|before| before.trim_end_matches(' '));
            let basic = |text: &str| {
                text.len()
                    .checked_sub(5)
                    .and_then(|at| text.get(at..))
                    .is_some_and(|word| word.eq_ignore_ascii_case("basic"))
            };
            if scheme.is_some_and(basic) {
                written = Written::Basic;
            }
        }
        match all.last_mut() {
            Some(last) if range.start < last.range.end => {
                last.range.end = last.range.end.max(range.end);
                last.partial |= partial;
            }
            _ => all.push(Whole { range, name, written, partial }),
        }
    }
    all
}
