//! Whether a value is what a JSON schema describes.
//!
//! The keywords of draft 2020-12 that schemas of answers have; a keyword that is not known is refused, since ignoring it would
//! reward wrong answers. `format` and descriptions decide nothing, as the standard says.

mod keywords;

use std::collections::HashMap;
use std::path::Path;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use self::keywords::{NAMED, NOTES, NUMBERS, ONE, SOME, check_plain};

/// Schemas inside each other; more are a reference to itself.
const MAX_DEPTH: usize = 200;
/// A schema that has been read.
#[derive(Debug)]
pub(super) struct Schema {
    root: Value,
    patterns: HashMap<String, Regex>,
}

impl Schema {
    /// Reads the schema in a file.
    pub(super) fn load(file: &Path) -> Result<Self, String> {
        let text = crate::text_file::read(file).map_err(|error| error.to_string())?;
        let root = serde_json::from_str(&text).map_err(|error| format!("invalid JSON: {error}"))?;
        Self::new(root)
    }

    /// Takes a schema.
    ///
    /// # Errors
    /// The keyword that is not known, or has a wrong value.
    pub(super) fn new(root: Value) -> Result<Self, String> {
        let mut schema = Self {
            root: Value::Null,
            patterns: HashMap::new(),
        };
        schema.read(&root, "#", &root)?;
        schema.root = root;
        Ok(schema)
    }

    /// Whether the schema lets `value` through.
    pub(super) fn accepts(&self, value: &Value) -> bool {
        self.fits(&self.root, value, 0)
    }

