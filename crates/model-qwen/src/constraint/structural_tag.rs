//! Free text with parts that keep to a format: vLLM's and xgrammar's structural tags, as Lark.

mod content;
mod keys;
mod repeats;
mod token;

use std::fmt::Write as _;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use regex_syntax::escape;
use serde_json::{Map, Value};

use super::grammar_error::{GrammarError, invalid};
use super::json_style::JsonStyle;
use super::lark::{lark_regex, lark_string, sized};
use super::{ebnf, json_schema, lark, patterns};
use crate::json_file::json_type;
use content::{Content, joined, one};
use keys::{flag, list, object, optional_texts, text, texts};

/// Formats inside one another.
const MAX_DEPTH: usize = 64;
/// Terminals of any text have names that begin so; this one excludes nothing.
const TEXT_NAME: &str = "TEXT";
/// Any text.
const TEXT: &str = "/(?s:.*)/";

/// The tag with its schemas in this style.
pub(super) fn styled(mut tag: Value, style: &JsonStyle) -> Value {
    fn style_in(value: &mut Value, style: &JsonStyle, level: usize) {
        match value {
            _ if level > MAX_DEPTH => {}
            Value::Array(items) => items
                .iter_mut()
                .for_each(|item| style_in(item, style, level + 1)),
            Value::Object(object) => {
                for (key, value) in object {
                    match key.as_str() {
                        "schema" | "json_schema" => {
                            *value = json_schema::styled(value.take(), style);
                        }
                        _ => style_in(value, style, level + 1),
                    }
                }
            }
            _ => {}
        }
    }
    style_in(&mut tag, style, 0);
    tag
}

/// The grammar of a structural tag.
///
/// # Errors
/// Names what is not supported.
pub(super) fn to_llguidance(tag: &Value) -> Result<TopLevelGrammar, GrammarError> {
    let mut lark = Lark::default();
    let start = match tag.get("structures") {
        Some(_) => lark.older(tag)?,
        None => {
            let tag = object(tag, "structural_tag", &["type", "format"])?;
            match tag.get("type") {
                None => {}
                Some(Value::String(name)) if name == "structural_tag" => {}
                Some(_) => return invalid("structural_tag: `type` must be `structural_tag`"),
            }
            let Some(format) = tag.get("format") else {
                return invalid(
                    "structural_tag: expected `format`, or `structures` and `triggers`",
                );
            };
            lark.format(format, 0)?.expression()
        }
    };
    let grammar = format!(
        "%llguidance {{}}\nstart: {start}\nTEXT: {TEXT}\n{}",
        lark.rules
    );
    let mut grammar = TopLevelGrammar::from_lark(grammar);
    grammar.grammars.extend(lark.grammars);
    Ok(grammar)
}

/// A part of free text that begins with `begin`: the rest is an expression of Lark.
struct Tag {
    begin: String,
    rest: String,
}

/// Free text around tags.
#[derive(Default)]
struct Free {
    /// What begins a tag.
    triggers: Vec<String>,
    /// What the text does not have.
    excludes: Vec<String>,
    at_least_one: bool,
    only_one: bool,
}

#[derive(Default)]
struct Lark {
    rules: String,
    /// Grammars that the rules name.
    grammars: Vec<GrammarWithLexer>,
    num_rules: usize,
    /// Terminals of texts without some words.
    texts: Vec<String>,
}

impl Lark {
    /// Adds a rule, and gives its name.
    fn rule(&mut self, options: &str, body: &str) -> String {
        let name = format!("part_{}", self.num_rules);
        self.num_rules += 1;
        let _ = writeln!(self.rules, "{name}{options}: {body}");
        name
    }

