//! The operators `%` and `+` of Python where minijinja's are others, as calls of functions.
//!
//! minijinja has no hook for operators: `'%s' % x` is an error, and `+` escapes nothing. So `a % b` becomes
//! `__remainder__(a, b)` in the template's text, and in templates that escape, `a + b` becomes `__sum__(a, b)`. What is read
//! here follows the lexer of jinja2; a text that it cannot read stays as it is, for minijinja to say what is wrong.

use std::borrow::Cow;
use std::ops::Range;

use super::lexer::{Kind, Part, Token, expressions, with_escapes};

/// The function that stands for `%`.
pub(super) const REMAINDER: &str = "__remainder__";
/// The function that stands for `+`.
pub(super) const SUM: &str = "__sum__";

/// Words that end an operand.
const WORDS: [&str; 6] = ["and", "or", "not", "in", "if", "else"];
/// Words that end an operand in a tag.
const TAG_WORDS: [&str; 3] = ["recursive", "ignore", "with"];

/// A template's text with functions in the place of operators, and the escapes in texts that minijinja does not know.
///
/// # Errors
/// When a text has an escape that would stay as it is.
pub(super) fn rewrite(source: &str) -> Result<Cow<'_, str>, String> {
    let Some(parts) = expressions(source) else {
        return Ok(source.into());
    };
    let escapes = parts.iter().any(|part| part.escapes(source));
    let mut out = String::new();
    let mut copied = 0;
    for part in &parts {
        let has_escape =
            |token: &Token| token.kind == Kind::Text && source[token.range.clone()].contains('\\');
        let is_operator = |token: &Token| match &source[token.range.clone()] {
            "%" => true,
            "+" => escapes,
            _ => false,
        };
        if !part.tokens.iter().any(|t| has_escape(t) || is_operator(t)) {
            continue;
        }
        let Some(first) = part.tokens.first() else {
            continue;
        };
        out.push_str(&source[copied..first.range.start]);
        let mut writer = Writer {
            source,
            part,
            escapes,
            out: &mut out,
        };
        writer.write(0..part.tokens.len())?;
        copied = part.tokens.last().map_or(copied, |last| last.range.end);
    }
    if copied == 0 {
        return Ok(source.into());
    }
    out.push_str(&source[copied..]);
    Ok(out.into())
}

/// How strong operators bind, the weakest first.
#[derive(Clone, Copy)]
enum Level {
    Sum,
    Join,
    Product,
}

struct Writer<'a> {
    source: &'a str,
    part: &'a Part,
    escapes: bool,
    out: &'a mut String,
}

