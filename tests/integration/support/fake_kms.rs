//! A KMS in memory. It wraps with real AES-256-GCM, bound to the encryption
//! context, so a blob in the wrong place does not unwrap.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use aws_lc_rs::aead::{AES_256_GCM, Aad, RandomizedNonceKey};
use tokio::sync::watch;
use workflow_secrets::{
    domain::{KeyMaterial, Timestamp, WrappedDataKey},
    kms::{EncryptionContext, Kms, KmsError},
};

pub(crate) struct FakeKms {
    key: RandomizedNonceKey,
    generates: AtomicUsize,
    decrypts: AtomicUsize,
    fault: Mutex<Option<KmsError>>,
    /// After so many more calls.
    decrypt_fault: Mutex<Option<(usize, KmsError)>>,
    name: Mutex<Option<String>>,
    swaps: AtomicBool,
    panics: AtomicBool,
    held: watch::Sender<bool>,
}

impl Default for FakeKms {
    fn default() -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).unwrap();
        Self {
            key: RandomizedNonceKey::new(&AES_256_GCM, &key).unwrap(),
            generates: AtomicUsize::new(0),
            decrypts: AtomicUsize::new(0),
            fault: Mutex::new(None),
            decrypt_fault: Mutex::new(None),
            name: Mutex::new(None),
            swaps: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            held: watch::Sender::new(false),
        }
    }
}

impl FakeKms {
    /// Calls of `generate_data_key` so far.
    pub(crate) fn generates(&self) -> usize {
        self.generates.load(Ordering::SeqCst)
    }

    /// Calls of `decrypt` so far, whatever became of them.
    pub(crate) fn decrypts(&self) -> usize {
        self.decrypts.load(Ordering::SeqCst)
    }

    /// Fails every call from now on, or none.
    pub(crate) fn fail(&self, fault: Option<KmsError>) {
        *self.fault.lock().unwrap() = fault;
    }

    /// Fails every call of `decrypt` from now on, or none.
    pub(crate) fn fail_decrypts(&self, fault: Option<KmsError>) {
        *self.decrypt_fault.lock().unwrap() = fault.map(|fault| (0, fault));
    }

    /// The same, but for the next `calls` calls.
    pub(crate) fn fail_decrypts_after(&self, calls: usize, fault: KmsError) {
        *self.decrypt_fault.lock().unwrap() = Some((calls, fault));
    }

    /// Panics in the next call.
    pub(crate) fn panic_once(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// Keeps calls waiting, or lets them go on.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Names the key-encryption key otherwise from now on.
    pub(crate) fn rename(&self, name: &str) {
        *self.name.lock().unwrap() = Some(name.to_owned());
    }

    /// Wraps another key than it is given to wrap anew, or no longer.
    pub(crate) fn swap(&self, swaps: bool) {
        self.swaps.store(swaps, Ordering::SeqCst);
    }

    fn name(&self) -> String {
        self.name.lock().unwrap().clone().unwrap_or_else(|| "fake".to_owned())
    }

    fn wrap(&self, context: &EncryptionContext, key: &[u8; 32]) -> Vec<u8> {
        let mut blob = key.to_vec();
        let nonce = self.key.seal_in_place_append_tag(associated_data(context), &mut blob).unwrap();
        blob.extend(nonce.as_ref());
        blob
    }

    async fn answer(&self) -> Result<(), KmsError> {
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as demanded");
        self.fault.lock().unwrap().map_or(Ok(()), Err)
    }
}

fn associated_data(context: &EncryptionContext) -> Aad<Vec<u8>> {
    Aad::from(format!("{:?}", context.pairs()).into_bytes())
}

#[async_trait]
impl Kms for FakeKms {
    async fn generate_data_key(
        &self,
        context: &EncryptionContext,
        now: Timestamp,
    ) -> Result<WrappedDataKey, KmsError> {
        self.generates.fetch_add(1, Ordering::SeqCst);
        self.answer().await?;
        let mut key = [0; 32];
        getrandom::fill(&mut key).unwrap();
        let (id, kms_key_id) = (context.data_key, self.name());
        Ok(WrappedDataKey { id, blob: self.wrap(context, &key), kms_key_id, create_time: now })
    }

    async fn decrypt(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<KeyMaterial, KmsError> {
        assert!(context.data_key == wrapped.id, "the contract of the trait");
        self.decrypts.fetch_add(1, Ordering::SeqCst);
        self.answer().await?;
        match &mut *self.decrypt_fault.lock().unwrap() {
            None => {}
            Some((0, fault)) => return Err(*fault),
            Some((calls, _)) => *calls -= 1,
        }
        let wrong = KmsError::WrongCiphertext("fake");
        let (sealed, nonce) = wrapped.blob.split_last_chunk::<12>().ok_or(wrong)?;
        let mut sealed = sealed.to_vec();
        let plaintext = self
            .key
            .open_in_place(nonce.into(), associated_data(context), &mut sealed)
            .map_err(|_| wrong)?;
        KeyMaterial::take(plaintext).map_err(|_| wrong)
    }

    async fn rewrap(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KmsError> {
        let key = self.decrypt(context, wrapped).await?;
        let mut key = *key.expose();
        if self.swaps.load(Ordering::SeqCst) {
            key[0] ^= 1;
        }
        let (blob, kms_key_id) = (self.wrap(context, &key), self.name());
        Ok(WrappedDataKey { blob, kms_key_id, ..wrapped.clone() })
    }

    fn key_name(&self) -> &str {
        "alias/fake"
    }
}
