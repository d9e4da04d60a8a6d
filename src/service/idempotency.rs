//! Request ids (AIP-155): the same request is answered with its first outcome,
//! another one under the same id is refused.

use std::{borrow::Cow, time::Duration};

use super::{
    ActiveKey, Caller, Error, Secrets,
    change::{Change, Changed, may_change},
};
use crate::{
    domain::{Owner, RequestId, Timestamp, WorkspaceId},
    envelope::{self, DataKey, KeyError},
    store::{
        Batch, Commit,
        codec::{self, Fingerprint},
    },
};

/// What makes two requests the same, as unambiguous bytes.
pub(super) struct Parts<'a>(Vec<Cow<'a, [u8]>>);

impl<'a> Parts<'a> {
    pub(super) fn of(method: &'a str, caller: &'a Caller, workspace: &'a WorkspaceId) -> Self {
        Self(vec![]).text(method).text(caller.id.as_str()).text(workspace.as_str())
    }

    pub(super) fn text(self, text: &'a str) -> Self {
        self.optional(Some(text.as_bytes()))
    }

    /// Absent and empty differ.
    pub(super) fn optional(mut self, bytes: Option<&'a [u8]>) -> Self {
        self.0.push(Cow::Borrowed(if bytes.is_some() { b"+" } else { b"-" }));
        self.0.push(Cow::Borrowed(bytes.unwrap_or_default()));
        self
    }

    pub(super) fn flag(self, flag: bool) -> Self {
        self.text(if flag { "true" } else { "false" })
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.push(Cow::Owned(number.to_be_bytes().to_vec()));
        self
    }

    /// A field that is newer than the call: absent, it leaves no trace, so that
    /// what was remembered before it came is still recognised.
    pub(super) fn newer(mut self, field: &'a str, value: Option<impl Into<Cow<'a, [u8]>>>) -> Self {
        if let Some(value) = value {
            self = self.text(field);
            self.0.push(value.into());
        }
        self
    }

    /// Newer than the calls that have it.
    pub(super) fn ttl(self, ttl: Option<Duration>) -> Self {
        self.newer("ttl", ttl.map(|ttl| ttl.as_nanos().to_be_bytes().to_vec()))
    }

    pub(super) fn time(mut self, time: Option<Timestamp>) -> Self {
        let bytes = time.map_or_else(Vec::new, |time| {
            [&time.seconds().to_be_bytes()[..], &time.nanos().to_be_bytes()[..]].concat()
        });
        self.0.push(Cow::Owned(bytes));
        self
    }

    pub(super) fn owner(self, owner: Option<&'a Owner>) -> Self {
        self.optional(owner.map(|o| o.integration.as_str().as_bytes()))
            .optional(owner.map(|o| o.connection_id.as_str().as_bytes()))
    }

    /// A fingerprint fit for storage: keyed where the request holds a value,
    /// because a bare hash of a short value can be guessed.
    pub(super) fn fingerprint(&self, key: Option<&DataKey>) -> Fingerprint {
        let parts: Vec<&[u8]> = self.0.iter().map(AsRef::as_ref).collect();
        match key {
            Some(key) => Fingerprint { digest: key.fingerprint(&parts), data_key: Some(key.id()) },
            None => Fingerprint { digest: envelope::digest(&parts), data_key: None },
        }
    }
}

impl Secrets {
    /// Answers a request whose id is known, once its outcome is as durable as
    /// a new one would be: the first answer may have been that too few replicas
    /// have it.
    pub(super) async fn replay(
        &self,
        caller: &Caller,
        change: &impl Change,
        active: Option<ActiveKey>,
        id: &RequestId,
        outcome: Vec<u8>,
    ) -> Result<Changed, Error> {
        let remembered = codec::decode_request(&outcome)?;
        let key = match remembered.fingerprint.data_key {
            Some(id) => {
                let active = active.as_ref().map(|active| &active.wrapped);
                match self.keyring.for_open(change.workspace(), id, active).await {
                    Ok(key) => Some(key),
                    // It was destroyed before the request was forgotten: whether
                    // this is the same request can no longer be told.
                    Err(KeyError::Missing) if active.is_some() => {
                        return Err(Error::RequestIdReused);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            None => None,
        };
        let fingerprint = change.parts(caller).fingerprint(key.as_deref());
        if fingerprint != remembered.fingerprint {
            return Err(Error::RequestIdReused);
        }
        // Rights may have gone since the first answer.
        if let Some((secret, _)) = &remembered.secret {
            may_change(&self.grants(caller, change.workspace()), &secret.managed_by)?;
        }
        let again = Batch { request: Some((id.clone(), outcome)), ..Batch::default() };
        if self.store.commit(change.workspace(), again).await? == Commit::Shredded {
            return Err(Error::WorkspaceShredded);
        }
        Ok(match remembered.secret {
            Some((secret, revision)) => Changed::Stored(secret, revision),
            None => Changed::Deleted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{CallerId, Deadline, FencingToken, SecretName},
        service::{Expiry, ExpiryChange, UpdateSecret},
    };

    fn update() -> UpdateSecret {
        UpdateSecret {
            workspace: WorkspaceId::parse("ws").unwrap(),
            name: SecretName::parse("KEY").unwrap(),
            value: None,
            description: None,
            expiry: ExpiryChange::Clear,
            etag: None,
            fencing_token: None,
            allow_missing: false,
            owner: None,
            request_id: None,
            validate_only: false,
        }
    }

    /// So that a replica of the next version, beside this one or after it,
    /// knows what was remembered.
    #[test]
    fn fields_that_came_later_leave_no_trace_where_they_are_absent() {
        let id = CallerId::parse("spiffe://test/platform").unwrap();
        let caller = Caller { id, actor: None, trace_id: None, deadline: Deadline::NONE };
        let print = |change: &UpdateSecret| change.parts(&caller).fingerprint(None);
        let first = Parts::of("UpdateSecret", &caller, &WorkspaceId::parse("ws").unwrap())
            .text("KEY")
            .optional(None)
            .optional(None)
            .flag(true)
            .time(None)
            .optional(None)
            .flag(false)
            .owner(None)
            .fingerprint(None);
        assert!(print(&update()) == first);

        let token = |number| FencingToken::parse(number).ok();
        let ttl = |seconds| ExpiryChange::Set(Expiry::After(Duration::from_secs(seconds)));
        let with =
            |expiry, fencing_token| print(&UpdateSecret { expiry, fencing_token, ..update() });
        let all = [
            with(ExpiryChange::Clear, None),
            with(ExpiryChange::Clear, token(1)),
            with(ExpiryChange::Clear, token(2)),
            with(ttl(1), None),
            with(ttl(2), None),
            with(ttl(1), token(1)),
        ];
        for (place, one) in all.iter().enumerate() {
            assert!(all.iter().skip(place + 1).all(|other| other != one), "{place}");
        }
    }
}
