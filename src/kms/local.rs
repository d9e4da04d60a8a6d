//! A key-encryption key in a local file, for `dev`.
//!
//! Blob, 61 bytes: version (1), nonce 12, ciphertext 32, tag 16: AES-256-GCM
//! (NIST SP 800-38D) under the file's key with a random nonce. Associated data:
//! the version, then each key and value of the encryption context after its
//! length (u32, big-endian).

mod key_file;

use std::path::Path;

use async_trait::async_trait;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use zeroize::Zeroizing;

pub use self::key_file::LocalKmsError;
use super::{EncryptionContext, Kms, KmsError};
use crate::domain::{KeyMaterial, Timestamp, WrappedDataKey};

const KEY_BYTES: usize = 32;
const BLOB_VERSION: u8 = 1;

const FAILED: KmsError = KmsError::Transient("the cryptographic library failed");

/// What a local data key carries as `kms_key_id`.
const KEY_ID: &str = "local";

/// [`Kms`] on a key in a file of this machine. It protects the store from
/// whoever has the store but not the file, which is enough for `dev` only.
pub struct LocalKms(RandomizedNonceKey);

impl LocalKms {
    /// Opens the key at `path`, or makes one with mode 0600 if there is none.
    /// A key that exists is never replaced: of processes that start at the
    /// same time one makes the key and all get it. Blocks on the disk.
    ///
    /// # Errors
    /// The file is readable or writable by group or others, belongs to another
    /// user, is a symbolic link, or is no key file.
    pub fn open_or_create(path: &Path) -> Result<Self, LocalKmsError> {
        let key = key_file::read_or_create(path)?;
        RandomizedNonceKey::new(&AES_256_GCM, key.expose())
            .map(Self)
            .map_err(|_| LocalKmsError::Crypto)
    }

    fn wrap(&self, context: &EncryptionContext, key: &[u8]) -> Result<Vec<u8>, KmsError> {
        // As large as it gets, so that it never moves and leaves a copy behind.
        let mut in_out = Zeroizing::new(Vec::with_capacity(KEY_BYTES + AES_256_GCM.tag_len()));
        in_out.extend_from_slice(key);
        let nonce = self
            .0
            .seal_in_place_append_tag(associated_data(context), &mut *in_out)
            .map_err(|_| FAILED)?;
        Ok([&[BLOB_VERSION], nonce.as_ref().as_slice(), &in_out].concat())
    }

    fn open(&self, context: &EncryptionContext, blob: &[u8]) -> Option<KeyMaterial> {
        let (&version, rest) = blob.split_first()?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        if version != BLOB_VERSION {
            return None;
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut in_out = Zeroizing::new(sealed.to_vec());
        let plaintext = self.0.open_in_place(nonce, associated_data(context), &mut in_out).ok()?;
        KeyMaterial::take(plaintext).ok()
    }
}

fn associated_data(context: &EncryptionContext) -> Aad<Vec<u8>> {
    let mut data = vec![BLOB_VERSION];
    for (key, value) in &context.pairs() {
        for part in [key.as_bytes(), value.as_bytes()] {
            // Ids and names are far shorter than 4 GiB.
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            data.extend_from_slice(&length.to_be_bytes());
            data.extend_from_slice(part);
        }
    }
    Aad::from(data)
}

#[async_trait]
impl Kms for LocalKms {
    async fn generate_data_key(
        &self,
        context: &EncryptionContext,
        now: Timestamp,
    ) -> Result<WrappedDataKey, KmsError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(&mut *key).map_err(|_| FAILED)?;
        let blob = self.wrap(context, &*key)?;
        let (id, kms_key_id) = (context.data_key, KEY_ID.to_owned());
        Ok(WrappedDataKey { id, blob, kms_key_id, create_time: now })
    }