    /// The terminal of texts that have none of these words in them.
    fn text_without(&mut self, words: &[String]) -> Result<String, GrammarError> {
        if words.is_empty() {
            return Ok(TEXT_NAME.to_owned());
        }
        if words.iter().any(String::is_empty) {
            return invalid("`excludes` must not have an empty string");
        }
        let words: Vec<String> = words.iter().map(|word| escape(word)).collect();
        let found = lark_regex(&format!("(?s:.*)({})(?s:.*)", words.join("|")));
        let body = format!("{TEXT} & ~{found}");
        let at = match self.texts.iter().position(|text| *text == body) {
            Some(at) => at,
            None => {
                let _ = writeln!(self.rules, "{TEXT_NAME}_{}: {body}", self.texts.len());
                self.texts.push(body);
                self.texts.len() - 1
            }
        };
        Ok(format!("{TEXT_NAME}_{at}"))
    }

    fn schema(&mut self, schema: &Value) -> Result<String, GrammarError> {
        let schema = json_schema::prepared(schema)?;
        Ok(self.rule("", &format!("%json {schema}")))
    }

    /// `{"structures": [{"begin", "schema", "end"}], "triggers": []}`.
    fn older(&mut self, tag: &Value) -> Result<String, GrammarError> {
        let tag = object(tag, "structural_tag", &["type", "structures", "triggers"])?;
        let mut tags = Vec::new();
        for structure in list(tag, "structures")? {
            let structure = object(structure, "structures", &["begin", "schema", "end"])?;
            let schema = match structure.get("schema") {
                // Any JSON, as without a schema.
                None | Some(Value::Null) => self.schema(&Value::Object(Map::new()))?,
                Some(Value::String(schema)) => match serde_json::from_str(schema) {
                    Ok(schema) => self.schema(&schema)?,
                    Err(error) => {
                        return invalid(format!("structures: `schema` is no JSON: {error}"));
                    }
                },
                Some(schema) => self.schema(schema)?,
            };
            let end = text(structure, "end")?;
            tags.push(Tag {
                begin: text(structure, "begin")?.to_owned(),
                rest: joined(&[schema, literal(end)]),
            });
        }
        let free = Free {
            triggers: texts(tag, "triggers")?,
            ..Free::default()
        };
        self.triggered(&tags, free).map(Content::expression)
    }

    /// The expression of a format.
    fn format(&mut self, format: &Value, depth: usize) -> Result<Content, GrammarError> {
        if depth > MAX_DEPTH {
            return Err(GrammarError::TooLarge(format!(
                "formats are deeper than {MAX_DEPTH} levels"
            )));
        }
        let Some(name) = format.get("type").and_then(Value::as_str) else {
            return invalid(format!(
                "a format: expected an object with `type`, found {}",
                json_type(format)
            ));
        };
        let with = |keys: &[&str]| object(format, name, &[&["type"], keys].concat());
        Ok(Content::closed(match name {
            "const_string" => literal(text(with(&["value"])?, "value")?),
            "json_schema" => {
                let schema = with(&["json_schema", "style"])?;
                match schema.get("style").map(Value::as_str) {
                    None | Some(Some("json")) => {}
                    Some(_) => return invalid("json_schema: the only supported `style` is `json`"),
                }
                match schema.get("json_schema") {
                    Some(schema) => self.schema(schema)?,
                    None => return invalid("json_schema: expected `json_schema`"),
                }
            }
            "regex" => {
                let pattern = sized(text(with(&["pattern"])?, "pattern")?)?;
                patterns::check(pattern)?;
                lark_regex(pattern)
            }
            "grammar" => self.grammar(with(&["grammar", "syntax"])?)?,
            "any_text" => {
                let excludes = optional_texts(with(&["excludes"])?, "excludes")?;
                return Ok(Content::open(String::new(), self.text_without(&excludes)?));
            }
            "token" => token::of_format(format)?,
            "optional" | "star" | "plus" | "repeat" => return self.repeated(format, name, depth),
            "dispatch" => return self.dispatch(with(&["rules", "loop", "excludes"])?, depth),
            "sequence" => return self.sequence(list(with(&["elements"])?, "elements")?, depth),
            "or" => {
                let elements = list(with(&["elements"])?, "elements")?;
                let elements = elements
                    .iter()
                    .map(|element| self.format(element, depth + 1));
                return Ok(Content::one_of(elements.collect::<Result<Vec<_>, _>>()?));
            }
            "tag" => {
                let begin = match format.get("begin") {
                    Some(token @ Value::Object(_)) => Some(token::of_format(token)?),
                    _ => None,
                };
                let tag = match begin.is_some() {
                    // The token stands before a tag that begins with nothing.
                    true => self.tag(&with_begin(format, ""), depth)?,
                    false => self.tag(format, depth)?,
                };
                joined(&[begin.unwrap_or_else(|| literal(&tag.begin)), tag.rest])
            }
            "triggered_tags" => {
                let keys = [
                    "triggers",
                    "tags",
                    "at_least_one",
                    "stop_after_first",
                    "excludes",
                ];
                let format = with(&keys)?;
                let free = Free {
                    triggers: texts(format, "triggers")?,
                    excludes: optional_texts(format, "excludes")?,
                    at_least_one: flag(format, "at_least_one")?,
                    only_one: flag(format, "stop_after_first")?,
                };
                let tags = self.tags(format, depth)?;
                return self.triggered(&tags, free);
            }
            "tags_with_separator" => {
                let tags = with(&["tags", "separator", "at_least_one", "stop_after_first"])?;
                self.separated(tags, depth)?
            }
            _ => {
                return invalid(format!(
                    "the format `{name}` is not supported, expected const_string, json_schema, regex, grammar, any_text, token, \
                     sequence, or, optional, star, plus, repeat, tag, triggered_tags, tags_with_separator or dispatch"
                ));
            }
        }))
    }

