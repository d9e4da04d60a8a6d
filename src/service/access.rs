//! Who may do what: the policy, and what it grants one caller in one
//! workspace. Whatever is not granted is denied.
//!
//! ```toml
//! [[grant]]
//! caller = "spiffe://example.org/executor"
//! role = "executor"          # executor, platform, integration or operator
//! workspaces = ["ws_*"]      # an id, a prefix followed by *, or *
//!
//! [[grant]]
//! caller = "spiffe://example.org/connections"
//! role = "integration"
//! integrations = ["google_sheets"]    # or ["*"]; for this role only
//! workspaces = ["*"]
//! ```
//!
//! A policy is refused if it gives one caller the role `executor` and the role
//! `platform` or `integration` in a common workspace: nobody both manages and
//! reads values. `allow_combined_roles = true`, at the top, lifts that.

mod parse;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

pub use parse::{PolicyErrors, PolicyFault};

use crate::domain::{Actor, CallerId, Deadline, Integration, TraceId, WorkspaceId};

/// Whom a call comes from, and how long they wait for its outcome.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Proven by the connection; the only part that access depends on.
    pub id: CallerId,
    /// The person behind the call, as the caller tells it; never trusted.
    pub actor: Option<Actor>,
    /// Trace the call belongs to, as the caller tells it; never trusted.
    pub trace_id: Option<TraceId>,
    /// Nothing is begun for them after it, and no outcome is waited for.
    pub deadline: Deadline,
}

/// All grants. Immutable: a changed policy file makes a new one.
#[derive(Debug)]
pub struct Policy {
    callers: HashMap<CallerId, Vec<Grant>>,
}

impl Policy {
    /// Parses a policy file; see the [module](self) for its form.
    ///
    /// # Errors
    /// Every fault with its line; one suffices to refuse the file whole.
    /// Syntax errors hide faults of content. A file that grants nothing is
    /// refused.
    pub fn parse(toml: &str) -> Result<Self, PolicyErrors> {
        parse::policy(toml)
    }

    /// Grants one caller every role, in every workspace, for every
    /// integration. For `dev`.
    pub fn everything(caller: CallerId) -> Self {
        let integrations = Arc::new(Integrations::All);
        let roles =
            [Role::Executor, Role::Platform, Role::Operator, Role::Integration(integrations)];
        let everywhere = |role| Grant { role, workspaces: vec![Pattern::Prefix(String::new())] };
        Self { callers: HashMap::from([(caller, roles.map(everywhere).into())]) }
    }

    /// What a caller may do in a workspace, whether or not that exists.
    pub fn grants(&self, caller: &CallerId, workspace: &WorkspaceId) -> Grants {
        let mut grants = Grants::default();
        for grant in self.callers.get(caller).into_iter().flatten() {
            if grant.workspaces.iter().any(|pattern| pattern.matches(workspace)) {
                grants.add(&grant.role);
            }
        }
        grants
    }

    /// What a caller may do in every workspace, whatever its name.
    pub fn grants_everywhere(&self, caller: &CallerId) -> Grants {
        let mut grants = Grants::default();
        for grant in self.callers.get(caller).into_iter().flatten() {
            if grant.workspaces.contains(&Pattern::Prefix(String::new())) {
                grants.add(&grant.role);
            }
        }
        grants
    }
}

/// What one caller may do in one workspace. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    executor: bool,
    platform: bool,
    operator: bool,
    integrations: Vec<Arc<Integrations>>,
}

impl Grants {
    /// May read values: role `executor`.
    pub fn resolve(&self) -> bool {
        self.executor
    }

    /// May create, change and delete secrets of people: role `platform`.
    pub fn manage_user(&self) -> bool {
        self.platform
    }

    /// May see what is known of all secrets, without values: role `platform`
    /// or `operator`.
    pub fn list(&self) -> bool {
        self.platform || self.operator
    }

    /// May manage data keys: role `operator`.
    pub fn manage_keys(&self) -> bool {
        self.operator
    }

    /// May manage the secrets of this integration: role `integration`, naming
    /// it.
    pub fn integration(&self, integration: &Integration) -> bool {
        self.integrations.iter().any(|named| named.contains(integration))
    }

    /// Has the role `integration` for at least one.
    pub fn any_integration(&self) -> bool {
        !self.integrations.is_empty()
    }

