//! Compiles proto/ with protox, a compiler in Rust: no protoc is needed.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

/// Messages that carry a secret value get no derived `Debug`; prost knows
/// nothing of `debug_redact`.
const CARRY_VALUES: [&str; 4] = [
    ".workflowsecrets.v1.CreateSecretRequest",
    ".workflowsecrets.v1.UpdateSecretRequest",
    ".workflowsecrets.v1.ResolvedSecret",
    ".workflowsecrets.v1.ResolveSecretsResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let api = protox::compile(["workflowsecrets/v1/secrets.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("api_descriptor.bin"), api.encode_to_vec())?;
    tonic_prost_build::configure()
        .skip_debug(CARRY_VALUES)
        .btree_map(".workflowsecrets.v1")
        .compile_fds(api)?;

    let storage = protox::compile(["workflowsecrets/storage/v1/storage.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(storage)?;
    Ok(())
}
