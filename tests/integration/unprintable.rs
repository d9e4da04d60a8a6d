//! Values and keys cannot be printed, copied or written out by accident: the
//! types that hold them have no such traits.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Debug, Display},
};

use prost::Message as _;
use serde::Serialize;
use workflow_secrets::{
    cli::import::Entry,
    domain::{KeyMaterial, Plaintext, WrappedDataKey},
    envelope::{DataKey, Keyring, Payload, SealedRecord},
    grpc::proto::{
        self, CreateSecretRequest, ResolveSecretsResponse, ResolvedSecret, UpdateSecretRequest,
    },
    matcher::{Matcher, Redactor},
    service::{
        CreateSecret, PrepareTemplate, Prepared, Redaction, RenderTemplate, Rendered, Resolved,
        UpdateSecret,
    },
    store::{Batch, Record, Write, redis::Password},
    template::{Location, Place, Reference, Template, Token},
};

/// Whether a type has a trait: an inherent constant, there only if it has, goes
/// before that of a trait which every type has.
macro_rules! has {
    ($type:ty, $bound:path) => {{
        #[allow(dead_code, reason = "which of the two is used is the question")]
        trait Otherwise {
            const HAS: bool = false;
        }
        impl<T> Otherwise for T {}
        struct Probe<T>(std::marker::PhantomData<T>);
        #[allow(dead_code, reason = "which of the two is used is the question")]
        impl<T: $bound> Probe<T> {
            const HAS: bool = true;
        }
        <Probe<$type>>::HAS
    }};
}

macro_rules! has_none {
    ($bound:path: $($type:ty),+ $(,)?) => {
        $(assert!(!has!($type, $bound), concat!(stringify!($type), ": ", stringify!($bound)));)+
    };
}

#[test]
fn values_and_keys_cannot_be_printed_copied_or_written_out() {
    // The question itself is sound.
    assert!(has!(String, Debug) && has!(String, Display) && has!(String, Clone));
    assert!(has!(String, Serialize) && has!(proto::Secret, Debug));
    struct Nothing;
    assert!(!has!(Nothing, Debug));

    has_none!(Debug: Plaintext, KeyMaterial, DataKey, Payload, Keyring, Password);
    has_none!(Display: Plaintext, KeyMaterial, DataKey, Payload, Keyring, Password);
    has_none!(Clone: Plaintext, KeyMaterial, DataKey, Payload);
    has_none!(Serialize: Plaintext, KeyMaterial, DataKey, Payload, Password);
    // Whoever holds them holds a value.
    has_none!(Debug: CreateSecret, UpdateSecret, Resolved, RenderTemplate, Rendered);
    has_none!(Display: CreateSecret, UpdateSecret, Resolved, RenderTemplate, Rendered);
    has_none!(Clone: CreateSecret, UpdateSecret, Resolved, RenderTemplate, Rendered);
    has_none!(Serialize: CreateSecret, UpdateSecret, Resolved, RenderTemplate, Rendered);
    has_none!(Debug: PrepareTemplate, Prepared, Matcher, Redactor, Redaction);
    has_none!(Display: PrepareTemplate, Prepared, Matcher, Redactor, Redaction);
    has_none!(Clone: PrepareTemplate, Prepared, Matcher, Redactor, Redaction);
    has_none!(Serialize: PrepareTemplate, Prepared, Matcher, Redactor, Redaction);
    has_none!(Debug: CreateSecretRequest, UpdateSecretRequest);
    has_none!(Debug: ResolvedSecret, ResolveSecretsResponse);
    has_none!(Debug: proto::RenderTemplateRequest, proto::RenderTemplateResponse);
    has_none!(Debug: proto::render_template_request::Template, proto::redact_request::Request);
    has_none!(Debug: proto::check_references_request::Template);
    has_none!(Debug: proto::CheckReferencesRequest, proto::PrepareTemplateRequest);
    has_none!(Debug: proto::PrepareTemplateResponse, proto::RedactRequest, proto::RedactResponse);
    has_none!(Display: CreateSecretRequest, UpdateSecretRequest);
    has_none!(Display: ResolvedSecret, ResolveSecretsResponse);
    has_none!(Debug: Entry);
    has_none!(Display: Entry);
    has_none!(Clone: Entry);
    has_none!(Serialize: Entry);
    // Values are pasted into templates, and a place tells keys of one.
    has_none!(Debug: Template, Token<'_>, Location<'_>, Place, Reference<'_>);
    has_none!(Display: Template, Token<'_>, Location<'_>, Reference<'_>);
    has_none!(Clone: Template);
    has_none!(Serialize: Template, Place);
    // Ciphertext is not logged either.
    has_none!(Debug: SealedRecord, Record, Write, Batch, WrappedDataKey);
}

/// `descriptor.proto`, as far as it is asked here; `prost-types` does not know
/// `debug_redact`.
#[derive(Clone, PartialEq, prost::Message)]
struct FileSet {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "4")]
    messages: Vec<Message>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    fields: Vec<Field>,
    #[prost(message, repeated, tag = "3")]
    nested: Vec<Message>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Field {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "6")]
    type_name: String,
    #[prost(message, optional, tag = "8")]
    options: Option<FieldOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FieldOptions {
    #[prost(bool, tag = "16")]
    debug_redact: bool,
}

