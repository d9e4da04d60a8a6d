//! Doors for the fuzz targets: page tokens, which callers send back.

use super::{list, trail};
use crate::{domain::SecretName, store::Key};

/// A token, read as one of the listing that has these arguments, and written
/// again; `None` for none. `kind` chooses what it lists.
///
/// # Errors
/// It is not of that listing; all that is told of it.
pub fn page_token(
    kind: u8,
    arguments: &[&str],
    token: &str,
) -> Result<Option<String>, super::Error> {
    let after = match kind % 3 {
        0 => list::page_start(arguments, token, list::Place::parse)?.map(|place| place.0),
        1 => list::page_start(arguments, token, |name| SecretName::parse(name).ok())?
            .map(|name| name.to_string()),
        _ => list::page_start(arguments, token, trail::entry_at)?
            .as_ref()
            .and_then(trail::place)
            .map(str::to_owned),
    };
    Ok(after.map(|after| list::page_token(arguments, Some(&after))))
}

/// The token of the page after a secret of this name.
pub fn token_after(arguments: &[&str], name: &SecretName) -> String {
    let key = Key::metadata(name);
    list::page_token(arguments, key.as_str().strip_prefix(Key::METADATA))
}
