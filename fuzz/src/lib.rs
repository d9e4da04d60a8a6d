//! What must hold of the service's rooms for every input. One file in `bin/` is
//! one target; `run.sh` finds it by itself.

pub use workflow_secrets::{domain, matcher, template};

use domain::Plaintext;
use template::{Format, Place, Template, Token};

/// A value that may not break out of a string nor be taken for a reference.
pub fn nasty() -> Plaintext {
    value("\"\\\n\0{{secrets.A}}\u{2028}\u{1f600}\\")
}

/// A value.
pub fn value(text: &str) -> Plaintext {
    Plaintext::parse(text.to_owned()).ok().expect("a value")
}

/// A template, if this is one.
pub fn parse(format: Format, data: &[u8]) -> Option<Template> {
    Template::parse(format, std::str::from_utf8(data).ok()?.to_owned()).ok()
}

/// Every string (`true`) and number (`false`) with its place.
pub fn tokens(template: &Template) -> Vec<(Place, bool, String)> {
    let mut all = vec![];
    template.tokens(|location, token| {
        let (string, text) = match token {
            Token::String(text) => (true, text),
            Token::Number(text) => (false, text),
        };
        all.push((location.place(), string, text.to_owned()));
    });
    all
}

/// What the dictionary and the seeds hold and no refusal may repeat.
pub const CANARY: &str = "W5F-CANARY";
