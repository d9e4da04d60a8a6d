//! JSON files: `{"NAME": "value", "NAME": {"value": "...", "description": "...",
//! "expire_time": "2030-01-31T00:00:00Z"}}`.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{error::Category, value::RawValue};

use super::document::{Found, lines};

/// The members of an object in their order, repeated names too.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;

        impl<'de> Visitor<'de> for Visit {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = vec![];
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Visit)
    }
}

/// A secret with more than a value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    value: String,
    description: Option<String>,
    expire_time: Option<String>,
}

/// Reads the text. The parser's own errors quote it, so only their places count.
pub(super) fn parse(text: &str, found: &mut Found) {
    let members = match serde_json::from_str::<Members<'_>>(text) {
        Ok(Members(members)) => members,
        Err(error) => {
            let rule = match error.classify() {
                Category::Data => "must be an object of names and secrets",
                _ => "is no JSON here",
            };
            return found.fault(error.line(), "", rule);
        }
    };
    let (mut line, mut seen) = (1, 0);
    for (name, raw) in members {
        // Where it stands: it is part of the text.
        let at = raw.get().as_ptr().addr().saturating_sub(text.as_ptr().addr());
        line += lines(text.as_bytes().get(seen..at).unwrap_or_default());
        seen = at;
        match secret(raw.get()) {
            Ok(Long { value, description, expire_time }) => {
                found.add(line, &name, value, description.as_deref(), expire_time.as_deref());
            }
            Err(error) => {
                let rule = "must be a string, or an object of value, description and \
                            expire_time, all of them strings";
                found.fault(line + error.line().saturating_sub(1), "", rule);
            }
        }
    }
}

fn secret(raw: &str) -> Result<Long, serde_json::Error> {
    if raw.starts_with('"') {
        let value = serde_json::from_str(raw)?;
        return Ok(Long { value, description: None, expire_time: None });
    }
    serde_json::from_str(raw)
}
