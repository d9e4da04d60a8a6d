//! The secrets of a file, and what is wrong with it.

use std::{collections::HashSet, fmt};

use super::{dotenv, json};
use crate::{
    config::Format,
    domain::{Description, Plaintext, Refusal, SecretName, Timestamp},
};

/// A secret as the file has it.
pub struct Entry {
    pub(super) name: SecretName,
    pub(super) value: Plaintext,
    pub(super) description: Option<Description>,
    pub(super) expire_time: Option<Timestamp>,
}

/// What is wrong with a line. By its types, nothing of the file is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub(super) line: usize,
    pub(super) field: &'static str,
    pub(super) rule: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.field.is_empty() { "" } else { " " };
        write!(f, "line {}: {}{separator}{}", self.line, self.field, self.rule)
    }
}

/// Reads the secrets of a file, in its order.
///
/// # Errors
/// All faults, by line.
pub fn parse(format: Format, bytes: &[u8]) -> Result<Vec<Entry>, Vec<Fault>> {
    let mut found = Found::default();
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            // Some editors begin a file with a byte-order mark.
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            match format {
                Format::Env => dotenv::parse(text, &mut found),
                Format::Json => json::parse(text, &mut found),
            }
        }
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            found.fault(1 + lines(before), "", "is not UTF-8");
        }
    }
    let Found { entries, faults, .. } = found;
    if faults.is_empty() { Ok(entries) } else { Err(faults) }
}

/// How many lines end here.
pub(super) fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// What has been read.
#[derive(Default)]
pub(super) struct Found {
    entries: Vec<Entry>,
    names: HashSet<SecretName>,
    faults: Vec<Fault>,
}

impl Found {
    pub(super) fn fault(&mut self, line: usize, field: &'static str, rule: &'static str) {
        self.faults.push(Fault { line, field, rule });
    }

    /// Takes a secret in, or tells all that is wrong with it.
    pub(super) fn add(
        &mut self,
        line: usize,
        name: &str,
        value: String,
        description: Option<&str>,
        expire_time: Option<&str>,
    ) {
        let name = self.checked(line, "name", SecretName::parse(name));
        let value = self.checked(line, "value", Plaintext::parse(value));
        let description =
            description.map(|text| self.checked(line, "description", Description::parse(text)));
        let expire_time = expire_time.map(|text| self.checked(line, "expire_time", time(text)));
        let Some(name) = name else { return };
        // Readers disagree about which of them counts.
        if !self.names.insert(name.clone()) {
            return self.fault(line, "name", "stands twice in the file");
        }
        let entry = || {
            Some(Entry {
                name,
                value: value?,
                description: sound(description)?,
                expire_time: sound(expire_time)?,
            })
        };
        self.entries.extend(entry());
    }

    fn checked<T>(
        &mut self,
        line: usize,
        field: &'static str,
        parsed: Result<T, Refusal>,
    ) -> Option<T> {
        parsed.map_err(|refusal| self.fault(line, field, refusal.rule())).ok()
    }
}

/// What is absent is sound too.
fn sound<T>(field: Option<Option<T>>) -> Option<Option<T>> {
    match field {
        Some(None) => None,
        Some(parsed) => Some(parsed),
        None => Some(None),
    }
}

fn time(text: &str) -> Result<Timestamp, Refusal> {
    let parsed = humantime::parse_rfc3339(text).ok().map(Timestamp::from);
    // To the API, the epoch means never.
    parsed
        .filter(|time| time.seconds() > 0)
        .ok_or(Refusal::Malformed("must be a time in UTC such as 2030-01-31T00:00:00Z"))
}
