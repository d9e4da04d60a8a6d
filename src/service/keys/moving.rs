//! Sealed values that are put elsewhere as they are.

use crate::{
    domain::{DataKeyId, Revision},
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
    // Any other revision than before will do.
    let mark = Record { revision: Revision::initial(), bytes: vec![] };
    let put = Operation { key: Key::moved(id), expect: None, write: Write::Put(mark) };
    (id != active).then_some(put)
}

/// The same with the check of the active key, for a commit that seals nothing
/// itself.
pub(in crate::service) fn only_moving(
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
    [unchanged].into_iter().chain(moving(value, active.wrapped.id)).collect()
}

/// The value still lies there as it was read: it was not sealed anew meanwhile.
pub(in crate::service) fn unmoved(value: Option<&Record>) -> Option<Expect> {
    value.map(|value| Expect::Revision(value.revision))
}