    async fn decrypt(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<KeyMaterial, KmsError> {
        if context.data_key != wrapped.id {
            return Err(KmsError::WrongCiphertext("another data key than asked for"));
        }
        self.open(context, &wrapped.blob).ok_or(KmsError::WrongCiphertext(
            "the blob, its encryption context or the local key is wrong",
        ))
    }

    /// There is but one key: the blob is only another one.
    async fn rewrap(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KmsError> {
        let key = self.decrypt(context, wrapped).await?;
        let blob = self.wrap(context, key.expose())?;
        Ok(WrappedDataKey { blob, kms_key_id: KEY_ID.to_owned(), ..wrapped.clone() })
    }

    fn key_name(&self) -> &str {
        KEY_ID
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    };

    use super::*;
    use crate::domain::{DataKeyId, Environment, WorkspaceId};

    fn context() -> EncryptionContext {
        EncryptionContext {
            environment: Environment::parse("test").unwrap(),
            workspace: WorkspaceId::parse("ws_1").unwrap(),
            data_key: DataKeyId::from_bytes([1; 16]),
        }
    }

    fn now() -> Timestamp {
        Timestamp::new(1_800_000_000, 0).unwrap()
    }

    #[tokio::test]
    async fn a_key_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        let kms = LocalKms::open_or_create(&path).unwrap();
        let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
        let key = kms.decrypt(&context(), &wrapped).await.unwrap();
        let again = LocalKms::open_or_create(&path).unwrap();
        assert_eq!(again.decrypt(&context(), &wrapped).await.unwrap().expose(), key.expose());
        assert_ne!(key.expose(), &[0; 32]);
        assert!(!wrapped.blob.windows(32).any(|bytes| bytes == key.expose()));

        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.len()), (0o600, 40));
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "drafts are removed");
    }

    #[tokio::test]
    async fn each_wrapping_is_new() {
        let directory = tempfile::tempdir().unwrap();
        let kms = LocalKms::open_or_create(&directory.path().join("kek")).unwrap();
        let one = kms.generate_data_key(&context(), now()).await.unwrap();
        let two = kms.generate_data_key(&context(), now()).await.unwrap();
        assert_ne!(one.blob.get(1..13), two.blob.get(1..13), "nonces");
        let one = kms.decrypt(&context(), &one).await.unwrap();
        let two = kms.decrypt(&context(), &two).await.unwrap();
        assert_ne!(one.expose(), two.expose());
    }

    #[tokio::test]
    async fn wrapped_anew_it_is_the_same_key_in_the_same_context() {
        let directory = tempfile::tempdir().unwrap();
        let kms = LocalKms::open_or_create(&directory.path().join("kek")).unwrap();
        let one = kms.generate_data_key(&context(), now()).await.unwrap();
        let two = kms.rewrap(&context(), &one).await.unwrap();
        assert_ne!(one.blob, two.blob);
        assert_eq!((two.id, two.create_time), (one.id, one.create_time));
        let key = kms.decrypt(&context(), &one).await.unwrap();
        assert_eq!(kms.decrypt(&context(), &two).await.unwrap().expose(), key.expose());
        let workspace = WorkspaceId::parse("ws_2").unwrap();
        let other = EncryptionContext { workspace, ..context() };
        assert!(kms.rewrap(&other, &one).await.is_err());
        assert!(kms.decrypt(&other, &two).await.is_err());
    }

    #[tokio::test]
    async fn another_context_or_key_does_not_unwrap() {
        let directory = tempfile::tempdir().unwrap();
        let kms = LocalKms::open_or_create(&directory.path().join("kek")).unwrap();
        let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
        let wrong = |result: Result<KeyMaterial, KmsError>| {
            assert!(matches!(result, Err(KmsError::WrongCiphertext(_))));
        };

        let environment = Environment::parse("prod").unwrap();
        wrong(kms.decrypt(&EncryptionContext { environment, ..context() }, &wrapped).await);
        let workspace = WorkspaceId::parse("ws_2").unwrap();
        wrong(kms.decrypt(&EncryptionContext { workspace, ..context() }, &wrapped).await);
        let id = DataKeyId::from_bytes([2; 16]);
        let other = EncryptionContext { data_key: id, ..context() };
        wrong(kms.decrypt(&other, &wrapped).await);
        wrong(kms.decrypt(&context(), &WrappedDataKey { id, ..wrapped.clone() }).await);
        wrong(kms.decrypt(&other, &WrappedDataKey { id, ..wrapped.clone() }).await);

        let stranger = LocalKms::open_or_create(&directory.path().join("other")).unwrap();
        wrong(stranger.decrypt(&context(), &wrapped).await);
    }

    #[tokio::test]
    async fn a_changed_or_cut_blob_does_not_unwrap() {
        let directory = tempfile::tempdir().unwrap();
        let kms = LocalKms::open_or_create(&directory.path().join("kek")).unwrap();
        let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
        assert_eq!(wrapped.blob.len(), 61);
        for at in 0..wrapped.blob.len() {
            let mut flipped = wrapped.blob.clone();
            flipped[at] ^= 1;
            assert!(kms.open(&context(), &flipped).is_none(), "byte {at}");
            assert!(kms.open(&context(), &wrapped.blob[..at]).is_none(), "cut at {at}");
        }
        assert!(kms.open(&context(), &[&*wrapped.blob, &[0]].concat()).is_none());
    }

    /// Pins the format: the blob was made by Python's `cryptography`.
    #[test]
    fn golden_blob_opens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        fs::write(&path, [&b"WFSKEK1\n"[..], &[0x11; 32]].concat()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let kms = LocalKms::open_or_create(&path).unwrap();
        let blob = hex::decode(GOLDEN_BLOB).unwrap();
        assert_eq!(kms.open(&context(), &blob).unwrap().expose(), &[0x22; 32]);
    }

    const GOLDEN_BLOB: &str = "01000102030405060708090a0b31c19431598117d6369af1bde68dd504eb83224a3757700d8bc29d5ddf62410ce6fc839758117e67617818bc85eb5889";

    #[tokio::test]
    async fn all_who_start_at_once_get_the_same_key() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("kek");
            let start = std::sync::Barrier::new(8);
            let open = || {
                start.wait();
                LocalKms::open_or_create(&path).unwrap()
            };
            let all: Vec<LocalKms> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let wrapped = all[0].generate_data_key(&context(), now()).await.unwrap();
            for kms in &all {
                assert!(kms.decrypt(&context(), &wrapped).await.is_ok());
            }
        }
    }
}
