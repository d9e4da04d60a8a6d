//! Messages of the calls that look through documents and streams, to domain
//! types and back: the rest of `convert`.

use super::{
    convert::{Faults, pinned, timestamp},
    proto,
};
use crate::{
    domain::{Alias, ManagedBy, RunId, SecretName, WorkflowId, WorkspaceId},
    matcher::{Encoding, Skipped},
    service::{
        CandidateCredential, CheckReferences, Checked, CheckedReference, Credentials, Days, Error,
        FieldViolation, MAX_REFERENCES, OpenRedaction, Pasted, PrepareTemplate, Prepared,
        ReferenceState, RenderTemplate, Rendered, Required, Resolved, Tally, Written,
    },
    template::{Format, ParseError, Template},
};

/// Parses a document. Too large is another error than malformed.
fn template(
    faults: &mut Faults,
    field: &'static str,
    format: Format,
    text: String,
) -> Result<Option<Template>, Error> {
    match Template::parse(format, text) {
        Ok(template) => Ok(Some(template)),
        Err(error @ ParseError::TooLarge) => {
            Err(Error::TemplateTooLarge(FieldViolation::new(field, error.to_string())))
        }
        Err(error) => {
            faults.note(FieldViolation::new(field, error.to_string()));
            Ok(None)
        }
    }
}

pub(super) fn render(mut message: proto::RenderTemplateRequest) -> Result<RenderTemplate, Error> {
    use proto::render_template_request::Template::{Json, Text};
    Credentials::check_count(message.credentials.len())?;
    let mut faults = Faults::default();
    let template = match message.template.take() {
        Some(Json(text)) => template(&mut faults, "json", Format::Json, text)?,
        Some(Text(text)) => template(&mut faults, "text", Format::Text, text)?,
        None => {
            faults.note(FieldViolation::new("template", "must be present, as json or as text"));
            None
        }
    };
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let workflow_id = faults.optional("workflow_id", &message.workflow_id, WorkflowId::parse);
    let run_id = faults.optional("run_id", &message.run_id, RunId::parse);
    let credentials = faults.credentials(&message.credentials);
    let (workspace, template) = faults.finish(workspace.zip(template))?;
    let credentials = Credentials::or_none(credentials)?;
    Ok(RenderTemplate { workspace, template, credentials, workflow_id, run_id })
}

pub(super) fn rendered(done: Rendered) -> proto::RenderTemplateResponse {
    let Rendered { mut text, context, used } = done;
    let value = |Resolved { alias, payload, .. }: Resolved| {
        (alias.to_string(), payload.value.expose().to_owned())
    };
    let used = used
        .into_iter()
        .map(|(name, version)| proto::UsedSecret { name: name.to_string(), version });
    proto::RenderTemplateResponse {
        rendered: std::mem::take(&mut *text),
        context_secrets: context.into_iter().map(value).collect(),
        used: used.collect(),
    }
}

fn candidates(all: &[proto::Credential]) -> Vec<CandidateCredential> {
    let candidate = |credential: &proto::Credential| {
        let secret = SecretName::parse(&credential.secret).ok();
        let alias = match credential.alias.as_str() {
            "" => secret.as_ref().map(Alias::from),
            alias => Alias::parse(alias).ok(),
        };
        CandidateCredential { secret, alias, version: pinned(credential.version) }
    };
    all.iter().map(candidate).collect()
}

pub(super) fn check(mut message: proto::CheckReferencesRequest) -> Result<CheckReferences, Error> {
    use proto::check_references_request::Template::{Json, Text};
    Credentials::check_count(message.credentials.len())?;
    let mut faults = Faults::default();
    let template = match message.template.take() {
        Some(Json(text)) => template(&mut faults, "json", Format::Json, text)?,
        Some(Text(text)) => template(&mut faults, "text", Format::Text, text)?,
        None => {
            if message.credentials.is_empty() {
                let rule = "must be present, as json or as text, unless there are credentials";
                faults.note(FieldViolation::new("template", rule));
            }
            None
        }
    };
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let days = Days::new(message.expiring_within_days);
    if days.is_none() {
        faults.note(FieldViolation::new("expiring_within_days", "must be 0 to 3,650"));
    }
    let (workspace, expiring_within_days) = faults.finish(workspace.zip(days))?;
    let credentials = candidates(&message.credentials);
    Ok(CheckReferences { workspace, template, credentials, expiring_within_days })
}

pub(super) fn checked(done: Checked) -> proto::CheckReferencesResponse {
    let reference = |found: CheckedReference| {
        let (managed_by, integration) = managed(found.managed_by.as_ref());
        proto::CheckedReference {
            place: found.place,
            name: found.name.map_or_else(String::new, |name| name.to_string()),
            state: state(found.state).into(),
            managed_by: managed_by.into(),
            integration,
            expire_time: found.expire_time.map(timestamp),
        }
    };
    proto::CheckReferencesResponse {
        references: done.references.into_iter().map(reference).collect(),
        unlisted: count(done.unlisted),
        resolvable: done.resolvable,
    }
}

fn state(state: ReferenceState) -> proto::ReferenceState {
    match state {
        ReferenceState::Ok => proto::ReferenceState::Ok,
        ReferenceState::Missing => proto::ReferenceState::Missing,
        ReferenceState::Expired => proto::ReferenceState::Expired,
        ReferenceState::Expiring => proto::ReferenceState::Expiring,
        ReferenceState::Malformed => proto::ReferenceState::Malformed,
        ReferenceState::AliasInvalid => proto::ReferenceState::AliasInvalid,
        ReferenceState::AliasDuplicate => proto::ReferenceState::AliasDuplicate,
        ReferenceState::VersionMissing => proto::ReferenceState::VersionMissing,
    }
}

