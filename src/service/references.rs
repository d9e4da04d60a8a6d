//! What documents and credentials lists refer to.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cause, Credential, Error, FieldViolation, Unresolved, open::Opened};
use crate::{
    domain::SecretName,
    template::{Location, Template},
};

/// Most distinct secrets that one call may refer to.
pub const MAX_REFERENCES: usize = 100;

/// Faults that are told with their places; of more only the number matters,
/// since no error has room for them.
const PLACES: usize = 400;

/// The distinct names of a call.
///
/// # Errors
/// [`Error::TooManyReferences`].
pub(super) fn distinct<'a>(
    template: Option<&'a Template>,
    credentials: impl Iterator<Item = &'a SecretName>,
) -> Result<BTreeSet<&'a SecretName>, Error> {
    let mut names = template.map(Template::names).unwrap_or_default();
    names.extend(credentials);
    if names.len() > MAX_REFERENCES {
        return Err(Error::TooManyReferences(FieldViolation::new(
            "template",
            "must refer to at most 100 secrets, together with credentials",
        )));
    }
    Ok(names)
}

/// Place of an entry of the credentials list.
pub(super) fn credential_place(index: usize) -> String {
    format!("credentials[{index}]")
}

/// The references of a document, in its order; those without a name are
/// malformed.
pub(super) fn places(template: &Template) -> Vec<(Option<&SecretName>, Location<'_>)> {
    let known = template.references().map(|found| (Some(found.name), found.location));
    let mut all: Vec<_> =
        known.chain(template.malformed().map(|location| (None, location))).collect();
    all.sort_by_key(|(_, location)| location.offset());
    all
}

/// All that keeps a document and a credentials list from being resolved.
pub(super) fn unresolved(
    template: &Template,
    credentials: &[Credential],
    opened: &BTreeMap<&SecretName, Opened>,
) -> Vec<Unresolved> {
    let mut found = Vec::new();
    let mut note = |name: Option<&SecretName>, cause: Cause, place: &dyn Fn() -> String| {
        let place = (found.len() < PLACES).then(place);
        found.push(Unresolved { name: name.cloned(), cause, place });
    };
    let cause = |name: Option<&SecretName>| match name {
        None => Some(Cause::Malformed),
        Some(name) => {
            opened.get(name).map_or(Some(Cause::Missing(None)), |opened| opened.current().err())
        }
    };
    for (name, location) in places(template) {
        if let Some(cause) = cause(name) {
            note(name, cause, &|| location.place().to_string());
        }
    }
    for (index, Credential { secret, version, seen, .. }) in credentials.iter().enumerate() {
        let not_kept = || {
            let version = (*version)?;
            let opened = opened.get(secret)?;
            (!opened.has(version)).then_some(Cause::VersionMissing(version))
        };
        let short = || opened.get(secret)?.falls_short(seen);
        if let Some(cause) = cause(Some(secret)).or_else(not_kept).or_else(short) {
            note(Some(secret), cause, &|| credential_place(index));
        }
    }
    found
}
