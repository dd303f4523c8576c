//! How JSON is written.

/// How JSON is written, and how schemas are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonStyle {
    /// No white space outside of strings.
    pub compact: bool,
    /// A regular expression of the white space that may be wherever JSON may have some.
    pub whitespace_pattern: Option<String>,
    /// An object whose schema lists properties and says nothing of other ones has none; but if several schemas say something of an
    /// object (`allOf`), or one of its required properties is not listed, it may have other ones.
    pub closed_objects: bool,
}
