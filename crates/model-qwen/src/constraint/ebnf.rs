//! GBNF, the EBNF of llama.cpp and xgrammar, as Lark.
//!
//! Rules that need no recursion become terminals of Lark: one regular expression each. A grammar of such rules alone is one
//! regular expression, and accepts exactly the same texts. In others a terminal takes as much text as it can, as in Lark.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::grammar::{GrammarError, lark_string};

/// Groups inside one another.
const MAX_DEPTH: usize = 100;

/// Whether a grammar has rules as EBNF writes them.
pub(super) fn has_rules(source: &str) -> bool {
    source.lines().any(|line| {
        let rest = line.trim_start();
        let rest = rest.trim_start_matches(is_name);
        rest.len() < line.trim_start().len() && rest.trim_start().starts_with("::=")
    })
}

/// The grammar in Lark.
///
/// # Errors
/// Where it is no GBNF, with line and column.
pub(super) fn to_lark(source: &str) -> Result<String, GrammarError> {
    let mut reader = Reader {
        source,
        at: 0,
        depth: 0,
    };
    let rules = reader.rules()?;
    let names = Names::new(&rules);
    let mut lark = String::from("%llguidance {}\n");
    for rule in &rules {
        for name in rule.body.names() {
            if !names.0.contains_key(name) {
                let message = format!(
                    "EBNF: the rule `{}` names `{name}`, which has no rule",
                    rule.name
                );
                return Err(GrammarError::Invalid(message));
            }
        }
        let name = &names.0[rule.name.as_str()];
        let _ = writeln!(lark, "{name}: {}", rule.body.lark(&names, false));
    }
    match names.0.get("root") {
        Some(root) => {
            let _ = writeln!(lark, "start: {root}");
            Ok(lark)
        }
        None => Err(GrammarError::Invalid(
            "EBNF: expected a rule `root`, found none".to_owned(),
        )),
    }
}

struct Rule {
    name: String,
    body: Expression,
}

enum Expression {
    Text(String),
    /// Ranges of characters, or all others.
    Class(bool, Vec<(char, char)>),
    Any,
    Name(String),
    Sequence(Vec<Expression>),
    Choice(Vec<Expression>),
    Repeat(Box<Expression>, usize, Option<usize>),
}

impl Expression {
    fn names(&self) -> Vec<&str> {
        match self {
            Self::Text(_) | Self::Class(..) | Self::Any => Vec::new(),
            Self::Name(name) => vec![name],
            Self::Sequence(parts) | Self::Choice(parts) => {
                parts.iter().flat_map(Self::names).collect()
            }
            Self::Repeat(part, ..) => part.names(),
        }
    }

    fn lark(&self, names: &Names<'_>, is_inside: bool) -> String {
        let joined = |parts: &[Self], separator: &str| {
            let parts: Vec<String> = parts.iter().map(|part| part.lark(names, true)).collect();
            match is_inside {
                true => format!("({})", parts.join(separator)),
                false => parts.join(separator),
            }
        };
        match self {
            Self::Text(text) => lark_string(text),
            Self::Class(negated, ranges) => class(*negated, ranges),
            Self::Any => "/(?s:.)/".to_owned(),
            Self::Name(name) => names.0[name.as_str()].clone(),
            Self::Sequence(parts) if parts.is_empty() => "\"\"".to_owned(),
            Self::Sequence(parts) | Self::Choice(parts) if parts.len() == 1 => {
                parts[0].lark(names, is_inside)
            }
            Self::Sequence(parts) => joined(parts, " "),
            Self::Choice(parts) => joined(parts, " | "),
            Self::Repeat(part, least, most) => {
                let part = match **part {
                    // Two operators in a row.
                    Self::Repeat(..) => format!("({})", part.lark(names, true)),
                    _ => part.lark(names, true),
                };
                match (least, most) {
                    (0, None) => format!("{part}*"),
                    (1, None) => format!("{part}+"),
                    (0, Some(1)) => format!("{part}?"),
                    (least, None) => format!("{part}{{{least},}}"),
                    (least, Some(most)) => format!("{part}{{{least},{most}}}"),
                }
            }
        }
    }
}

fn class(negated: bool, ranges: &[(char, char)]) -> String {
    let mut regex = String::from(if negated { "/[^" } else { "/[" });
    for (first, last) in ranges {
        let _ = write!(regex, r"\x{{{:x}}}-\x{{{:x}}}", *first as u32, *last as u32);
    }
    regex.push_str("]/");
    regex
}

/// What the rules are called in Lark: in capitals those that are terminals.
struct Names<'a>(BTreeMap<&'a str, String>);

impl<'a> Names<'a> {
    fn new(rules: &'a [Rule]) -> Self {
        let mut terminals: BTreeSet<&str> = BTreeSet::new();
        loop {
            let is_terminal = |rule: &&Rule| {
                let mut names = rule.body.names().into_iter();
                !terminals.contains(rule.name.as_str())
                    && names.all(|name| terminals.contains(name))
            };
            let found: Vec<&str> = (rules.iter().filter(is_terminal))
                .map(|rule| rule.name.as_str())
                .collect();
            if found.is_empty() {
                break;
            }
            terminals.extend(found);
        }
        let names = rules.iter().enumerate().map(|(i, Rule { name, .. })| {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            let plain: String = name.chars().map(plain).collect();
            // Two names may differ in their case only.
            let lark = match terminals.contains(name.as_str()) {
                true => format!("T_{}_{i}", plain.to_ascii_uppercase()),
                false => format!("r_{}_{i}", plain.to_ascii_lowercase()),
            };
            (name.as_str(), lark)
        });
        Self(names.collect())
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

struct Reader<'a> {
    source: &'a str,
    at: usize,
    depth: usize,
}

impl Reader<'_> {
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

    fn rules(&mut self) -> Result<Vec<Rule>, GrammarError> {
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
            parts.push(self.repeated(part)?);
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

    fn repeated(&mut self, mut part: Expression) -> Result<Expression, GrammarError> {
        let mut num = 0;
        loop {
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
