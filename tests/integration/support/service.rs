//! The operations on parts of choice, without a server.

use std::sync::Arc;

use arc_swap::ArcSwap;
use workflow_secrets::{
    domain::{CallerId, Clock, Deadline, Environment},
    envelope::KeyringConfig,
    kms::Kms,
    service::{
        Limits, Parts, Secrets,
        access::{Caller, Policy},
        audit::{AuditConfig, AuditLog, AuditSink},
    },
    store::Store,
};

/// The one caller, who may do everything.
pub(crate) fn caller() -> Caller {
    let id = CallerId::parse("spiffe://test/everything").unwrap();
    Caller { id, actor: None, trace_id: None, deadline: Deadline::NONE }
}

pub(crate) fn secrets(
    store: Arc<dyn Store>,
    kms: Arc<dyn Kms>,
    clock: Arc<dyn Clock>,
    audit: AuditSink,
) -> Secrets {
    let limits = Limits { max_secrets_per_workspace: 2_000, ..Limits::default() };
    secrets_within(store, kms, clock, audit, limits)
}

/// The same with these limits.
pub(crate) fn secrets_within(
    store: Arc<dyn Store>,
    kms: Arc<dyn Kms>,
    clock: Arc<dyn Clock>,
    audit: AuditSink,
    limits: Limits,
) -> Secrets {
    let environment = Environment::parse("test").unwrap();
    Secrets::new(Parts {
        store,
        kms,
        keyring: KeyringConfig::default(),
        clock,
        audit: AuditLog::start(audit, AuditConfig::default()).unwrap(),
        policy: Arc::new(ArcSwap::from_pointee(Policy::everything(caller().id))),
        environment,
        limits,
        shredded: Arc::default(),
    })
}
