use super::*;

fn secret() -> SecretMetadata {
    let time = |s| Timestamp::new(s, 5).expect("in range");
    SecretMetadata {
        name: SecretName::parse("STRIPE_KEY").expect("name"),
        uid: SecretUid::random(),
        description: Description::parse("für Zahlungen").expect("description"),
        managed_by: ManagedBy::System(Owner {
            integration: Integration::parse("stripe").expect("integration"),
            connection_id: ConnectionId::parse("acct:1").expect("connection"),
        }),
        version: 3,
        value_revision: Revision::initial(),
        create_time: time(1),
        update_time: time(2),
        expire_time: Some(time(3)),
        created_by: "zoe".into(),
        updated_by: "spiffe://td/x".into(),
        value_time: time(3),
        value_by: "max".into(),
        earlier: vec![earlier(1), earlier(2)],
    }
}

fn earlier(version: u64) -> EarlierVersion {
    EarlierVersion {
        version,
        value_revision: Revision::from_u64(version << 60),
        create_time: Timestamp::new(2, 0).expect("in range"),
        created_by: "zoe".into(),
    }
}

#[test]
fn versions_stand_in_their_order() {
    let first = secret();
    for versions in [&[2, 1][..], &[1, 1], &[1, 3], &[4]] {
        let earlier = versions.iter().copied().map(earlier).collect();
        let bytes = encode_metadata(&SecretMetadata { earlier, ..first.clone() });
        assert_eq!(decode_metadata(&first.name, &bytes), Err(METADATA), "{versions:?}");
    }
}

#[test]
fn records_of_the_first_release_are_read() {
    let decode = |version| {
        let mut record = metadata_to_pb(&secret());
        record.version = version;
        record.earlier.clear();
        (record.value_create_time, record.value_created_by) = (None, String::new());
        metadata_from_pb(record).expect("decodes")
    };
    let first = decode(1);
    assert_eq!((first.value_time, first.value_by), (first.create_time, first.created_by));
    let third = decode(3);
    assert_eq!((third.value_time, third.value_by), (third.update_time, third.updated_by));
}

#[test]
fn records_survive_the_round_trip() {
    let secret = secret();
    let bytes = encode_metadata(&secret);
    assert_eq!(decode_metadata(&secret.name, &bytes), Ok(secret.clone()));

    let time = |s| Timestamp::new(s, 5).expect("in range");
    let deleted =
        DeletedSecret { metadata: secret.clone(), delete_time: time(7), purge_time: time(8) };
    let (key, bytes) = (Key::deleted(&secret.name, secret.uid), encode_deleted(&deleted));
    assert_eq!(decode_deleted(&key, &bytes), Ok(deleted));
    let other = Key::deleted(&secret.name, SecretUid::random());
    assert_eq!(decode_deleted(&other, &bytes), Err(DELETED));

    let entry = TrailEntry {
        time: time(9),
        action: "rollback".into(),
        caller: "spiffe://td/x".into(),
        actor: "zoe".into(),
        name: Some(secret.name.clone()),
        uid: Some(secret.uid),
        version: 4,
        restored_version: 2,
        request_id: Some(RequestId::parse("once").expect("id")),
        trace_id: "trace".into(),
    };
    assert_eq!(decode_trail(&encode_trail(&entry)), Ok(entry.clone()));
    let bare = TrailEntry { name: None, uid: None, request_id: None, ..entry };
    assert_eq!(decode_trail(&encode_trail(&bare)), Ok(bare));

    let outcome = RequestOutcome {
        fingerprint: Fingerprint { digest: [9; 32], data_key: Some(DataKeyId::random()) },
        secret: Some((secret, Revision::from_u64(u64::MAX))),
    };
    assert!(decode_request(&encode_request(&outcome)) == Ok(outcome));

    let wrapped = WrappedDataKey {
        id: DataKeyId::random(),
        blob: vec![1, 2, 3],
        kms_key_id: "arn:aws:kms:eu-west-1:1:key/k".into(),
        create_time: Timestamp::new(9, 0).expect("in range"),
    };
    let tombstone = Tombstone { time: Timestamp::new(9, 0).expect("in range"), by: "zoe".into() };
    assert_eq!(decode_tombstone(&encode_tombstone(&tombstone)), Ok(tombstone));

    let first = StoredKey::from(wrapped.clone());
    assert!(decode_data_key(&encode_data_key(&first)) == Ok(first));
    let later = StoredKey {
        wrapped,
        since: Some(Revision::from_u64(7)),
        retire_time: Timestamp::new(10, 1),
    };
    assert!(decode_data_key(&encode_data_key(&later)) == Ok(later));
}

#[test]
fn a_record_under_another_name_is_refused() {
    let (other, bytes) = (SecretName::parse("OTHER").expect("name"), encode_metadata(&secret()));
    assert_eq!(decode_metadata(&other, &bytes), Err(METADATA));
    assert_eq!(decode_value_metadata(&other, &bytes), Err(METADATA));
}

#[test]
fn what_a_value_needs_is_the_same_as_in_all_of_it() {
    let full = secret();
    for secret in [
        full.clone(),
        SecretMetadata { expire_time: None, earlier: Vec::new(), ..full.clone() },
        SecretMetadata { version: 0, earlier: Vec::new(), ..full.clone() },
        SecretMetadata { earlier: vec![earlier(2), earlier(1)], ..full.clone() },
        SecretMetadata { earlier: vec![earlier(3)], ..full },
    ] {
        let bytes = encode_metadata(&secret);
        let whole = decode_metadata(&secret.name, &bytes);
        let part = decode_value_metadata(&secret.name, &bytes);
        assert_eq!(part, whole.map(|whole| ValueMetadata::from(&whole)), "{secret:?}");
    }
    let record = metadata_to_pb(&secret());
    let damaged = [
        pb::SecretMetadata { uid: vec![1; 15], ..record.clone() },
        pb::SecretMetadata {
            expire_time: Some(pb::Time { seconds: i64::MAX, nanos: 0 }),
            ..record
        },
    ];
    for record in damaged {
        let decoded = decode_value_metadata(&secret().name, &record.encode_to_vec());
        assert_eq!(decoded, Err(METADATA));
    }
}

#[test]
fn a_data_key_is_read_by_and_by() {
    let wrapped = WrappedDataKey {
        id: DataKeyId::random(),
        blob: vec![1, 2, 3],
        kms_key_id: "key".into(),
        create_time: Timestamp::new(9, 0).expect("in range"),
    };
    let bytes = encode_data_key(&wrapped.clone().into());
    let unread = UnreadKey::new(bytes.clone()).unwrap_or_else(|e| panic!("{e}"));
    assert!(unread.id == wrapped.id && unread.wrapped() == Ok(wrapped));
    assert!(UnreadKey::new(Vec::new()).is_err() && UnreadKey::new(vec![0xff]).is_err());
    // Its head is whole, and its time is not there.
    let head = bytes.get(..18).expect("longer").to_vec();
    assert!(UnreadKey::new(head).is_ok_and(|unread| unread.wrapped() == Err(DATA_KEY)));
}

#[test]
fn truncations_never_pass_for_the_whole() {
    let secret = secret();
    let bytes = encode_metadata(&secret);
    for end in 0..bytes.len() {
        assert_ne!(decode_metadata(&secret.name, &bytes[..end]).as_ref(), Ok(&secret));
    }
    assert!(decode_data_key(&[]).is_err());
    assert!(decode_tombstone(&[]).is_err());
    assert!(decode_request(&[]).is_err());
}