    fn add(&mut self, role: &Role) {
        match role {
            Role::Executor => self.executor = true,
            Role::Platform => self.platform = true,
            Role::Operator => self.operator = true,
            Role::Integration(named) => self.integrations.push(Arc::clone(named)),
        }
    }
}

#[derive(Debug)]
struct Grant {
    role: Role,
    workspaces: Vec<Pattern>,
}

impl Grant {
    /// Together they let a caller both manage and read values.
    fn combines(&self, other: &Self) -> bool {
        let manages = |role: &Role| matches!(role, Role::Platform | Role::Integration(_));
        let reads = |role: &Role| matches!(role, Role::Executor);
        let both =
            reads(&self.role) && manages(&other.role) || manages(&self.role) && reads(&other.role);
        both && self
            .workspaces
            .iter()
            .any(|mine| other.workspaces.iter().any(|theirs| mine.overlaps(theirs)))
    }

    /// Both grant some same thing.
    fn repeats(&self, other: &Self) -> bool {
        self.role.repeats(&other.role)
            && self.workspaces.iter().any(|pattern| other.workspaces.contains(pattern))
    }
}

#[derive(Debug)]
enum Role {
    Executor,
    Platform,
    Operator,
    Integration(Arc<Integrations>),
}

impl Role {
    fn repeats(&self, other: &Self) -> bool {
        match (self, other) {
            (Role::Integration(mine), Role::Integration(theirs)) => match (&**mine, &**theirs) {
                (Integrations::Named(mine), Integrations::Named(theirs)) => {
                    !mine.is_disjoint(theirs)
                }
                _ => true,
            },
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// Integrations a grant names; never an empty set.
#[derive(Debug)]
enum Integrations {
    All,
    Named(HashSet<Integration>),
}

impl Integrations {
    fn contains(&self, integration: &Integration) -> bool {
        match self {
            Self::All => true,
            Self::Named(named) => named.contains(integration),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    Exact(WorkspaceId),
    Prefix(String),
}

impl Pattern {
    fn matches(&self, workspace: &WorkspaceId) -> bool {
        match self {
            Self::Exact(exact) => exact == workspace,
            Self::Prefix(prefix) => workspace.as_str().starts_with(prefix.as_str()),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(exact), pattern) | (pattern, Self::Exact(exact)) => pattern.matches(exact),
            (Self::Prefix(one), Self::Prefix(two)) => {
                one.starts_with(two.as_str()) || two.starts_with(one.as_str())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(name: &str) -> CallerId {
        CallerId::parse(&format!("spiffe://td/{name}")).unwrap()
    }

    fn workspace(id: &str) -> WorkspaceId {
        WorkspaceId::parse(id).unwrap()
    }

    fn integration(name: &str) -> Integration {
        Integration::parse(name).unwrap()
    }

    #[test]
    fn each_role_grants_its_own_and_no_more() {
        let policy = Policy::parse(
            r#"
            [[grant]]
            caller = "spiffe://td/e"
            role = "executor"
            workspaces = ["ws_*", "exact"]
            [[grant]]
            caller = "spiffe://td/p"
            role = "platform"
            workspaces = ["*"]
            [[grant]]
            caller = "spiffe://td/o"
            role = "operator"
            workspaces = ["*"]
            [[grant]]
            caller = "spiffe://td/i"
            role = "integration"
            integrations = ["google_sheets", "slack"]
            workspaces = ["*"]
            "#,
        )
        .unwrap();
        let rights = |name: &str, id: &str| {
            let grants = policy.grants(&caller(name), &workspace(id));
            (grants.resolve(), grants.manage_user(), grants.list(), grants.any_integration())
        };
        assert_eq!(rights("e", "ws_1"), (true, false, false, false));
        assert_eq!(rights("e", "exact"), (true, false, false, false));
        assert_eq!(rights("e", "exact1"), (false, false, false, false));
        assert_eq!(rights("e", "xws_1"), (false, false, false, false));
        assert_eq!(rights("p", "any"), (false, true, true, false));
        assert_eq!(rights("o", "any"), (false, false, true, false));
        assert_eq!(rights("i", "any"), (false, false, false, true));
        assert_eq!(rights("stranger", "ws_1"), (false, false, false, false));

        let grants = policy.grants(&caller("i"), &workspace("any"));
        assert!(grants.integration(&integration("slack")));
        assert!(!grants.integration(&integration("jira")));
        let executor = policy.grants(&caller("e"), &workspace("ws_1"));
        assert!(!executor.integration(&integration("slack")));
    }

    #[test]
    fn everything_is_for_that_caller_only() {
        let policy = Policy::everything(caller("dev"));
        let all = policy.grants(&caller("dev"), &workspace("any"));
        assert!(all.resolve() && all.manage_user() && all.list());
        assert!(all.any_integration() && all.integration(&integration("any")));
        let none = policy.grants(&caller("other"), &workspace("any"));
        assert!(!none.resolve() && !none.manage_user() && !none.list());
        assert!(!none.any_integration());
    }

    /// A grant as plain text, the model's view of a policy.
    #[derive(Debug, Clone)]
    struct Line {
        caller: &'static str,
        role: &'static str,
        workspaces: Vec<String>,
        integrations: Vec<String>,
    }

    const CALLERS: [&str; 2] = ["x", "y"];
    const ROLES: [&str; 4] = ["executor", "platform", "operator", "integration"];
    const WORKSPACES: [&str; 7] = ["a", "b", "aa", "ab", "ba", "aab", "bbb"];
    const INTEGRATIONS: [&str; 3] = ["p", "q", "pq"];

    fn line() -> impl Strategy<Value = Line> {
        (
            prop::sample::select(CALLERS.to_vec()),
            prop::sample::select(ROLES.to_vec()),
            prop::collection::vec("[ab]{1,2}\\*?|\\*", 1..3),
            prop_oneof![
                Just(vec!["*".to_owned()]),
                prop::sample::subsequence(INTEGRATIONS.map(String::from).to_vec(), 1..3),
            ],
        )
            .prop_map(|(caller, role, workspaces, integrations)| Line {
                caller,
                role,
                workspaces,
                integrations,
            })
    }

    fn toml(lines: &[Line], combined: bool) -> String {
        let mut text = format!("allow_combined_roles = {combined}\n");
        for Line { caller, role, workspaces, integrations } in lines {
            text += &format!("[[grant]]\ncaller = 'spiffe://td/{caller}'\nrole = '{role}'\n");
            text += &format!("workspaces = {workspaces:?}\n");
            if *role == "integration" {
                text += &format!("integrations = {integrations:?}\n");
            }
        }
        text
    }

    /// Backtracking match of a pattern, letter by letter.
    fn glob(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => glob(rest, text),
            (Some((b'*', rest)), Some((_, tail))) => glob(rest, text) || glob(pattern, tail),
            (Some((p, rest)), Some((t, tail))) => p == t && glob(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn grants_equal_the_naive_model(lines in prop::collection::vec(line(), 1..5)) {
            // Texts that repeat themselves are refused; see `parse`.
            let Ok(policy) = Policy::parse(&toml(&lines, true)) else { return Ok(()) };
            for (who, id) in CALLERS.iter().flat_map(|c| WORKSPACES.map(|w| (*c, w))) {
                let granted = |role: &str| lines.iter().filter(|line| {
                    line.caller == who
                        && line.role == role
                        && line.workspaces.iter().any(|p| glob(p.as_bytes(), id.as_bytes()))
                }).collect::<Vec<_>>();
                let grants = policy.grants(&caller(who), &workspace(id));
                prop_assert_eq!(grants.resolve(), !granted("executor").is_empty());
                prop_assert_eq!(grants.manage_user(), !granted("platform").is_empty());
                let listed = !granted("platform").is_empty() || !granted("operator").is_empty();
                prop_assert_eq!(grants.list(), listed);
                prop_assert_eq!(grants.any_integration(), !granted("integration").is_empty());
                for name in INTEGRATIONS {
                    let named = granted("integration").iter().any(|line| {
                        line.integrations.iter().any(|i| i == "*" || i == name)
                    });
                    prop_assert_eq!(grants.integration(&integration(name)), named);
                }
            }
        }

        #[test]
        fn nobody_both_manages_and_reads(lines in prop::collection::vec(line(), 1..5)) {
            let Ok(policy) = Policy::parse(&toml(&lines, false)) else { return Ok(()) };
            for (who, id) in CALLERS.iter().flat_map(|c| WORKSPACES.map(|w| (*c, w))) {
                let grants = policy.grants(&caller(who), &workspace(id));
                let manages = grants.manage_user() || grants.any_integration();
                prop_assert!(!(grants.resolve() && manages));
            }
        }
    }
}
