//! The filter `wordwrap`: `textwrap.wrap` of Python.

use minijinja::Error;

use super::arguments::invalid;
use super::text_classes::is_space;

/// How `wordwrap` breaks lines.
pub(super) struct Wrap {
    pub(super) width: usize,
    pub(super) break_long_words: bool,
    pub(super) break_on_hyphens: bool,
}

impl Wrap {
    /// The lines of one paragraph.
    ///
    /// # Errors
    /// When no letter fits into a line.
    pub(super) fn lines(&self, text: &str) -> Result<Vec<String>, Error> {
        if self.width == 0 {
            return Err(invalid("wordwrap: expected a width of 1 or more"));
        }
        let text: Vec<char> = text.chars().collect();
        let mut chunks: Vec<&[char]> = self.chunks(&text);
        chunks.reverse();
        let is_blank = |chunk: &[char]| chunk.iter().all(|&c| is_space(c));
        let mut lines: Vec<String> = Vec::new();
        while let Some(&first) = chunks.last() {
            if !lines.is_empty() && is_blank(first) {
                chunks.pop();
            }
            let (mut line, mut len): (Vec<&[char]>, usize) = (Vec::new(), 0);
            while let Some(chunk) = chunks.pop_if(|chunk| len + chunk.len() <= self.width) {
                len += chunk.len();
                line.push(chunk);
            }
            if let Some(&long) = chunks.last().filter(|chunk| chunk.len() > self.width) {
                chunks.pop();
                if self.break_long_words {
                    let (head, tail) = long.split_at(self.end_of_head(long, self.width - len));
                    line.push(head);
                    chunks.push(tail);
                } else if line.is_empty() {
                    line.push(long);
                } else {
                    chunks.push(long);
                }
            }
            line.pop_if(|chunk| is_blank(chunk));
            if !line.is_empty() {
                lines.push(line.into_iter().flatten().collect());
            }
        }
        Ok(lines)
    }

    /// Where a word that is longer than a line is broken, behind its last hyphen if possible.
    fn end_of_head(&self, word: &[char], room: usize) -> usize {
        let hyphen = word[..room].iter().rposition(|&c| c == '-');
        match hyphen.filter(|&at| self.break_on_hyphens && word[..at].iter().any(|&c| c != '-')) {
            Some(at) => at + 1,
            None => room,
        }
    }

    /// White space, and the parts of words between which a line may end.
    fn chunks<'t>(&self, text: &'t [char]) -> Vec<&'t [char]> {
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let blank = is_ascii_space(text[start]);
            let after_dash = end_of_dash(text, start).filter(|_| self.break_on_hyphens);
            let end = match blank {
                _ if after_dash.is_some() => after_dash,
                true => (start..text.len()).find(|&i| !is_ascii_space(text[i])),
                false => (start + 1..text.len()).find(|&i| {
                    is_ascii_space(text[i]) || self.break_on_hyphens && ends_part(text, start, i)
                }),
            };
            let end = end.unwrap_or(text.len());
            chunks.push(&text[start..end]);
            start = end;
        }
        chunks
    }
}

/// The white space at which `textwrap` breaks lines.
fn is_ascii_space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where a dash of hyphens between words ends that begins at a place.
fn end_of_dash(text: &[char], start: usize) -> Option<usize> {
    let before = *text.get(start.checked_sub(1)?)?;
    let follows = is_word(before) || matches!(before, '!' | '"' | '\'' | '&' | '.' | ',' | '?');
    if !follows || text[start] != '-' {
        return None;
    }
    let end = (start..text.len()).find(|&i| text[i] != '-')?;
    (end >= start + 2 && is_word(text[end])).then_some(end)
}

/// Whether a part of a word that begins at `start` ends before `at`: behind a hyphen between letters, and before a dash.
fn ends_part(text: &[char], start: usize, at: usize) -> bool {
    let is_letter = |i: usize| {
        let c = text.get(i).copied();
        c.is_some_and(|c| is_word(c) && !c.is_numeric())
    };
    if end_of_dash(text, at).is_some() {
        return true;
    }
    let letters_before = at >= 3
        && is_letter(at - 2)
        && (is_letter(at - 3) || at >= 4 && text[at - 3] == '-' && is_letter(at - 4));
    let letters_behind =
        is_letter(at) && (is_letter(at + 1) || text.get(at + 1) == Some(&'-') && is_letter(at + 2));
    text[at - 1] == '-' && at - 1 > start && letters_before && letters_behind
}
