//! What has become of records.

use super::report::DataReport;
use super::store::Examples;

/// Examples of one or more files.
#[derive(Debug, Default)]
pub struct Dataset {
    /// In file order.
    pub examples: Examples,
    /// What was found.
    pub report: DataReport,
    /// Tells these records from any other ones.
    pub hash: String,
}