    fn grammar(&mut self, format: &Map<String, Value>) -> Result<String, GrammarError> {
        let source = text(format, "grammar")?;
        let is_ebnf = match format.get("syntax").map(Value::as_str) {
            None => ebnf::has_rules(source),
            Some(Some("ebnf")) => true,
            Some(Some("lark")) => false,
            Some(_) => return invalid("grammar: `syntax` must be `ebnf` or `lark`"),
        };
        let grammar = match is_ebnf {
            true => ebnf::to_llguidance(source)?,
            false => lark::to_llguidance(source)?,
        };
        let name = format!("grammar_{}", self.grammars.len());
        self.grammars.extend(
            grammar
                .grammars
                .into_iter()
                .map(|grammar| GrammarWithLexer {
                    name: Some(name.clone()),
                    ..grammar
                }),
        );
        Ok(format!("@{name}"))
    }

    fn sequence(&mut self, elements: &[Value], depth: usize) -> Result<Content, GrammarError> {
        let Some((last, elements)) = elements.split_last() else {
            return Ok(Content::closed(joined(&[])));
        };
        let mut parts = Vec::with_capacity(elements.len());
        for element in elements {
            let part = self.format(element, depth + 1)?;
            if part.is_open() {
                return invalid(
                    "sequence: only the last element may end in any text; a tag's `end` ends it, too",
                );
            }
            parts.push(part.expression());
        }
        let before = match parts.is_empty() {
            true => String::new(),
            false => joined(&parts),
        };
        Ok(self.format(last, depth + 1)?.after(&before))
    }

    fn tags(
        &mut self,
        format: &Map<String, Value>,
        depth: usize,
    ) -> Result<Vec<Tag>, GrammarError> {
        let tags = list(format, "tags")?;
        tags.iter().map(|tag| self.tag(tag, depth + 1)).collect()
    }