fn managed(managed_by: Option<&ManagedBy>) -> (proto::ManagedBy, String) {
    match managed_by {
        None => (proto::ManagedBy::Unspecified, String::new()),
        Some(ManagedBy::User) => (proto::ManagedBy::User, String::new()),
        Some(ManagedBy::System(owner)) => (proto::ManagedBy::System, owner.integration.to_string()),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

pub(super) fn prepare(
    mut message: proto::PrepareTemplateRequest,
) -> Result<PrepareTemplate, Error> {
    Credentials::check_count(message.credentials.len())?;
    let mut faults = Faults::default();
    let json = std::mem::take(&mut message.json);
    let template = template(&mut faults, "json", Format::Json, json)?;
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let (workspace, template) = faults.finish(workspace.zip(template))?;
    let credentials = candidates(&message.credentials);
    Ok(PrepareTemplate { workspace, template, credentials, strict: message.strict })
}

pub(super) fn prepared(done: Prepared) -> proto::PrepareTemplateResponse {
    let Prepared { mut json, pasted, unlisted, manifest, malformed } = done;
    let pasted = pasted.into_iter().map(|Pasted { place, name, written, partial }| {
        let encoding = match written {
            Written::As(encoding) => self::encoding(encoding),
            Written::Basic => proto::ValueEncoding::Basic,
        };
        proto::PastedValue { place, name: name.to_string(), encoding: encoding.into(), partial }
    });
    let manifest = manifest.into_iter().map(|(name, required)| {
        let Required { known, places, unlisted_places } = required;
        let (managed_by, integration) = managed(known.as_ref().map(|(_, managed_by)| managed_by));
        proto::RequiredSecret {
            name: name.to_string(),
            description: known.map_or_else(String::new, |(description, _)| description),
            managed_by: managed_by.into(),
            integration,
            places,
            unlisted_places: count(unlisted_places),
        }
    });
    proto::PrepareTemplateResponse {
        json: std::mem::take(&mut *json),
        pasted: pasted.collect(),
        unlisted_pasted: count(unlisted),
        manifest: manifest.collect(),
        malformed,
    }
}

fn encoding(encoding: Encoding) -> proto::ValueEncoding {
    match encoding {
        Encoding::Raw => proto::ValueEncoding::Raw,
        Encoding::Base64 => proto::ValueEncoding::Base64,
        Encoding::Base64Url => proto::ValueEncoding::Base64url,
        Encoding::Hex => proto::ValueEncoding::Hex,
        Encoding::Url => proto::ValueEncoding::Url,
        Encoding::Json => proto::ValueEncoding::Json,
        Encoding::Line => proto::ValueEncoding::Line,
    }
}

pub(super) fn open_redaction(
    message: Option<proto::RedactRequest>,
) -> Result<OpenRedaction, Error> {
    let open = match message.and_then(|mut message| message.request.take()) {
        Some(proto::redact_request::Request::Open(open)) => open,
        _ => return Err(Error::field("open", "must be the first message of the stream")),
    };
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&open.workspace));
    let workflow_id = faults.optional("workflow_id", &open.workflow_id, WorkflowId::parse);
    let run_id = faults.optional("run_id", &open.run_id, RunId::parse);
    if open.names.len() > MAX_REFERENCES {
        let rule = "must have at most 100 entries; all_names looks for all";
        return Err(Error::TooManyReferences(FieldViolation::new("names", rule)));
    }
    if open.names.is_empty() != open.all_names {
        faults.note(FieldViolation::new("names", "must be present unless all_names is set"));
    }
    let mut names = std::collections::BTreeSet::new();
    for (i, name) in open.names.iter().enumerate() {
        names.extend(faults.check(&format!("names[{i}]"), SecretName::parse(name)));
    }
    let workspace = faults.finish(workspace)?;
    let names = (!open.all_names).then_some(names);
    Ok(OpenRedaction { workspace, names, mask_short: open.mask_short, workflow_id, run_id })
}

/// The bytes of any message but the first.
pub(super) fn chunk(message: &proto::RedactRequest) -> Result<&[u8], Error> {
    match &message.request {
        Some(proto::redact_request::Request::Chunk(bytes)) => Ok(bytes),
        Some(proto::redact_request::Request::Open(_)) | None => {
            Err(Error::field("chunk", "must be in each message but the first"))
        }
    }
}

/// The last answer of a stream.
pub(super) fn tally(tally: Tally, input_bytes: u64) -> proto::RedactResponse {
    use proto::unmasked_secret::Reason;
    let masked = tally.masked.into_iter().map(|(name, encoding, count)| proto::MaskedValue {
        name: name.to_string(),
        encoding: self::encoding(encoding).into(),
        count,
    });
    let unmasked = tally.unmasked.into_iter().map(|(name, skipped)| {
        let reason = match skipped {
            Skipped::TooShort => Reason::TooShort,
            Skipped::CommonWord => Reason::CommonWord,
        };
        proto::UnmaskedSecret { name: name.to_string(), reason: reason.into() }
    });
    let tally = proto::RedactTally { masked: masked.collect(), unmasked: unmasked.collect() };
    proto::RedactResponse { chunk: Vec::new(), input_bytes, tally: Some(tally) }
}
