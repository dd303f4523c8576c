//! `propertyNames`, said with keywords that llguidance knows.

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

/// Steps that a name may take through a pattern.
const MAX_FUEL: u64 = 10_000;

/// Says `propertyNames` with other keywords, where that is possible; llguidance refuses it elsewhere.
pub(super) fn without(schema: &mut Map<String, Value>) {
    let Some(said) = schema
        .get("propertyNames")
        .and_then(|names| said(schema, names))
    else {
        return;
    };
    schema.shift_remove("propertyNames");
    for (key, value) in said {
        schema.insert(key.to_owned(), value);
    }
}

/// The keywords that say what `names` says of the names of `schema`.
fn said(schema: &Map<String, Value>, names: &Value) -> Option<Vec<(&'static str, Value)>> {
    let names = match names {
        Value::Bool(true) => None,
        Value::Object(names) => of_names(names).ok()?,
        _ => return None,
    };
    let Some(names) = names else {
        return Some(Vec::new());
    };
    let object = |key: &str| match schema.get(key) {
        None => Some(Map::new()),
        Some(Value::Object(object)) => Some(object.clone()),
        Some(_) => None,
    };
    let mut properties = object("properties")?;
    let rest = schema
        .get("additionalProperties")
        .cloned()
        .unwrap_or(Value::Bool(true));
    // A property with a pattern's name has to fit the pattern's schema, too.
    let is_plain = properties.is_empty() || rest.is_boolean();
    if !is_plain || !object("patternProperties")?.is_empty() {
        return None;
    }
    for (name, property) in &mut properties {
        if !names.accepts(name)? {
            *property = Value::Bool(false);
        }
    }
    let mut said = Vec::new();
    match names {
        _ if rest == Value::Bool(false) => {}
        Names::Pattern(pattern) => said.push(("patternProperties", json!({ pattern: rest }))),
        Names::These(names) => {
            for name in names {
                properties.entry(name).or_insert_with(|| rest.clone());
            }
        }
    }
    said.push(("properties", properties.into()));
    said.push(("additionalProperties", false.into()));
    Some(said)
}

/// Names of properties.
enum Names {
    Pattern(String),
    These(Vec<String>),
}

impl Names {
    /// Whether a name is one of them. `None` if that can't be found out.
    fn accepts(&self, name: &str) -> Option<bool> {
        match self {
            Self::These(names) => Some(names.iter().any(|one| one == name)),
            Self::Pattern(pattern) => {
                let mut builder = RegexBuilder::new();
                let pattern = regex_to_lark(pattern, "dw");
                let pattern = builder.mk_regex_for_serach(&pattern).ok()?;
                let mut regex = builder.to_regex_limited(pattern, MAX_FUEL).ok()?;
                Some(regex.is_match(name))
            }
        }
    }
}

/// What can't be said with other keywords.
struct Unsaid;

/// The names that a schema of names accepts; `None` for all.
fn of_names(names: &Map<String, Value>) -> Result<Option<Names>, Unsaid> {
    let mut found = None;
    let (mut shortest, mut longest) = (None, None);
    for (key, value) in names {
        let of_key = match (key.as_str(), value) {
            ("type", Value::String(name)) if name == "string" => continue,
            ("title" | "description" | "$comment" | "examples", _) => continue,
            ("pattern", Value::String(pattern)) => Names::Pattern(pattern.clone()),
            ("const", Value::String(name)) => Names::These(vec![name.clone()]),
            ("enum", Value::Array(names)) => {
                let names = names.iter().map(|name| name.as_str().map(str::to_owned));
                Names::These(names.collect::<Option<_>>().ok_or(Unsaid)?)
            }
            ("minLength", Value::Number(length)) => {
                shortest = Some(length.as_u64().ok_or(Unsaid)?);
                continue;
            }
            ("maxLength", Value::Number(length)) => {
                longest = Some(length.as_u64().ok_or(Unsaid)?);
                continue;
            }
            _ => return Err(Unsaid),
        };
        if found.replace(of_key).is_some() {
            return Err(Unsaid);
        }
    }
    if shortest.is_none() && longest.is_none() {
        return Ok(found);
    }
    let longest = longest.map(|length| length.to_string()).unwrap_or_default();
    let lengths = format!("^[\\s\\S]{{{},{longest}}}$", shortest.unwrap_or(0));
    match found {
        None => Ok(Some(Names::Pattern(lengths))),
        Some(_) => Err(Unsaid),
    }
}
