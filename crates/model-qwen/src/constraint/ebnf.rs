//! GBNF, the EBNF of llama.cpp and xgrammar, as Lark.
//!
//! Rules that need no recursion become terminals of Lark: one regular expression each. A grammar of such rules alone is one
//! regular expression, and accepts exactly the same texts. In others a terminal takes as much text as it can, as in Lark.

mod reader;
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use llguidance::api::TopLevelGrammar;

use super::grammar_error::GrammarError;
use super::lark::{lark_string, sized};
use reader::Reader;
use rule::{Expression, Rule, is_name};

/// The empty text in Lark.
const NOTHING: &str = "\"\"";

/// Whether a grammar has rules as EBNF writes them.
pub(super) fn has_rules(source: &str) -> bool {
    source.lines().any(|line| {
        let rest = line.trim_start();
        let rest = rest.trim_start_matches(is_name);
        rest.len() < line.trim_start().len() && rest.trim_start().starts_with("::=")
    })
}

/// The grammar as llguidance takes it.
///
/// # Errors
/// Where it is no GBNF, with line and column.
pub(super) fn to_llguidance(source: &str) -> Result<TopLevelGrammar, GrammarError> {
    Ok(TopLevelGrammar::from_lark(to_lark(sized(source)?)?))
}

/// The grammar in Lark.
fn to_lark(source: &str) -> Result<String, GrammarError> {
    let rules = Reader::new(source).rules()?;
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
            Self::Sequence(parts) if parts.is_empty() => NOTHING.to_owned(),
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
                    // No text, which Lark repeats in no other way.
                    (_, Some(0)) => NOTHING.to_owned(),
                    _ if part == NOTHING => part,
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
