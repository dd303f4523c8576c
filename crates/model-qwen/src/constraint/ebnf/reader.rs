//! Reading GBNF.

use std::collections::BTreeSet;

use super::rule::{Expression, Rule, is_name};
use crate::constraint::grammar_error::GrammarError;

/// Groups inside one another.
const MAX_DEPTH: usize = 100;

/// What is left of a grammar's source.
pub(super) struct Reader<'a> {
    source: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a str) -> Self {
        Self {
            source,
            at: 0,
            depth: 0,
        }
    }

    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn error<T>(&self, expected: &str) -> Result<T, GrammarError> {
        let before = &self.source[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let found = self
            .peek()
            .map_or("the end".to_owned(), |c| format!("{c:?}"));
        Err(GrammarError::Invalid(format!(
            "EBNF, line {line}, column {column}: expected {expected}, found {found}"
        )))
    }

    fn next(&mut self, expected: &str) -> Result<char, GrammarError> {
        let Some(c) = self.peek() else {
            return self.error(expected);
        };
        self.at += c.len_utf8();
        Ok(c)
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    /// Skips white space and comments; newlines too where a rule can't end.
    fn skip(&mut self, newlines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if newlines => self.at += 1,
                '#' => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Result<String, GrammarError> {
        let rest = self.rest();
        let len = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if len == 0 {
            return self.error("a name");
        }
        let name = rest[..len].to_owned();
        self.at += len;
        Ok(name)
    }

    /// All rules.
    pub(super) fn rules(&mut self) -> Result<Vec<Rule>, GrammarError> {
        let mut rules: Vec<Rule> = Vec::new();
        let mut known = BTreeSet::new();
        self.skip(true);
        while self.peek().is_some() {
            let at = self.at;
            let name = self.name()?;
            if !known.insert(name.clone()) {
                self.at = at;
                return self.error(&format!("one rule `{name}`"));
            }
            self.skip(false);
            if !self.take("::=") {
                return self.error("`::=`");
            }
            self.skip(true);
            let body = self.choice(false)?;
            rules.push(Rule { name, body });
            if !matches!(self.peek(), None | Some('\r' | '\n')) {
                return self.error("the end of the rule");
            }
            self.skip(true);
        }
        Ok(rules)
    }

    fn choice(&mut self, in_group: bool) -> Result<Expression, GrammarError> {
        let mut parts = vec![self.sequence(in_group)?];
        loop {
            let at = self.at;
            // A rule may go on with `|` in the next line.
            self.skip(true);
            if !self.take("|") {
                if !in_group {
                    self.at = at;
                }
                return Ok(Expression::Choice(parts));
            }
            self.skip(true);
            parts.push(self.sequence(in_group)?);
        }
    }

    fn sequence(&mut self, in_group: bool) -> Result<Expression, GrammarError> {
        let mut parts = Vec::new();
        loop {
            self.skip(in_group);
            let part = match self.peek() {
                Some('"') => self.text()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.at += 1;
                    Expression::Any
                }
                Some('(') => self.group()?,
                Some(c) if is_name(c) => Expression::Name(self.name()?),
                _ => return Ok(Expression::Sequence(parts)),
            };
            parts.push(self.repeated(part, in_group)?);
        }
    }

    fn group(&mut self) -> Result<Expression, GrammarError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error(&format!("at most {MAX_DEPTH} groups in one another"));
        }
        self.at += 1;
        let inside = self.choice(true)?;
        self.skip(true);
        if !self.take(")") {
            return self.error("`)`");
        }
        self.depth -= 1;
        Ok(inside)
    }

    fn repeated(
        &mut self,
        mut part: Expression,
        in_group: bool,
    ) -> Result<Expression, GrammarError> {
        let mut num = 0;
        loop {
            self.skip(in_group);
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => self.bounds()?,
                _ => return Ok(part),
            };
            num += 1;
            if num > MAX_DEPTH {
                return self.error("fewer operators in a row");
            }
            self.at += 1;
            part = Expression::Repeat(Box::new(part), least, most);
        }
    }

    /// Reads `{m}`, `{m,}` or `{m,n}` up to its last character.
    fn bounds(&mut self) -> Result<(usize, Option<usize>), GrammarError> {
        self.at += 1;
        self.skip(false);
        let least = self.number()?;
        self.skip(false);
        if self.peek() == Some('}') {
            return Ok((least, Some(least)));
        }
        if !self.take(",") {
            return self.error("`,` or `}`");
        }
        self.skip(false);
        let most = match self.peek() {
            Some('}') => None,
            _ => Some(self.number()?),
        };
        self.skip(false);
        match self.peek() {
            Some('}') if most.is_none_or(|most| most >= least) => Ok((least, most)),
            Some('}') => self.error(&format!("an upper bound of at least {least}")),
            _ => self.error("`}`"),
        }
    }

    fn number(&mut self) -> Result<usize, GrammarError> {
        let rest = self.rest();
        let len = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        match rest[..len].parse() {
            Ok(number) => {
                self.at += len;
                Ok(number)
            }
            Err(_) => self.error("a number"),
        }
    }

    fn text(&mut self) -> Result<Expression, GrammarError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.next("`\"`")? {
                '"' => return Ok(Expression::Text(text)),
                '\\' => text.push(self.escaped()?),
                c => text.push(c),
            }
        }
    }

    fn class(&mut self) -> Result<Expression, GrammarError> {
        self.at += 1;
        let negated = self.take("^");
        let mut ranges = Vec::new();
        loop {
            let first = match self.next("`]`")? {
                ']' if ranges.is_empty() => return self.error("a class of at least one character"),
                ']' => return Ok(Expression::Class(negated, ranges)),
                '\\' => self.escaped()?,
                c => c,
            };
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let last = match is_range && self.take("-") {
                false => first,
                true => match self.next("a character")? {
                    '\\' => self.escaped()?,
                    c => c,
                },
            };
            if last < first {
                return self.error("a range from lower to higher");
            }
            ranges.push((first, last));
        }
    }

    /// What follows a backslash.
    fn escaped(&mut self) -> Result<char, GrammarError> {
        let digits = match self.next("an escape")? {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            c if c.is_ascii_punctuation() => return Ok(c),
            _ => {
                self.at -= 1;
                return self.error("an escape: n, r, t, x, u, U, or a sign");
            }
        };
        let code = self.rest().get(..digits).unwrap_or_default();
        match u32::from_str_radix(code, 16).ok().and_then(char::from_u32) {
            Some(c) => {
                self.at += digits;
                Ok(c)
            }
            None => self.error(&format!("{digits} hexadecimal digits of a character")),
        }
    }
}
