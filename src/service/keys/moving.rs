//! Sealed values that are put elsewhere as they are.

use crate::{
    domain::{DataKeyId, Revision, SecretMetadata},
    envelope::SealedRecord,
    service::ActiveKey,
    store::{Expect, Key, Operation, Record, Write},
};

/// What a commit must hold besides that puts a sealed value elsewhere as it is:
/// if a retired data key sealed it, a mark, so that the key is not destroyed by
/// who has not seen the value in its new place. Movers do not disturb each other:
/// none looks at the mark.
///
/// The commit must check that `active` still is the active key, and that the
/// value still lies where it was read, see [`unmoved`].
pub(in crate::service) fn moving(value: Option<&Record>, active: DataKeyId) -> Option<Operation> {
    let sealed = SealedRecord::parse(value?.bytes.clone()).ok()?;
    let id = sealed.data_key_id();
    (id != active).then(|| put_mark(Key::moved(id)))
}

fn put_mark(key: Key) -> Operation {
    // Any other revision than before will do.
    let mark = Record { revision: Revision::initial(), bytes: vec![] };
    Operation { key, expect: None, write: Write::Put(mark) }
}

/// The same with the check of the active key, for a commit that seals nothing
/// itself but deletes a secret or brings it back. Its earlier versions stay where
/// they are; what tells of them does not, and leaves a mark too.
pub(in crate::service) fn only_moving(
    secret: &SecretMetadata,
    value: Option<&Record>,
    active: Option<&ActiveKey>,
) -> Vec<Operation> {
    // Without an active key no other is destroyed.
    let Some(active) = active else { return vec![] };
    let unchanged = Operation {
        key: Key::active_data_key(),
        expect: Some(Expect::Revision(active.revision)),
        write: Write::Nothing,
    };
    let retold = (!secret.earlier.is_empty()).then(|| put_mark(Key::retold()));
    [unchanged].into_iter().chain(moving(value, active.wrapped.id)).chain(retold).collect()
}

/// The value still lies there as it was read: it was not sealed anew meanwhile.
pub(in crate::service) fn unmoved(value: Option<&Record>) -> Option<Expect> {
    value.map(|value| Expect::Revision(value.revision))
}