    fn tag(&mut self, tag: &Value, depth: usize) -> Result<Tag, GrammarError> {
        let tag = object(tag, "tag", &["type", "begin", "content", "end"])?;
        let begin = text(tag, "begin")?.to_owned();
        let end_token = match tag.get("end") {
            Some(token @ Value::Object(_)) => Some(token::of_format(token)?),
            _ => None,
        };
        let ends = match tag.get("end") {
            Some(Value::Array(_)) => texts(tag, "end")?,
            _ if end_token.is_some() => Vec::new(),
            _ => vec![text(tag, "end")?.to_owned()],
        };
        let Some(content) = tag.get("content") else {
            return invalid("tag: expected `content`");
        };
        let content = self.format(content, depth + 1)?;
        let is_open = ends.iter().any(String::is_empty);
        let literals: Vec<String> = ends.iter().map(|end| literal(end)).collect();
        let end = match literals.as_slice() {
            [] => end_token.clone().unwrap_or_default(),
            several => one(several.to_vec()),
        };
        let rest = match end_token.is_some() {
            // A token is no character, so any text ends before it.
            true => content.ended(&end, |text| joined(&[text.to_owned(), end.clone()])),
            false if is_open => content.ended(&end, str::to_owned),
            // The text up to the first end.
            false => content.ended(&end, |text| {
                self.rule("[lazy]", &joined(&[text.to_owned(), end.clone()]))
            }),
        };
        Ok(Tag { begin, rest })
    }

    /// Any text, in which each trigger begins one of its tags.
    fn triggered(&mut self, tags: &[Tag], free: Free) -> Result<Content, GrammarError> {
        let Free {
            triggers,
            excludes,
            at_least_one,
            only_one,
        } = free;
        let text = self.text_without(&excludes)?;
        if tags.is_empty() || triggers.iter().any(String::is_empty) {
            return invalid("expected at least one tag, and triggers of at least one character");
        }
        let mut groups: Vec<(&String, Vec<String>)> = triggers
            .iter()
            .map(|trigger| (trigger, Vec::new()))
            .collect();
        for Tag { begin, rest } in tags {
            let group = groups
                .iter_mut()
                .find(|(trigger, _)| begin.starts_with(trigger.as_str()));
            let Some((trigger, group)) = group else {
                return invalid(format!("no trigger begins the tag {begin:?}"));
            };
            group.push(joined(&[literal(&begin[trigger.len()..]), rest.clone()]));
        }
        let mut parts = Vec::new();
        for (trigger, group) in groups {
            if group.is_empty() {
                return invalid(format!("no tag begins with the trigger {trigger:?}"));
            }
            let before = match at_least_one && only_one {
                // Text may come before a tag only if there may be none.
                true => literal(trigger),
                false => self.rule("[lazy]", &format!("{text} {}", lark_string(trigger))),
            };
            parts.push(joined(&[before, format!("({})", group.join(" | "))]));
        }
        let part = self.rule("", &parts.join(" | "));
        Ok(match (at_least_one, only_one) {
            (false, false) => Content::open(format!("{part}*"), text),
            (true, false) => Content::open(format!("{part}+"), text),
            (false, true) => {
                Content::one_of([Content::closed(part), Content::open(String::new(), text)])
            }
            (true, true) => Content::closed(part),
        })
    }

    fn separated(
        &mut self,
        format: &Map<String, Value>,
        depth: usize,
    ) -> Result<String, GrammarError> {
        let tags = self.tags(format, depth)?;
        if tags.is_empty() {
            return invalid("tags_with_separator: expected at least one tag");
        }
        let tags = tags
            .iter()
            .map(|tag| joined(&[literal(&tag.begin), tag.rest.clone()]));
        let tags: Vec<String> = tags.collect();
        let tag = self.rule("", &tags.join(" | "));
        let separator = literal(text(format, "separator")?);
        let some = match flag(format, "stop_after_first")? {
            true => tag,
            false => joined(&[tag.clone(), format!("({})*", joined(&[separator, tag]))]),
        };
        Ok(match flag(format, "at_least_one")? {
            true => some,
            false => format!("({some})?"),
        })
    }
}

/// A tag with another beginning.
fn with_begin(tag: &Value, begin: &str) -> Value {
    let mut tag = tag.clone();
    tag["begin"] = Value::from(begin);
    tag
}

/// A text as an expression; nothing for an empty one.
fn literal(text: &str) -> String {
    match text.is_empty() {
        true => String::new(),
        false => lark_string(text),
    }
}
