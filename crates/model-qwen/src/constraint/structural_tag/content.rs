//! Expressions that may end in any text, to which what follows puts an end.

/// An expression of Lark, as its alternatives.
pub(super) struct Content(Vec<Alternative>);

/// What comes first, and the terminal of any text behind it, if it ends in any text.
struct Alternative {
    first: String,
    text: Option<String>,
}

impl Content {
    /// An expression that ends by itself.
    pub(super) fn closed(expression: String) -> Self {
        Self(vec![Alternative {
            first: expression,
            text: None,
        }])
    }

    /// An expression, which may be empty, and any text.
    pub(super) fn open(first: String, text: String) -> Self {
        Self(vec![Alternative {
            first,
            text: Some(text),
        }])
    }

    /// One of several.
    pub(super) fn one_of(all: impl IntoIterator<Item = Self>) -> Self {
        Self(all.into_iter().flat_map(|content| content.0).collect())
    }

    /// Whether one of its alternatives ends in any text.
    pub(super) fn is_open(&self) -> bool {
        self.0.iter().any(|alternative| alternative.text.is_some())
    }

    /// Whether it is any text and nothing else.
    pub(super) fn is_any_text(&self) -> bool {
        let is_text = |one: &Alternative| one.first.is_empty() && one.text.is_some();
        self.0.iter().all(is_text)
    }

    /// The same after another expression.
    pub(super) fn after(self, before: &str) -> Self {
        let alternatives = self.0.into_iter().map(|alternative| Alternative {
            first: match before.is_empty() {
                true => alternative.first,
                false if alternative.first.is_empty() => before.to_owned(),
                false => format!("{before} {}", alternative.first),
            },
            ..alternative
        });
        Self(alternatives.collect())
    }

    /// The expression, with an end after each alternative: `end` makes that of any text.
    pub(super) fn ended(self, end: &str, mut of_text: impl FnMut(&str) -> String) -> String {
        let alternatives = self.0.into_iter().map(|Alternative { first, text }| {
            let end = text.map_or_else(|| end.to_owned(), |text| of_text(&text));
            joined(&[first, end])
        });
        one(alternatives.collect())
    }

    /// The expression, which any text may end.
    pub(super) fn expression(self) -> String {
        self.ended("", str::to_owned)
    }
}

/// One of several expressions.
pub(super) fn one(all: Vec<String>) -> String {
    match all.as_slice() {
        [only] => only.clone(),
        several => format!("({})", several.join(" | ")),
    }
}

/// Expressions one after the other.
pub(super) fn joined(parts: &[String]) -> String {
    let parts: Vec<&str> = parts
        .iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    match parts.is_empty() {
        true => "\"\"".to_owned(),
        false => parts.join(" "),
    }
}
