//! Doors for the fuzz targets: what a file is read as.

use super::document::parse;
use crate::config::Format;

/// A name with its value, or a line with its fault.
type Told<N> = Vec<(N, String)>;

/// Names and values of a file, in its order.
///
/// # Errors
/// Line and text of each fault.
pub fn entries(format: Format, bytes: &[u8]) -> Result<Told<String>, Told<usize>> {
    match parse(format, bytes) {
        Ok(entries) => Ok(entries
            .iter()
            .map(|entry| (entry.name.to_string(), entry.value.expose().to_owned()))
            .collect()),
        Err(faults) => Err(faults.iter().map(|fault| (fault.line, fault.to_string())).collect()),
    }
}
