//! A rule of GBNF.

pub(super) struct Rule {
    pub(super) name: String,
    pub(super) body: Expression,
}

pub(super) enum Expression {
    Text(String),
    /// Ranges of characters, or all others.
    Class(bool, Vec<(char, char)>),
    Any,
    Name(String),
    Sequence(Vec<Expression>),
    Choice(Vec<Expression>),
    Repeat(Box<Expression>, usize, Option<usize>),
}

/// Whether names of rules have this character.
pub(super) fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}
