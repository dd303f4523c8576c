//! Tags in a text that grows.

/// Bytes of white space where a tag or a call may follow, at most. Longer white space is text: otherwise each token would scan all of
/// it again.
pub(super) const MAX_SPACE: usize = 256;
/// Bytes of a name, at most.
pub(super) const MAX_NAME: usize = 256;

/// The text behind its first white space, of which [`MAX_SPACE`] bytes count.
pub(super) fn trimmed(text: &str) -> &str {
    let mut chars = text.char_indices();
    let end = chars.find(|(at, c)| *at >= MAX_SPACE || !c.is_whitespace());
    &text[end.map_or(text.len(), |(at, _)| at)..]
}

/// As many bytes of a text as a name may have.
pub(super) fn name_room(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_NAME)]
}

/// What a search for tags says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// The first of them begins here.
    Found {
        /// In bytes.
        at: usize,
        /// The tag.
        tag: &'static str,
    },
    /// None is in the text up to here, where one may begin.
    None {
        /// In bytes.
        open: usize,
    },
}

/// Looks for the first of some tags; `ends` if no more text follows.
pub(super) fn search(text: &str, tags: &[&'static str], ends: bool) -> Search {
    let found = tags
        .iter()
        .filter_map(|tag| Some((text.find(tag)?, *tag)))
        .min_by_key(|(at, _)| *at);
    if let Some((at, tag)) = found {
        return Search::Found { at, tag };
    }
    let may_begin = |at: usize| tags.iter().any(|tag| tag.starts_with(&text[at..]));
    let longest = tags.iter().map(|tag| tag.len()).max().unwrap_or(0);
    let from = text.floor_char_boundary(text.len().saturating_sub(longest));
    let mut places = text[from..].char_indices().map(|(i, _)| from + i);
    let open = places.find(|&at| !ends && may_begin(at));
    Search::None {
        open: open.unwrap_or(text.len()),
    }
}

/// As [`search`], of a text that has no tag before `from`.
pub(super) fn search_from(text: &str, from: usize, tags: &[&'static str], ends: bool) -> Search {
    match search(&text[from..], tags, ends) {
        Search::Found { at, tag } => Search::Found { at: from + at, tag },
        Search::None { open } => Search::None { open: from + open },
    }
}

/// Whether a text begins with one of some words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    /// With this one.
    With(&'static str),
    /// With none, whatever follows.
    Otherwise,
    /// More text decides.
    Open,
}

/// Compares the beginning of a text with words of which none begins another one.
pub(super) fn begins(text: &str, words: &[&'static str], ends: bool) -> Begins {
    if let Some(word) = words.iter().find(|word| text.starts_with(**word)) {
        return Begins::With(word);
    }
    match !ends && words.iter().any(|word| word.starts_with(text)) {
        true => Begins::Open,
        false => Begins::Otherwise,
    }
}