    fn read(&mut self, schema: &Value, at: &str, root: &Value) -> Result<(), String> {
        let keywords = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(keywords) => keywords,
            other => return Err(format!("{at}: expected an object, found {other}")),
        };
        for (name, value) in keywords {
            let at = format!("{at}/{name}");
            let wrong = |expected: &str| Err(format!("{at}: expected {expected}, found {value}"));
            let name = name.as_str();
            match value {
                _ if NOTES.contains(&name)
                    || matches!(name, "const" | "enum" | "type" | "required" | "uniqueItems") =>
                {
                    check_plain(name, value).or_else(wrong)?;
                }
                value if ONE.contains(&name) => self.read(value, &at, root)?,
                Value::Array(schemas) if SOME.contains(&name) && !schemas.is_empty() => {
                    for (index, schema) in schemas.iter().enumerate() {
                        self.read(schema, &format!("{at}/{index}"), root)?;
                    }
                }
                Value::Object(schemas) if NAMED.contains(&name) => {
                    for (key, schema) in schemas {
                        if name == "patternProperties" {
                            self.pattern(key, &at)?;
                        }
                        self.read(schema, &format!("{at}/{key}"), root)?;
                    }
                }
                Value::Number(_) if NUMBERS.contains(&name) => {}
                Value::String(pattern) if name == "pattern" => self.pattern(pattern, &at)?,
                Value::String(place) if name == "$ref" => {
                    if resolve(root, place).is_none() {
                        return wrong("a place in this schema such as #/$defs/name");
                    }
                }
                _ if SOME.contains(&name) => return wrong("a list of schemas"),
                _ if NAMED.contains(&name) => return wrong("an object of schemas"),
                _ if NUMBERS.contains(&name) => return wrong("a number"),
                _ if matches!(name, "pattern" | "$ref") => return wrong("a text"),
                _ => return Err(format!("{at}: the keyword `{name}` is not known here")),
            }
        }
        Ok(())
    }

    fn pattern(&mut self, pattern: &str, at: &str) -> Result<(), String> {
        let regex = Regex::new(pattern);
        let regex = regex.map_err(|error| {
            format!("{at}: expected a regular expression, found `{pattern}`: {error}")
        })?;
        self.patterns.insert(pattern.to_owned(), regex);
        Ok(())
    }

    fn matches(&self, pattern: &str, text: &str) -> bool {
        let regex = self.patterns.get(pattern);
        regex.is_some_and(|regex| regex.is_match(text).unwrap_or(false))
    }

    fn fits(&self, schema: &Value, value: &Value, depth: usize) -> bool {
        let Value::Object(keywords) = schema else {
            return schema != &Value::Bool(false);
        };
        depth < MAX_DEPTH
            && keywords
                .iter()
                .all(|(name, wanted)| self.fits_keyword((name, wanted), keywords, value, depth + 1))
    }

    fn fits_keyword(
        &self,
        (name, wanted): (&str, &Value),
        keywords: &Map<String, Value>,
        value: &Value,
        depth: usize,
    ) -> bool {
        let fits = |schema: &Value| self.fits(schema, value, depth);
        let schemas = || wanted.as_array().into_iter().flatten();
        match (name, value) {
            ("$ref", _) => {
                let place = wanted.as_str().and_then(|place| resolve(&self.root, place));
                place.is_some_and(fits)
            }
            ("type", _) => match wanted {
                Value::Array(types) => types.iter().any(|name| is_of_type(value, name)),
                name => is_of_type(value, name),
            },
            ("const", _) => equal(value, wanted),
            ("enum", _) => schemas().any(|one| equal(value, one)),
            ("allOf", _) => schemas().all(fits),
            ("anyOf", _) => schemas().any(fits),
            ("oneOf", _) => schemas().filter(|schema| fits(schema)).count() == 1,
            ("not", _) => !fits(wanted),
            (_, Value::Object(fields)) => self.fits_object((name, wanted), keywords, fields, depth),
            (_, Value::Array(items)) => self.fits_list((name, wanted), keywords, items, depth),
            ("pattern", Value::String(text)) => wanted
                .as_str()
                .is_none_or(|pattern| self.matches(pattern, text)),
            ("minLength", Value::String(text)) => text.chars().count() as f64 >= number(wanted),
            ("maxLength", Value::String(text)) => text.chars().count() as f64 <= number(wanted),
            (_, Value::Number(found)) => {
                let (found, wanted) = (found.as_f64().unwrap_or(f64::NAN), number(wanted));
                match name {
                    "minimum" => found >= wanted,
                    "maximum" => found <= wanted,
                    "exclusiveMinimum" => found > wanted,
                    "exclusiveMaximum" => found < wanted,
                    "multipleOf" => (found / wanted - (found / wanted).round()).abs() < 1e-9,
                    _ => true,
                }
            }
            _ => true,
        }
    }

    fn fits_object(
        &self,
        (name, wanted): (&str, &Value),
        keywords: &Map<String, Value>,
        fields: &Map<String, Value>,
        depth: usize,
    ) -> bool {
        let named = |keyword: &str| keywords.get(keyword).and_then(Value::as_object);
        match name {
            "properties" => named(name).into_iter().flatten().all(|(key, schema)| {
                fields
                    .get(key)
                    .is_none_or(|value| self.fits(schema, value, depth))
            }),
            "patternProperties" => named(name).into_iter().flatten().all(|(pattern, schema)| {
                let mut own = fields.iter().filter(|(key, _)| self.matches(pattern, key));
                own.all(|(_, value)| self.fits(schema, value, depth))
            }),
            "additionalProperties" => fields.iter().all(|(key, value)| {
                let is_named = named("properties").is_some_and(|named| named.contains_key(key));
                let mut patterns = named("patternProperties").into_iter().flatten();
                let is_known = is_named || patterns.any(|(pattern, _)| self.matches(pattern, key));
                is_known || self.fits(wanted, value, depth)
            }),
            "propertyNames" => {
                let mut keys = fields.keys();
                keys.all(|key| self.fits(wanted, &Value::String(key.clone()), depth))
            }
            "required" => {
                let mut names = wanted.as_array().into_iter().flatten();
                names.all(|name| name.as_str().is_none_or(|name| fields.contains_key(name)))
            }
            "minProperties" => fields.len() as f64 >= number(wanted),
            "maxProperties" => fields.len() as f64 <= number(wanted),
            _ => true,
        }
    }

    fn fits_list(
        &self,
        (name, wanted): (&str, &Value),
        keywords: &Map<String, Value>,
        items: &[Value],
        depth: usize,
    ) -> bool {
        let first = keywords.get("prefixItems").and_then(Value::as_array);
        let fits = |(schema, value)| self.fits(schema, value, depth);
        match name {
            "prefixItems" => first.into_iter().flatten().zip(items).all(fits),
            "items" => {
                let rest = items.iter().skip(first.map_or(0, Vec::len));
                rest.map(|value| (wanted, value)).all(fits)
            }
            "minItems" => items.len() as f64 >= number(wanted),
            "maxItems" => items.len() as f64 <= number(wanted),
            "uniqueItems" if wanted == &Value::Bool(true) => {
                let mut all = items.iter().enumerate();
                all.all(|(index, item)| !items[..index].iter().any(|other| equal(item, other)))
            }
            _ => true,
        }
    }
}

