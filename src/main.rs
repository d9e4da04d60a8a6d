//! The `workflow-secrets` program.

fn main() {}
