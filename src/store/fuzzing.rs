//! Doors for the fuzz targets: the outermost layer of what lies in a store.

use super::Record;

/// A record, read and written again.
pub fn record(stored: &[u8]) -> Option<Vec<u8>> {
    Record::from_stored(stored.to_vec()).ok().map(|record| record.to_stored())
}
