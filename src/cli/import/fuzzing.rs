//! Doors for the fuzz targets: what a file is read as.

use super::document::parse;
use crate::config::Format;

/// Names and values of a file, in its order.
///
/// # Errors
/// Line and text of each fault.
pub fn entries(
    format: Format,
    bytes: &[u8],
) -> Result<Vec<(String, String)>, Vec<(usize, String)>> {
    match parse(format, bytes) {
        Ok(entries) => Ok(entries
            .iter()
            .map(|entry| (entry.name.to_string(), entry.value.expose().to_owned()))
            .collect()),
        Err(faults) => Err(faults.iter().map(|fault| (fault.line, fault.to_string())).collect()),
    }
}
