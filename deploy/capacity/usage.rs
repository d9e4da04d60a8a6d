//! Usage that replicas note and write behind: who asked for which secret.

use crate::{
    cache::{Class, bisect},
    inputs::Inputs,
};

/// In the code (`src/service/usage.rs`): so many workspaces are written at once, and so
/// many names and workflows are noted between two writes. Of each, 150 bytes.
const USAGE_AT_ONCE: f64 = 8.0;
const MAX_NOTED: f64 = 100_000.0;
const NOTE_BYTES: f64 = 150.0;

/// Usage written behind by one replica.
pub(crate) struct Behind {
    /// Workspaces per second, and names of each.
    pub(crate) writes: f64,
    pub(crate) names: f64,
    /// Memory of what waits, and the share for which there is no room.
    pub(crate) bytes: f64,
    pub(crate) lost: f64,
}

pub(crate) fn behind(inputs: &Inputs, met: &[Class; 2]) -> Behind {
    let names = (inputs.secrets / inputs.workspaces).max(1.0);
    let asked = inputs.names_per_resolve.min(names);
    // Workspaces, and secrets of these, that are asked for within a time.
    let workspaces = |within: f64| -> f64 {
        met.iter().map(|of| of.workspaces * (1.0 - (-of.rate * within).exp())).sum()
    };
    let secrets = |within: f64| -> f64 {
        let each = |of: &Class| 1.0 - (-of.rate * within * asked / names).exp();
        met.iter().map(|of| of.workspaces * names * each(of)).sum()
    };
    // Writing takes time too, during which more is noted.
    let trip = inputs.usage_write_millis / 1e3 / USAGE_AT_ONCE;
    let longest = inputs.usage_every + met.iter().map(|of| of.workspaces).sum::<f64>() * trip;
    let period = bisect(inputs.usage_every, longest, |period| {
        inputs.usage_every + workspaces(period) * trip > period
    });
    // Each name is noted with a workflow.
    let notes = 2.0 * secrets(period);
    let room = (MAX_NOTED / notes).min(1.0);
    let written = workspaces(period) * room;
    Behind {
        writes: written / period,
        names: secrets(period) / workspaces(period).max(1e-9),
        bytes: notes * room * NOTE_BYTES,
        lost: 1.0 - room,
    }
}
