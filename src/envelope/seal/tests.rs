use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::domain::{
    DataKeyId, Environment, KeyMaterial, MAX_VALUE_BYTES, Revision, SecretName, SecretUid,
    WorkspaceId,
};

/// A place with its texts.
#[derive(Clone)]
struct Place {
    environment: Environment,
    workspace: WorkspaceId,
    uid: SecretUid,
    name: SecretName,
    revision: Revision,
}

impl Place {
    fn new() -> Self {
        Self {
            environment: Environment::parse("production").expect("environment"),
            workspace: WorkspaceId::parse("ws_1").expect("workspace"),
            uid: SecretUid::from_bytes([1; 16]),
            name: SecretName::parse("STRIPE_KEY").expect("name"),
            revision: Revision::from_u64(7),
        }
    }

    fn binding(&self) -> Binding<'_> {
        Binding {
            environment: &self.environment,
            workspace: &self.workspace,
            uid: self.uid,
            name: &self.name,
            revision: self.revision,
        }
    }
}

fn data_key(id: u8, byte: u8) -> DataKey {
    let material = KeyMaterial::take(&mut [byte; 32]).expect("32 bytes");
    DataKey::new(DataKeyId::from_bytes([id; 16]), material)
}

fn payload(value: &str) -> Payload {
    let value = Plaintext::parse(value.to_owned()).expect("value");
    Payload { version: 3, expire_time: Timestamp::new(-5, 6), value }
}

fn sealed(key: &DataKey, place: &Place, value: &str) -> Vec<u8> {
    seal(key, &place.binding(), &payload(value)).expect("seals").into_bytes()
}

/// The value, or why not.
fn opened(key: &DataKey, place: &Place, bytes: Vec<u8>) -> Result<String, Corrupt> {
    let payload = open(key, &place.binding(), &SealedRecord::parse(bytes)?)?;
    Ok(payload.value.into_exposed())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn any_payload_comes_back(
        value in "\\PC{1,300}|(?s:.{1,5000})",
        version: u64,
        revision: u64,
        expire in proptest::option::of((-62_135_596_800i64..=253_402_300_799, 0u32..1_000_000_000)),
    ) {
        let place = Place { revision: Revision::from_u64(revision), ..Place::new() };
        let expire_time = expire.map(|(s, n)| Timestamp::new(s, n).expect("in range"));
        let text = Plaintext::parse(value.clone()).expect("value");
        let payload = Payload { version, expire_time, value: text };
        let record = seal(&data_key(1, 1), &place.binding(), &payload).expect("seals");
        let record = SealedRecord::parse(record.into_bytes()).expect("parses");
        let payload = open(&data_key(1, 1), &place.binding(), &record).expect("opens");
        prop_assert_eq!(payload.value.expose(), &value);
        prop_assert_eq!(payload.version, version);
        prop_assert_eq!(payload.expire_time, expire_time);
    }

    #[test]
    fn nothing_else_ever_opens(bytes in proptest::collection::vec(any::<u8>(), 0..400), keep in 0usize..186) {
        let place = Place::new();
        let mut forged = sealed(&data_key(1, 1), &place, "value");
        let honest = forged.clone();
        forged.truncate(keep);
        forged.extend(bytes);
        prop_assume!(forged != honest);
        prop_assert!(opened(&data_key(1, 1), &place, forged).is_err());
    }
}

#[test]
fn the_longest_value_comes_back() {
    let value = "x".repeat(MAX_VALUE_BYTES);
    let bytes = sealed(&data_key(1, 1), &Place::new(), &value);
    assert_eq!(opened(&data_key(1, 1), &Place::new(), bytes), Ok(value));
}

