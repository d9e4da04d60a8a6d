//! The policy file: TOML to grants, with every fault and its line.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
    sync::Arc,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Grant, Integrations, Pattern, Policy, Role};
use crate::domain::{CallerId, Integration, WorkspaceId};

/// One fault of a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFault {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong there. Names keys, but never holds a value: the file may
    /// be the wrong one.
    pub fault: String,
}

/// All faults of a policy file, by line; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors(Vec<PolicyFault>);

impl PolicyErrors {
    /// The faults, by line.
    pub fn faults(&self) -> &[PolicyFault] {
        &self.0
    }
}

impl std::error::Error for PolicyErrors {}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, PolicyFault { line, fault }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}line {line}: {fault}")?;
        }
        Ok(())
    }
}

pub(super) fn policy(text: &str) -> Result<Policy, PolicyErrors> {
    let mut reader = Reader { text, faults: Vec::new() };
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        // The message only: the error's own text quotes the file.
        reader.fault(&error.span().unwrap_or_default(), error.message());
    }
    let callers = if syntax.is_empty() { reader.document(&document) } else { HashMap::new() };
    let mut faults = reader.faults;
    faults.sort_by_key(|fault| fault.line);
    if faults.is_empty() { Ok(Policy { callers }) } else { Err(PolicyErrors(faults)) }
}

