//! What came of a measurement.

/// What came of a measurement.
#[derive(Debug)]
pub struct Measured {
    /// The text to print.
    pub text: String,
    /// What has failed although there is a text: the file of the result, or all requests.
    pub error: Option<anyhow::Error>,
}