/// What `#/…` names.
fn resolve<'a>(root: &'a Value, place: &str) -> Option<&'a Value> {
    root.pointer(place.strip_prefix('#')?)
}

fn is_of_type(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => false,
    }
}

/// Equality of JSON, in which 1 and 1.0 are one number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same = |(key, a): (&String, &Value)| b.get(key).is_some_and(|b| equal(a, b));
            a.len() == b.len() && a.iter().all(same)
        }
        (a, b) => a == b,
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(schema: Value, right: &[Value], wrong: &[Value]) {
        let shown = schema.to_string();
        let schema = Schema::new(schema).unwrap();
        for value in right {
            assert!(schema.accepts(value), "{shown} refuses {value}");
        }
        for value in wrong {
            assert!(!schema.accepts(value), "{shown} accepts {value}");
        }
    }

    #[test]
    fn keywords_mean_what_the_standard_says() {
        check(
            json!({"type": "object", "required": ["a"], "additionalProperties": false,
                   "properties": {"a": {"type": ["integer", "null"]}}, "patternProperties": {"^x": {"type": "string"}}}),
            &[json!({"a": 1.0}), json!({"a": null, "xy": ""})],
            &[
                json!({}),
                json!({"a": 1.5}),
                json!({"a": 1, "b": 2}),
                json!({"a": 1, "x": 2}),
                json!([]),
            ],
        );
        check(
            json!({"prefixItems": [{"const": 1}], "items": {"enum": ["a", [2]]}, "uniqueItems": true, "minItems": 1, "maxItems": 3}),
            &[json!([1]), json!([1.0, "a", [2.0]]), json!("no list")],
            &[
                json!([]),
                json!([2]),
                json!([1, "b"]),
                json!([1, "a", "a"]),
                json!([1, "a", [2], "a"]),
            ],
        );
        check(
            json!({"oneOf": [{"minimum": 3}, {"exclusiveMaximum": 5, "multipleOf": 0.1}]}),
            &[json!(6), json!(2.3)],
            &[json!(4), json!(2.35)],
        );
        check(
            json!({"allOf": [{"minLength": 2}, {"maxLength": 3}], "not": {"pattern": "^z"}, "anyOf": [{"type": "string"}]}),
            &[json!("ab"), json!("éée")],
            &[json!("a"), json!("abcd"), json!("zz"), json!(4)],
        );
        check(json!(false), &[], &[json!(1)]);
    }

    #[test]
    fn references_go_down_a_tree_and_end_in_a_circle() {
        check(
            json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}}),
            &[json!({"next": {"next": {}}})],
            &[json!({"next": {"next": 3}})],
        );
        check(json!({"$ref": "#"}), &[], &[json!(1)]);
    }

    #[test]
    fn what_is_not_known_or_wrong_is_named() {
        for (schema, expected) in [
            (
                json!({"if": {}}),
                "#/if: the keyword `if` is not known here",
            ),
            (json!({"type": "text"}), "#/type: expected object, array"),
            (json!({"items": 3}), "#/items: expected an object, found 3"),
            (
                json!({"properties": {"a": {"minimum": "3"}}}),
                "#/properties/a/minimum: expected a number",
            ),
            (json!({"anyOf": {}}), "#/anyOf: expected a list of schemas"),
            (
                json!({"$ref": "https://a.b"}),
                "#/$ref: expected a place in this schema",
            ),
            (
                json!({"pattern": "("}),
                "#/pattern: expected a regular expression",
            ),
            (
                json!({"required": [1]}),
                "#/required: expected a list of names",
            ),
            (json!([]), "#: expected an object, found []"),
        ] {
            let refused = Schema::new(schema).unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
    }
}