/// Reads what it can and collects what is wrong; `None` means that a fault was
/// noted.
struct Reader<'a> {
    text: &'a str,
    faults: Vec<PolicyFault>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn fault(&mut self, at: &Range<usize>, fault: impl Into<String>) {
        let line = self.line(at);
        self.faults.push(PolicyFault { line, fault: fault.into() });
    }

    fn line(&self, at: &Range<usize>) -> usize {
        1 + self.text.bytes().take(at.start).filter(|byte| *byte == b'\n').count()
    }

    fn document(&mut self, document: &Spanned<DeTable<'_>>) -> HashMap<CallerId, Vec<Grant>> {
        let table = document.get_ref();
        self.only_keys(table, &["allow_combined_roles", "grant"]);
        let combined = table.get("allow_combined_roles").and_then(|flag| {
            let known = flag.get_ref().as_bool();
            if known.is_none() {
                self.fault(&flag.span(), "allow_combined_roles must be true or false");
            }
            known
        });

        let mut callers: HashMap<CallerId, Vec<(Range<usize>, Grant)>> = HashMap::new();
        for item in self.grant_tables(table) {
            let Some(fields) = item.get_ref().as_table() else {
                self.fault(&item.span(), "grant must be a table: [[grant]]");
                continue;
            };
            if let Some((caller, grant)) = self.grant(&item.span(), fields) {
                callers.entry(caller).or_default().push((item.span(), grant));
            }
        }
        for grants in callers.values() {
            self.compare(grants, combined == Some(true));
        }
        let plain = |grants: Vec<_>| grants.into_iter().map(|(_, grant)| grant).collect();
        callers.into_iter().map(|(caller, grants)| (caller, plain(grants))).collect()
    }

    fn grant_tables<'v, 'i>(&mut self, table: &'v DeTable<'i>) -> Vec<&'v Value<'i>> {
        let grants = table.get("grant");
        match grants.map(|value| value.get_ref().as_array()) {
            Some(Some(tables)) if !tables.is_empty() => return tables.iter().collect(),
            Some(None) => self.fault(&span(grants), "grant must be a list: [[grant]]"),
            _ => self.fault(&span(grants), "grants nothing: at least one [[grant]] is needed"),
        }
        Vec::new()
    }

    fn grant(&mut self, at: &Range<usize>, fields: &DeTable<'_>) -> Option<(CallerId, Grant)> {
        self.only_keys(fields, &["caller", "role", "workspaces", "integrations"]);
        let caller = self.field(at, fields, "caller").and_then(|value| self.caller(value));
        let workspaces =
            self.field(at, fields, "workspaces").and_then(|value| self.workspaces(value));
        let role = self.field(at, fields, "role").and_then(|value| self.role(at, fields, value));
        Some((caller?, Grant { role: role?, workspaces: workspaces? }))
    }

    fn caller(&mut self, value: &Value<'_>) -> Option<CallerId> {
        let text = self.string("caller", value)?;
        let parsed = CallerId::parse(text);
        parsed.map_err(|no| self.fault(&value.span(), format!("caller {}", no.rule()))).ok()
    }

    fn role(&mut self, at: &Range<usize>, fields: &DeTable<'_>, value: &Value<'_>) -> Option<Role> {
        let role = match self.string("role", value)? {
            "executor" => Role::Executor,
            "platform" => Role::Platform,
            "operator" => Role::Operator,
            "integration" => {
                let named = self.field(at, fields, "integrations")?;
                return Some(Role::Integration(Arc::new(self.integrations(named)?)));
            }
            _ => {
                let roles = "role must be executor, platform, integration or operator";
                self.fault(&value.span(), roles);
                return None;
            }
        };
        if let Some(stray) = fields.get("integrations") {
            self.fault(&stray.span(), "integrations belongs to the role integration only");
        }
        Some(role)
    }

    fn workspaces(&mut self, value: &Value<'_>) -> Option<Vec<Pattern>> {
        let rule = "workspaces: each must be a workspace id, a prefix followed by *, or *";
        let mut patterns = Some(Vec::new());
        for (at, text) in self.strings("workspaces", value)? {
            let pattern = match text.strip_suffix('*') {
                Some("") => Some(Pattern::Prefix(String::new())),
                // A beginning of a workspace id is one itself.
                Some(prefix) => WorkspaceId::parse(prefix)
                    .ok()
                    .map(|prefix| Pattern::Prefix(prefix.as_str().to_owned())),
                None => WorkspaceId::parse(text).ok().map(Pattern::Exact),
            };
            if pattern.is_none() {
                self.fault(&at, rule);
            }
            patterns = collect(patterns, pattern);
        }
        patterns
    }

    fn integrations(&mut self, value: &Value<'_>) -> Option<Integrations> {
        let texts = self.strings("integrations", value)?;
        if let [(_, "*")] = texts.as_slice() {
            return Some(Integrations::All);
        }
        let mut named = Some(Vec::new());
        for (at, text) in texts {
            let integration = Integration::parse(text);
            if let Err(refusal) = integration {
                let rule = refusal.rule();
                self.fault(&at, format!("integrations: each {rule}, or * alone"));
            }
            named = collect(named, integration.ok());
        }
        named.map(|named| Integrations::Named(named.into_iter().collect()))
    }

    /// Faults of one caller's grants taken together.
    fn compare(&mut self, grants: &[(Range<usize>, Grant)], combined: bool) {
        for (index, (at, grant)) in grants.iter().enumerate() {
            for (earlier_at, earlier) in grants.iter().take(index) {
                let line = self.line(earlier_at);
                if grant.repeats(earlier) {
                    self.fault(at, format!("repeats the grant on line {line}"));
                }
                if !combined && grant.combines(earlier) {
                    self.fault(
                        at,
                        format!(
                            "with the grant on line {line}, the caller would both manage and \
                             read values; allow_combined_roles = true would permit that"
                        ),
                    );
                }
            }
        }
    }

    fn only_keys(&mut self, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            self.fault(&key.span(), format!("unknown key {:?}", key.get_ref()));
        }
    }

    fn field<'v, 'i>(
        &mut self,
        at: &Range<usize>,
        fields: &'v DeTable<'i>,
        key: &str,
    ) -> Option<&'v Value<'i>> {
        let value = fields.get(key);
        if value.is_none() {
            self.fault(at, format!("{key} is missing"));
        }
        value
    }

    fn string<'v>(&mut self, key: &str, value: &'v Value<'_>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.fault(&value.span(), format!("{key} must be a string"));
        }
        text
    }

    /// A list of distinct strings, at least one.
    fn strings<'v>(
        &mut self,
        key: &str,
        value: &'v Value<'_>,
    ) -> Option<Vec<(Range<usize>, &'v str)>> {
        let Some(items) = value.get_ref().as_array().filter(|items| !items.is_empty()) else {
            self.fault(&value.span(), format!("{key} must be a list of at least one string"));
            return None;
        };
        let mut seen = HashSet::new();
        let mut texts = Some(Vec::new());
        for item in items.iter() {
            let text = self.string(key, item);
            if text.is_some_and(|text| !seen.insert(text)) {
                self.fault(&item.span(), format!("{key}: listed twice"));
            }
            texts = collect(texts, text.map(|text| (item.span(), text)));
        }
        texts
    }
}

