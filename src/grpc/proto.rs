//! Generated types of package `workflowsecrets.v1`, and what the generator
//! does not know: messages that carry a value overwrite it on drop.

use zeroize::Zeroize as _;

#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_imports,
    reason = "generated; its documentation is proto/workflowsecrets/v1/secrets.proto"
)]
mod generated {
    tonic::include_proto!("workflowsecrets.v1");
}

pub use generated::*;

/// Descriptor of the API, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api_descriptor.bin"));

impl Drop for CreateSecretRequest {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl Drop for UpdateSecretRequest {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl Drop for ResolvedSecret {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl Drop for RenderTemplateRequest {
    fn drop(&mut self) {
        use render_template_request::Template::{Json, Text};
        if let Some(Json(text) | Text(text)) = &mut self.template {
            text.zeroize();
        }
    }
}

impl Drop for RenderTemplateResponse {
    fn drop(&mut self) {
        self.rendered.zeroize();
        self.context_secrets.values_mut().for_each(String::zeroize);
    }
}

impl Drop for CheckReferencesRequest {
    fn drop(&mut self) {
        use check_references_request::Template::{Json, Text};
        if let Some(Json(text) | Text(text)) = &mut self.template {
            text.zeroize();
        }
    }
}

impl Drop for PrepareTemplateRequest {
    fn drop(&mut self) {
        self.json.zeroize();
    }
}

impl Drop for PrepareTemplateResponse {
    fn drop(&mut self) {
        self.json.zeroize();
    }
}

impl Drop for RedactRequest {
    fn drop(&mut self) {
        if let Some(redact_request::Request::Chunk(bytes)) = &mut self.request {
            bytes.zeroize();
        }
    }
}

impl Drop for RedactResponse {
    fn drop(&mut self) {
        self.chunk.zeroize();
    }
}