#[test]
fn no_flipped_bit_opens() {
    let (key, place) = (data_key(1, 1), Place::new());
    let bytes = sealed(&key, &place, "value");
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let expected = match at {
                0..6 => Corrupt::Layout,
                6..30 => Corrupt::Mismatch,
                30..62 | 74..106 => Corrupt::Commitment,
                _ => Corrupt::Authentication,
            };
            assert_eq!(opened(&key, &place, flipped), Err(expected), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn no_truncation_or_extension_opens() {
    let (key, place) = (data_key(1, 1), Place::new());
    let bytes = sealed(&key, &place, "value");
    for len in 0..bytes.len() {
        assert_eq!(opened(&key, &place, bytes[..len].to_vec()), Err(Corrupt::Layout), "{len}");
    }
    for more in 1..=128 {
        let mut longer = bytes.clone();
        longer.resize(bytes.len() + more, 0);
        assert!(opened(&key, &place, longer).is_err(), "{more}");
    }
}

#[test]
fn no_other_place_opens() {
    let (key, place) = (data_key(1, 1), Place::new());
    let bytes = sealed(&key, &place, "value");
    let others = [
        Place { environment: Environment::parse("staging").expect("environment"), ..place.clone() },
        Place { workspace: WorkspaceId::parse("ws_2").expect("workspace"), ..place.clone() },
        Place { uid: SecretUid::from_bytes([2; 16]), ..place.clone() },
        Place { name: SecretName::parse("STRIPE_KEz").expect("name"), ..place.clone() },
    ];
    for (at, other) in others.iter().enumerate() {
        let error = opened(&key, other, bytes.clone());
        assert_eq!(error, Err(Corrupt::Authentication), "place {at}");
        // Nor does its record open here.
        let theirs = sealed(&key, other, "theirs");
        assert_eq!(opened(&key, &place, theirs), Err(Corrupt::Authentication), "place {at}");
    }
    let later = Place { revision: Revision::from_u64(8), ..place.clone() };
    assert_eq!(opened(&key, &later, bytes.clone()), Err(Corrupt::Mismatch));
    // A header rewritten to fit does not help either.
    let mut rewritten = bytes.clone();
    rewritten[22..30].copy_from_slice(&8u64.to_be_bytes());
    assert_eq!(opened(&key, &later, rewritten), Err(Corrupt::Authentication));
    assert_eq!(opened(&key, &place, bytes), Ok("value".to_owned()));
}

#[test]
fn texts_do_not_run_into_each_other() {
    let place = |environment: &str, workspace: &str| Place {
        environment: Environment::parse(environment).expect("environment"),
        workspace: WorkspaceId::parse(workspace).expect("workspace"),
        ..Place::new()
    };
    let bytes = sealed(&data_key(1, 1), &place("ab", "c"), "value");
    assert_eq!(opened(&data_key(1, 1), &place("a", "bc"), bytes), Err(Corrupt::Authentication));
}

#[test]
fn no_other_data_key_opens() {
    let place = Place::new();
    let bytes = sealed(&data_key(1, 1), &place, "value");
    assert_eq!(opened(&data_key(2, 1), &place, bytes.clone()), Err(Corrupt::Mismatch));
    assert_eq!(opened(&data_key(1, 2), &place, bytes.clone()), Err(Corrupt::Commitment));
    let mut renamed = bytes;
    renamed[6..22].copy_from_slice(&[2; 16]);
    assert_eq!(opened(&data_key(2, 1), &place, renamed), Err(Corrupt::Authentication));
}

/// A record with any header commitment and any content, authentic otherwise.
fn forge(commitment: Option<[u8; 32]>, content: &[u8]) -> Result<String, Corrupt> {
    let (key, place) = (data_key(1, 1), Place::new());
    let (salt, nonce) = ([9; 32], [9; 12]);
    let mut keys = RecordKeys::default();
    key.derive(&salt, &mut keys);
    let commitment = commitment.unwrap_or(*keys.commitment);
    let header = Header { data_key: key.id(), revision: place.revision, salt, nonce, commitment };
    let aad = place.binding().associated_data(&header, key.id());
    let mut ciphertext = content.to_vec();
    let tag = encrypt(&keys.key, nonce, &aad, &mut ciphertext).expect("encrypts");
    opened(&key, &place, SealedRecord { header, ciphertext, tag }.into_bytes())
}

#[test]
fn an_authentic_tag_does_not_make_up_for_the_commitment() {
    let content = encode(&payload("value"));
    assert_eq!(forge(None, &content), Ok("value".to_owned()));
    assert_eq!(forge(Some([0; 32]), &content), Err(Corrupt::Commitment));
}

#[test]
fn content_is_read_strictly() {
    let good = encode(&payload("value"));
    let change = |at: usize, bytes: &[u8]| {
        let mut content = good.to_vec();
        content[at..at + bytes.len()].copy_from_slice(bytes);
        forge(None, &content)
    };
    assert_eq!(change(25, b"other"), Ok("other".to_owned()));
    let refused = Err(Corrupt::Content);
    assert_eq!(change(63, &[1]), refused, "padding is not zero");
    assert_eq!(change(30, &[1]), refused, "padding is not zero");
    assert_eq!(change(8, &[0]), refused, "no expiry, yet a time");
    assert_eq!(change(8, &[2]), refused, "unknown flag");
    assert_eq!(change(9, &[0x7f]), refused, "expiry after 9999");
    assert_eq!(change(17, &1_000_000_000u32.to_be_bytes()), refused, "nanos");
    assert_eq!(change(21, &0u32.to_be_bytes()), refused, "empty value");
    assert_eq!(change(21, &40u32.to_be_bytes()), refused, "value beyond the end");
    assert_eq!(change(21, &u32::MAX.to_be_bytes()), refused, "value beyond the end");
    assert_eq!(change(25, &[0xff]), refused, "not UTF-8");
    let mut roomy = good.to_vec();
    roomy.resize(128, 0);
    assert_eq!(forge(None, &roomy), refused, "more padding than needed");
}

#[test]
fn padding_hides_the_length() {
    let len = |value: usize| sealed(&data_key(1, 1), &Place::new(), &"x".repeat(value)).len();
    // Bounds of the value's length within one size; 25 bytes come with it.
    let bounds = [(1, 39, 64), (40, 103, 128), (2_024, 4_071, 4_096), (4_072, 8_167, 8_192)];
    for (shortest, longest, padded) in bounds {
        for value in [shortest, (shortest + longest) / 2, longest] {
            assert_eq!(len(value), 106 + padded + 16, "{value}");
            let content = encode(&payload(&"x".repeat(value)));
            assert_eq!(content.capacity(), padded, "the buffer never grew, so it never moved");
        }
    }
}

#[test]
fn salt_and_nonce_never_come_again() {
    let (mut salts, mut nonces) = (HashSet::new(), HashSet::new());
    for _ in 0..500 {
        let bytes = sealed(&data_key(1, 1), &Place::new(), "value");
        assert!(salts.insert(bytes[30..62].to_vec()));
        assert!(nonces.insert(bytes[62..74].to_vec()));
    }
}

#[test]
fn aes_gcm_gives_the_published_vectors() {
    let vectors: Vec<Value> =
        serde_json::from_str(include_str!("../../../tests/vectors/aes_256_gcm.json"))
            .expect("JSON");
    assert_eq!(vectors.len(), 22);
    for vector in vectors {
        let source = vector["source"].as_str().expect("text");
        let bytes =
            |field: &str| hex::decode(vector[field].as_str().expect("text")).expect("hexadecimal");
        let (key, nonce) = (bytes("key").try_into().expect("key"), bytes("iv"));
        let nonce = nonce.try_into().expect("nonce");
        let (aad, message, ciphertext) = (bytes("aad"), bytes("msg"), bytes("ct"));
        let tag = bytes("tag").try_into().expect("tag");
        let valid = vector["valid"].as_bool().expect("flag");

        let mut buffer = message.clone();
        let made = encrypt(&key, nonce, &aad, &mut buffer).expect("encrypts");
        assert_eq!(buffer, ciphertext, "{source}");
        assert_eq!(made == tag, valid, "{source}");
        match decrypt(&key, nonce, &aad, &ciphertext, &tag) {
            Ok(plaintext) => assert!(valid && *plaintext == message, "{source}"),
            Err(_) => assert!(!valid, "{source}"),
        }
    }
}