fn span(value: Option<&Value<'_>>) -> Range<usize> {
    value.map(Spanned::span).unwrap_or_default()
}

/// Goes on after a first `None` so that the faults behind it are found too.
fn collect<T>(list: Option<Vec<T>>, item: Option<T>) -> Option<Vec<T>> {
    let mut list = list?;
    list.push(item?);
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<(usize, String)> {
        let errors = Policy::parse(text).map(|_| ()).unwrap_err();
        errors.0.into_iter().map(|fault| (fault.line, fault.fault)).collect()
    }

    /// A good grant with one line exchanged.
    fn grant(key: &str, line: &str) -> String {
        let mut lines = [
            ("caller", "caller = 'spiffe://td/a'"),
            ("role", "role = 'executor'"),
            ("workspaces", "workspaces = ['ws_1']"),
            ("integrations", ""),
        ];
        for entry in lines.iter_mut().filter(|entry| entry.0 == key) {
            entry.1 = line;
        }
        let lines = lines.iter().map(|entry| entry.1).collect::<Vec<_>>();
        format!("[[grant]]\n{}\n", lines.join("\n"))
    }

    #[test]
    fn each_fault_is_told_with_its_line() {
        for (key, line, at, part) in [
            ("caller", "", 1, "caller is missing"),
            ("caller", "caller = 7", 2, "must be a string"),
            ("caller", "caller = 'https://td/a'", 2, "SPIFFE"),
            ("caller", "caller = 'spiffe://TD/a'", 2, "SPIFFE"),
            ("role", "", 1, "role is missing"),
            ("role", "role = 'admin'", 3, "role must be"),
            ("role", "role = 'Executor'", 3, "role must be"),
            ("role", "role = 'integration'", 1, "integrations is missing"),
            ("workspaces", "", 1, "workspaces is missing"),
            ("workspaces", "workspaces = []", 4, "at least one"),
            ("workspaces", "workspaces = 'ws_1'", 4, "list"),
            ("workspaces", "workspaces = [\n'a',\n3]", 6, "string"),
            ("workspaces", "workspaces = ['']", 4, "workspaces: each"),
            ("workspaces", "workspaces = ['a*b']", 4, "workspaces: each"),
            ("workspaces", "workspaces = ['a**']", 4, "workspaces: each"),
            ("workspaces", "workspaces = ['*a']", 4, "workspaces: each"),
            ("workspaces", "workspaces = ['-*']", 4, "workspaces: each"),
            ("workspaces", "workspaces = ['a?']", 4, "workspaces: each"),
            ("workspaces", "workspaces = ['a', 'a']", 4, "listed twice"),
            ("integrations", "integrations = ['x']", 5, "belongs to the role integration"),
            ("integrations", "workspace = ['x']", 5, "unknown key \"workspace\""),
        ] {
            let told = faults(&grant(key, line));
            assert_eq!(told.len(), 1, "{line}: {told:?}");
            assert_eq!(told[0].0, at, "{line}: {told:?}");
            assert!(told[0].1.contains(part), "{line}: {told:?}");
        }
        assert!(Policy::parse(&grant("", "")).is_ok());
    }

    #[test]
    fn integrations_are_checked() {
        let with = |list: &str| {
            let text = grant("role", "role = 'integration'");
            Policy::parse(&format!("{text}integrations = {list}\n"))
        };
        for good in ["['x']", "['x', 'google_sheets']", "['*']"] {
            assert!(with(good).is_ok(), "{good}");
        }
        for bad in ["[]", "['']", "['x*']", "['*', 'x']", "['x', 'x']", "'x'", "[1]"] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_faults_are_told_at_once_and_by_line() {
        let told = faults(
            "surplus = 1\nallow_combined_roles = 'yes'\n[[grant]]\nrole = 'admin'\n\
             workspaces = ['a', '?', '']\n[[grant]]\ncaller = 'x'\n",
        );
        let lines = told.iter().map(|(line, _)| *line).collect::<Vec<_>>();
        assert_eq!(lines, [1, 2, 3, 4, 5, 5, 6, 6, 7], "{told:?}");
    }

    #[test]
    fn files_that_grant_nothing_are_refused() {
        for text in ["", "# none\n", "allow_combined_roles = true\n", "grant = []\n"] {
            assert!(faults(text)[0].1.contains("grants nothing"), "{text}");
        }
        assert!(faults("grant = 'x'\n")[0].1.contains("must be a list"));
        assert!(faults("grant = [1]\n")[0].1.contains("must be a table"));
    }

    #[test]
    fn syntax_errors_are_told_without_the_text() {
        let told = faults("[[grant]]\ncaller = sk_live_CANARY\nrole = \n");
        assert!(told.iter().any(|(line, _)| *line == 2), "{told:?}");
        assert!(told.iter().any(|(line, _)| *line == 3), "{told:?}");
        assert!(!format!("{told:?}").contains("CANARY"), "{told:?}");
        assert_eq!(faults("[[grant]]\ncaller = \n").len(), 1, "and nothing that follows from it");
        let values =
            faults("[[grant]]\ncaller = 'CANARY'\nrole = 'CANARY'\nworkspaces = ['CA NARY']");
        assert!(!format!("{values:?}").contains("CANARY"), "{values:?}");
    }

    #[test]
    fn repeated_grants_are_refused() {
        let one = grant("", "");
        let wider = grant("workspaces", "workspaces = ['ws_1', 'other']");
        let elsewhere = grant("workspaces", "workspaces = ['other']");
        let told = faults(&format!("{one}{wider}"));
        assert_eq!(told, [(6, "repeats the grant on line 1".to_owned())]);
        assert!(Policy::parse(&format!("{one}{elsewhere}")).is_ok());
    }

    #[test]
    fn managing_and_reading_do_not_combine_unless_allowed() {
        let pair = |one: &str, two: &str, role: &str| {
            let reads = grant("workspaces", &format!("workspaces = ['{one}']"));
            let role = format!("role = '{role}'\nworkspaces = ['{two}']");
            let manages = format!("[[grant]]\ncaller = 'spiffe://td/a'\n{role}\n");
            [format!("{reads}{manages}"), format!("{manages}{reads}")]
        };
        let integration = "integration'\nintegrations = ['x']\n# '";
        for (one, two) in [("a", "a"), ("a*", "ab"), ("ab", "a*"), ("a*", "ab*"), ("*", "z")] {
            for text in [pair(one, two, "platform"), pair(one, two, integration)].concat() {
                assert!(faults(&text)[0].1.contains("both manage and read"), "{text}");
                assert!(Policy::parse(&format!("allow_combined_roles = true\n{text}")).is_ok());
                assert!(Policy::parse(&format!("allow_combined_roles = false\n{text}")).is_err());
            }
            assert!(Policy::parse(&pair(one, two, "operator")[0]).is_ok());
        }
        for (one, two) in [("a", "b"), ("a*", "b*"), ("a", "ab"), ("ab*", "a")] {
            assert!(Policy::parse(&pair(one, two, "platform")[0]).is_ok(), "{one} {two}");
        }
    }
}