fn collect(parent: &str, messages: Vec<Message>, all: &mut BTreeMap<String, Vec<Field>>) {
    for message in messages {
        let name = format!("{parent}.{}", message.name);
        collect(&name, message.nested, all);
        all.insert(name, message.fields);
    }
}

#[test]
fn messages_that_carry_a_redacted_field_are_those_without_debug() {
    let set = FileSet::decode(proto::DESCRIPTOR).unwrap();
    let mut all = BTreeMap::new();
    for file in set.files {
        collect(&format!(".{}", file.package), file.messages, &mut all);
    }
    let is_redacted = |field: &Field| field.options.as_ref().is_some_and(|o| o.debug_redact);

    let mut redacted = BTreeSet::new();
    let mut carriers = BTreeSet::new();
    for (message, fields) in &all {
        for field in fields.iter().filter(|field| is_redacted(field)) {
            redacted.insert(format!("{message}.{}", field.name));
            carriers.insert(message.clone());
        }
    }
    let v1 = |field: &str| format!(".workflowsecrets.v1.{field}");
    let values = [
        "CheckReferencesRequest.json",
        "CheckReferencesRequest.text",
        "CreateSecretRequest.value",
        "PrepareTemplateRequest.json",
        "PrepareTemplateResponse.json",
        "RedactRequest.chunk",
        "RedactResponse.chunk",
        "RenderTemplateRequest.json",
        "RenderTemplateRequest.text",
        "RenderTemplateResponse.context_secrets",
        "RenderTemplateResponse.rendered",
        "ResolvedSecret.value",
        "UpdateSecretRequest.value",
    ]
    .map(v1);
    assert_eq!(redacted, BTreeSet::from(values), "the fields that hold a value");

    // And whatever holds one of those messages, maps and all.
    loop {
        let holds = |fields: &[Field]| fields.iter().any(|f| carriers.contains(&f.type_name));
        let outer = all.iter().filter(|(_, fields)| holds(fields));
        let outer: Vec<_> = outer.map(|(message, _)| message.clone()).collect();
        let before = carriers.len();
        carriers.extend(outer);
        if carriers.len() == before {
            break;
        }
    }
    // prost makes no type of a map's entry.
    carriers.retain(|message| !message.ends_with("Entry"));

    let build = include_str!("../../build.rs");
    let (_, list) = build.split_once("const CARRY_VALUES").unwrap();
    let (list, _) = list.split_once("];").unwrap();
    let listed: BTreeSet<_> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(listed, carriers);
}