impl Writer<'_> {
    fn token(&self, i: usize) -> &str {
        &self.source[self.part.tokens[i].range.clone()]
    }

    fn is(&self, i: usize, text: &str) -> bool {
        self.part.tokens[i].kind != Kind::Text && self.token(i) == text
    }

    /// The token behind `i` in a range, or behind the brackets that open there.
    fn next(&self, i: usize) -> usize {
        self.part.tokens[i].partner.max(i) + 1
    }

    /// Writes what stands between a token and the one before it.
    fn write_gap(&mut self, i: usize) {
        if let Some(before) = i.checked_sub(1) {
            let tokens = &self.part.tokens;
            let gap = tokens[before].range.end..tokens[i].range.start;
            self.out.push_str(&self.source[gap]);
        }
    }

    /// Writes tokens with what is between them, but not what is before the first.
    fn write(&mut self, range: Range<usize>) -> Result<(), String> {
        let mut start = range.start;
        let mut i = range.start;
        while i < range.end {
            if self.ends_operand(i) {
                self.write_operand(start, i, range.start)?;
                if i > range.start {
                    self.write_gap(i);
                }
                let token = self.part.tokens[i].range.clone();
                self.out.push_str(&self.source[token]);
                start = i + 1;
            }
            i = self.next(i);
        }
        self.write_operand(start, range.end, range.start)
    }

    fn write_operand(&mut self, start: usize, end: usize, first: usize) -> Result<(), String> {
        if start == end {
            return Ok(());
        }
        if start > first {
            self.write_gap(start);
        }
        self.write_chain(start..end, Level::Sum)
    }

    /// Whether a token is between two expressions.
    fn ends_operand(&self, i: usize) -> bool {
        let before = i.checked_sub(1).map(|i| self.token(i)).unwrap_or_default();
        let token = self.token(i);
        match self.part.tokens[i].kind {
            // The word of a tag.
            Kind::Name if i == 0 && self.part.is_tag => true,
            // A name behind a point or a bar, and the tests `in` and `not`.
            Kind::Name if matches!(before, "." | "|" | "is") => false,
            Kind::Name if before == "not" && i > 1 && self.token(i - 2) == "is" => false,
            Kind::Name => WORDS.contains(&token) || self.part.is_tag && TAG_WORDS.contains(&token),
            Kind::Operator => !matches!(
                token,
                "+" | "-" | "~" | "*" | "/" | "//" | "%" | "**" | "." | "|"
            ),
            _ => false,
        }
    }

    /// Writes operands of one level with the operators between them.
    fn write_chain(&mut self, range: Range<usize>, level: Level) -> Result<(), String> {
        let mut operators = Vec::new();
        let mut i = range.start;
        while i < range.end {
            let is_operator = self.part.tokens[i].kind == Kind::Operator
                && match level {
                    Level::Sum => self.is(i, "+") || self.is(i, "-"),
                    Level::Join => self.is(i, "~"),
                    Level::Product => ["*", "/", "//", "%"].iter().any(|op| self.is(i, op)),
                };
            // Before an operand it is a sign.
            let is_behind = i > range.start
                && matches!(
                    self.part.tokens[i - 1].kind,
                    Kind::Name | Kind::Number | Kind::Text | Kind::Close
                );
            if is_operator && is_behind {
                operators.push(i);
            }
            i = self.next(i);
        }
        let function = |writer: &Self, i: usize| match writer.token(i) {
            "%" => Some(REMAINDER),
            "+" if writer.escapes => Some(SUM),
            _ => None,
        };
        // From left to right, each call has all before it as its first argument.
        for &i in operators.iter().rev() {
            if let Some(function) = function(self, i) {
                self.out.push_str(function);
                self.out.push('(');
            }
        }
        let ends = operators.iter().copied().chain([range.end]);
        let mut start = range.start;
        for (n, end) in ends.enumerate() {
            let operator = n.checked_sub(1).map(|n| operators[n]);
            if let Some(i) = operator {
                self.write_gap(i);
                let written = match function(self, i) {
                    Some(_) => ",",
                    None => self
                        .source
                        .get(self.part.tokens[i].range.clone())
                        .unwrap_or_default(),
                };
                self.out.push_str(written);
                start = i + 1;
                if start < end {
                    self.write_gap(start);
                }
            }
            match level {
                _ if start >= end => {}
                Level::Sum => self.write_chain(start..end, Level::Join)?,
                Level::Join => self.write_chain(start..end, Level::Product)?,
                Level::Product => self.write_tokens(start..end)?,
            }
            if operator.is_some_and(|i| function(self, i).is_some()) {
                self.out.push(')');
            }
        }
        Ok(())
    }

    /// Writes an operand, and what its brackets have inside.
    fn write_tokens(&mut self, range: Range<usize>) -> Result<(), String> {
        let mut i = range.start;
        while i < range.end {
            if i > range.start {
                self.write_gap(i);
            }
            let token = &self.part.tokens[i];
            let text = &self.source[token.range.clone()];
            match token.kind {
                Kind::Open => {
                    let end = token.partner;
                    self.out.push_str(text);
                    if i + 1 < end {
                        self.write_gap(i + 1);
                        self.write(i + 1..end)?;
                    }
                    self.write_gap(end);
                    let close = self.part.tokens[end].range.clone();
                    self.out.push_str(&self.source[close]);
                }
                Kind::Text => self.out.push_str(&with_escapes(text)?),
                _ => self.out.push_str(text),
            }
            i = self.next(i);
        }
        Ok(())
    }
}
