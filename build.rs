//! Compiles proto/ with protox, a compiler in Rust: no protoc is needed.

use std::{env, fs, path::PathBuf};

/// Messages that carry a secret value get no derived `Debug`; prost knows
/// nothing of `debug_redact`.
const CARRY_VALUES: [&str; 11] = [
    ".workflowsecrets.v1.CreateSecretRequest",
    ".workflowsecrets.v1.UpdateSecretRequest",
    ".workflowsecrets.v1.ResolvedSecret",
    ".workflowsecrets.v1.ResolveSecretsResponse",
    ".workflowsecrets.v1.RenderTemplateRequest",
    ".workflowsecrets.v1.RenderTemplateResponse",
    ".workflowsecrets.v1.CheckReferencesRequest",
    ".workflowsecrets.v1.PrepareTemplateRequest",
    ".workflowsecrets.v1.PrepareTemplateResponse",
    ".workflowsecrets.v1.RedactRequest",
    ".workflowsecrets.v1.RedactResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut api = protox::Compiler::new(["proto"])?;
    api.include_imports(true).include_source_info(true);
    api.open_files(["workflowsecrets/v1/secrets.proto", "workflowsecrets/v1/keys.proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Encoded by protox: prost-types would drop `debug_redact`, which clients
    // that learn the API by reflection go by.
    fs::write(out.join("api_descriptor.bin"), api.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .skip_debug(CARRY_VALUES)
        .btree_map(".workflowsecrets.v1")
        .codec_path("crate::grpc::codec::LeanCodec")
        .compile_fds(api.file_descriptor_set())?;

    let storage = protox::compile(["workflowsecrets/storage/v1/storage.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        // Of each value that is read: taken out of a `Vec` they would be copied twice.
        .bytes(".workflowsecrets.storage.v1.ValueMetadata.uid")
        .bytes(".workflowsecrets.storage.v1.DataKeyHead.id")
        .compile_fds(storage)?;
    Ok(())
}
