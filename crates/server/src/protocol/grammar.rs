//! Fields that say what an answer has to keep to: OpenAI's `response_format`, vLLM's `structured_outputs`, and vLLM's older
//! `guided_*`.

use model_qwen::{Grammar, JsonStyle, json_type};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::says_nothing;
use super::switches::{boolean, switch};
use crate::answer::Tool;
use crate::error::ApiError;

/// The fields, each as it came.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct GrammarFields {
    /// `text`, `json_object`, `json_schema` or `structural_tag`.
    pub response_format: Option<Value>,
    /// An object of one grammar and of settings.
    pub structured_outputs: Option<Value>,
    /// A JSON Schema.
    pub guided_json: Option<Value>,
    /// A regular expression.
    pub guided_regex: Option<String>,
    /// Texts.
    pub guided_choice: Option<Vec<String>>,
    /// Lark or EBNF.
    pub guided_grammar: Option<String>,
    /// White space of JSON.
    pub guided_whitespace_pattern: Option<String>,
    /// `auto` or `guidance`.
    pub guided_decoding_backend: Option<String>,
    /// Free text with constrained parts.
    pub structural_tag: Option<Value>,
}

/// A grammar, and the field that it came in.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestedGrammar {
    /// What the answer has to keep to.
    pub grammar: Grammar,
    /// The field.
    pub param: String,
    /// Tools whose schemas are parts of the grammar.
    pub tools: Vec<Tool>,
}

impl RequestedGrammar {
    /// A grammar without tools.
    pub fn new(param: impl Into<String>, grammar: Grammar) -> Self {
        Self {
            grammar,
            param: param.into(),
            tools: Vec::new(),
        }
    }

    /// 400 for a grammar that can't be used.
    pub fn refusal(&self, error: &model_qwen::GrammarError) -> ApiError {
        let param = &self.param;
        ApiError::bad_request(param, format!("`{param}` cannot be used: {error}"))
    }
}

impl GrammarFields {
    /// The grammar of the answer, if a field names one. JSON is in the style `defaults`, unless the request says otherwise.
    ///
    /// # Errors
    /// 400 with the field: for what is not understood, and for more than one grammar.
    pub fn requested(self, defaults: &JsonStyle) -> Result<Option<RequestedGrammar>, ApiError> {
        let mut style = defaults.clone();
        let mut asked = Vec::new();
        match self.guided_decoding_backend.as_deref() {
            None | Some("auto" | "guidance") => {}
            Some(other) => {
                let message = format!(
                    "`guided_decoding_backend`: expected `auto` or `guidance`, found {other:?}."
                );
                return Err(ApiError::bad_request("guided_decoding_backend", message));
            }
        }
        if let Some(format) = &self.response_format {
            asked.extend(response_format(format)?);
        }
        if let Some(fields) = self.structured_outputs.as_ref()
            && !says_nothing(fields)
        {
            asked.push(structured_outputs(fields, &mut style)?);
        }
        let older: [Option<Result<(&str, Grammar), ApiError>>; 5] = [
            self.guided_json.map(|schema| {
                Ok((
                    "guided_json",
                    Grammar::JsonSchema(json("guided_json", schema)?),
                ))
            }),
            self.guided_regex
                .map(|regex| Ok(("guided_regex", Grammar::Regex(regex)))),
            self.guided_choice
                .map(|choice| Ok(("guided_choice", Grammar::Choice(choice)))),
            self.guided_grammar
                .map(|source| Ok(("guided_grammar", Grammar::from_source(source)))),
            self.structural_tag.map(|tag| {
                Ok((
                    "structural_tag",
                    Grammar::StructuralTag(json("structural_tag", tag)?),
                ))
            }),
        ];
        for older in older.into_iter().flatten() {
            let (param, grammar) = older?;
            asked.push(RequestedGrammar::new(param, grammar));
        }
        if let Some(pattern) = self.guided_whitespace_pattern {
            const PARAM: &str = "guided_whitespace_pattern";
            style.whitespace_pattern = Some(pattern);
            if let Some(asked) = asked.first() {
                check_setting(PARAM, true, asked)?;
            } else {
                let message = "`guided_whitespace_pattern` is of use only with `guided_json`.";
                return Err(ApiError::bad_request(PARAM, message));
            }
        }
        if let [first, second, ..] = asked.as_slice() {
            let (first, second) = (&first.param, &second.param);
            let message = format!("Only one grammar is possible: found `{first}` and `{second}`.");
            return Err(ApiError::bad_request(second, message));
        }
        Ok(asked.pop().map(|asked| RequestedGrammar {
            grammar: asked.grammar.styled(&style),
            ..asked
        }))
    }
}

fn bad(param: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::expected(param, expected, json_type(found))
}

/// JSON, also as a text of JSON.
fn json(param: &str, value: Value) -> Result<Value, ApiError> {
    let Value::String(text) = value else {
        return Ok(value);
    };
    serde_json::from_str(&text).map_err(|error| {
        let message = format!("`{param}` is a text that is no JSON: {error}");
        ApiError::bad_request(param, message)
    })
}

/// Whether a value says something: an empty schema does.
fn is_set(value: &Value) -> bool {
    value.is_object() || !says_nothing(value)
}

/// An object whose every key is known. Keys that say nothing are as good as absent.
fn object<'a>(
    param: &str,
    value: &'a Value,
    keys: &[&str],
) -> Result<&'a Map<String, Value>, ApiError> {
    let Value::Object(object) = value else {
        return Err(bad(param, "an object", value));
    };
    let mut unknown = object.iter().filter(|(_, value)| is_set(value));
    match unknown.find(|(key, _)| !keys.contains(&key.as_str())) {
        None => Ok(object),
        Some((key, _)) => {
            let message = format!(
                "`{param}.{key}` is not supported, expected {}.",
                keys.join(", ")
            );
            Err(ApiError::bad_request(format!("{param}.{key}"), message))
        }
    }
}

fn response_format(format: &Value) -> Result<Option<RequestedGrammar>, ApiError> {
    let param = "response_format";
    let Value::Object(fields) = format else {
        return Err(bad(param, "an object", format));
    };
    let name = match fields.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(other) => return Err(bad("response_format.type", "a string", other)),
        None => {
            let message = "`response_format.type`: expected text, json_object, json_schema or structural_tag, found nothing.";
            return Err(ApiError::bad_request("response_format.type", message));
        }
    };
    match name {
        "text" => {
            object(param, format, &["type"])?;
            Ok(None)
        }
        "json_object" => {
            object(param, format, &["type"])?;
            Ok(Some(RequestedGrammar::new(param, Grammar::JsonObject)))
        }
        "json_schema" => {
            let fields = object(param, format, &["type", "json_schema"])?;
            json_schema(fields.get("json_schema").unwrap_or(&Value::Null)).map(Some)
        }
        "structural_tag" => {
            let tag = Grammar::StructuralTag(format.clone());
            Ok(Some(RequestedGrammar::new(param, tag)))
        }
        other => {
            let message = format!(
                "`response_format.type`: expected text, json_object, json_schema or structural_tag, found {other:?}."
            );
            Err(ApiError::bad_request("response_format.type", message))
        }
    }
}

/// `{"name", "schema", "strict", "description"}`.
fn json_schema(format: &Value) -> Result<RequestedGrammar, ApiError> {
    let param = "response_format.json_schema";
    let fields = object(param, format, &["name", "description", "schema", "strict"])?;
    let key = |key: &str| format!("{param}.{key}");
    match fields.get("name").unwrap_or(&Value::Null) {
        Value::String(_) => {}
        other => return Err(bad(&key("name"), "a string", other)),
    }
    // The schema is kept to in any case.
    switch(&key("strict"), fields.get("strict"))?;
    let param = key("schema");
    match fields.get("schema").unwrap_or(&Value::Null) {
        Value::Null => Err(bad(&param, "a JSON schema", &Value::Null)),
        schema => {
            let schema = json(&param, schema.clone())?;
            Ok(RequestedGrammar::new(param, Grammar::JsonSchema(schema)))
        }
    }
}

const KINDS: [&str; 6] = [
    "json",
    "regex",
    "choice",
    "grammar",
    "json_object",
    "structural_tag",
];
const SETTINGS: [&str; 3] = [
    "disable_any_whitespace",
    "disable_additional_properties",
    "whitespace_pattern",
];

/// Refuses a setting of JSON beside a grammar that writes none.
fn check_setting(param: &str, is_set: bool, asked: &RequestedGrammar) -> Result<(), ApiError> {
    let writes_json = matches!(
        asked.grammar,
        Grammar::JsonSchema(_) | Grammar::JsonObject | Grammar::StructuralTag(_)
    );
    if writes_json || !is_set {
        return Ok(());
    }
    let message = format!(
        "`{param}` is of JSON: it has no effect on `{}`.",
        asked.param
    );
    Err(ApiError::bad_request(param, message))
}

/// One of [`KINDS`], and [`SETTINGS`].
fn structured_outputs(value: &Value, style: &mut JsonStyle) -> Result<RequestedGrammar, ApiError> {
    let param = "structured_outputs";
    let fields = object(param, value, &[KINDS.as_slice(), &SETTINGS].concat())?;
    let key = |key: &str| format!("{param}.{key}");
    for (name, field) in [
        ("disable_any_whitespace", &mut style.compact),
        ("disable_additional_properties", &mut style.closed_objects),
    ] {
        if let Some(on) = switch(&key(name), fields.get(name))? {
            *field = on;
        }
    }
    match fields.get("whitespace_pattern") {
        None | Some(Value::Null) => {}
        Some(Value::String(pattern)) => style.whitespace_pattern = Some(pattern.clone()),
        Some(other) => return Err(bad(&key("whitespace_pattern"), "a string", other)),
    }
    let given = KINDS
        .iter()
        .filter_map(|name| Some((*name, fields.get(*name)?)));
    let is_off = |name, value| name == "json_object" && boolean(value) == Some(false);
    let given = given.filter(|(name, value)| is_set(value) && !is_off(*name, value));
    let given: Vec<(&str, &Value)> = given.collect();
    let (name, value) = match given.as_slice() {
        [one] => *one,
        [] => {
            let message = format!(
                "`{param}`: expected one of {}, found none.",
                KINDS.join(", ")
            );
            return Err(ApiError::bad_request(param, message));
        }
        [(first, _), (second, _), ..] => {
            let param = key(second);
            let message =
                format!("`{param}`: only one grammar is possible, found {first} as well.");
            return Err(ApiError::bad_request(param, message));
        }
    };
    let param = key(name);
    let grammar = match (name, value) {
        ("json", schema) => Grammar::JsonSchema(json(&param, schema.clone())?),
        ("structural_tag", tag) => Grammar::StructuralTag(json(&param, tag.clone())?),
        ("json_object", on) => {
            switch(&param, Some(on))?;
            Grammar::JsonObject
        }
        ("choice", Value::Array(texts)) => {
            let texts = texts.iter().map(|text| match text {
                Value::String(text) => Ok(text.clone()),
                other => Err(bad(&param, "strings", other)),
            });
            Grammar::Choice(texts.collect::<Result<_, _>>()?)
        }
        ("choice", other) => return Err(bad(&param, "a list of strings", other)),
        ("regex", Value::String(regex)) => Grammar::Regex(regex.clone()),
        (_, Value::String(source)) => Grammar::from_source(source.clone()),
        (_, other) => return Err(bad(&param, "a string", other)),
    };
    let asked = RequestedGrammar::new(param, grammar);
    for name in SETTINGS {
        let is_set = fields.get(name).is_some_and(|value| match name {
            "whitespace_pattern" => !says_nothing(value),
            _ => boolean(value) == Some(true),
        });
        check_setting(&format!("structured_outputs.{name}"), is_set, &asked)?;
    }
    Ok(asked)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(fields: Value) -> Result<Option<RequestedGrammar>, ApiError> {
        let fields: GrammarFields = serde_json::from_value(fields).unwrap();
        fields.requested(&JsonStyle::default())
    }

    #[test]
    fn every_field_names_a_grammar() {
        let schema = json!({"type": "object"});
        let text = schema.to_string();
        let of_schema = Grammar::JsonSchema(schema.clone());
        let choice = Grammar::Choice(vec!["a".to_owned()]);
        for (fields, param, grammar) in [
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
                Grammar::JsonObject,
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}}),
                "response_format.json_schema.schema",
                of_schema.clone(),
            ),
            (
                json!({"structured_outputs": {"json": text, "regex": null}}),
                "structured_outputs.json",
                of_schema.clone(),
            ),
            (
                json!({"structured_outputs": {"choice": ["a"]}}),
                "structured_outputs.choice",
                choice.clone(),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                "structured_outputs.json_object",
                Grammar::JsonObject,
            ),
            // Switches in the forms that they have elsewhere.
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": "true", "schema": schema}}}),
                "response_format.json_schema.schema",
                of_schema.clone(),
            ),
            (
                json!({"structured_outputs": {"json_object": 1, "disable_any_whitespace": "off"}}),
                "structured_outputs.json_object",
                Grammar::JsonObject,
            ),
            (
                json!({"structured_outputs": {"json_object": "false", "regex": "a", "disable_any_whitespace": 0}}),
                "structured_outputs.regex",
                Grammar::Regex("a".to_owned()),
            ),
            (
                json!({"structured_outputs": {"regex": "a"}}),
                "structured_outputs.regex",
                Grammar::Regex("a".to_owned()),
            ),
            // What vLLM's own object has without a word.
            (
                json!({"structured_outputs": {"regex": "a", "choice": [], "grammar": "", "json": null,
                    "disable_fallback": false, "_backend": null, "_backend_was_auto": false, "disable_any_whitespace": false}}),
                "structured_outputs.regex",
                Grammar::Regex("a".to_owned()),
            ),
            (
                json!({"structured_outputs": {"grammar": "root ::= \"a\""}}),
                "structured_outputs.grammar",
                Grammar::Ebnf("root ::= \"a\"".to_owned()),
            ),
            (json!({"guided_json": text}), "guided_json", of_schema),
            (json!({"guided_choice": ["a"]}), "guided_choice", choice),
            (
                json!({"guided_grammar": "start: \"a\""}),
                "guided_grammar",
                Grammar::Lark("start: \"a\"".to_owned()),
            ),
            (
                json!({"structural_tag": "{\"format\": {\"type\": \"any_text\"}}"}),
                "structural_tag",
                Grammar::StructuralTag(json!({"format": {"type": "any_text"}})),
            ),
        ] {
            let expected = RequestedGrammar::new(param, grammar);
            assert_eq!(asked(fields.clone()).unwrap(), Some(expected), "{fields}");
        }
        assert_eq!(
            asked(json!({"response_format": {"type": "text"}})).unwrap(),
            None
        );
        assert_eq!(asked(json!({})).unwrap(), None);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (fields, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {}}), "response_format.type"),
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type",
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": {"a": 1}}}),
                "response_format.schema",
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": {}}}),
                "response_format.schema",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
                "response_format.json_schema.name",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
                "response_format.json_schema.schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": 2}}}),
                "response_format.json_schema.strict",
            ),
            (
                json!({"structured_outputs": {"xml": "x"}}),
                "structured_outputs.xml",
            ),
            (
                json!({"structured_outputs": {"disable_any_whitespace": true}}),
                "structured_outputs",
            ),
            (
                json!({"structured_outputs": {"regex": 5}}),
                "structured_outputs.regex",
            ),
            (
                json!({"structured_outputs": {"choice": [5]}}),
                "structured_outputs.choice",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "json_object": true}}),
                "structured_outputs.json_object",
            ),
            (
                json!({"structured_outputs": {"json": "{"}}),
                "structured_outputs.json",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "disable_any_whitespace": 2}}),
                "structured_outputs.disable_any_whitespace",
            ),
            (
                json!({"structured_outputs": {"choice": ["a"], "disable_any_whitespace": true}}),
                "structured_outputs.disable_any_whitespace",
            ),
            (
                json!({"structured_outputs": {"choice": ["a"], "whitespace_pattern": " "}}),
                "structured_outputs.whitespace_pattern",
            ),
            (
                json!({"guided_regex": "a", "guided_whitespace_pattern": " "}),
                "guided_whitespace_pattern",
            ),
            (json!({"guided_json": "no"}), "guided_json"),
            (
                json!({"guided_regex": "a", "guided_choice": ["b"]}),
                "guided_choice",
            ),
            (
                json!({"guided_regex": "a", "response_format": {"type": "json_object"}}),
                "guided_regex",
            ),
            (
                json!({"guided_whitespace_pattern": " "}),
                "guided_whitespace_pattern",
            ),
            (
                json!({"guided_decoding_backend": "outlines"}),
                "guided_decoding_backend",
            ),
        ] {
            let error = asked(fields.clone()).unwrap_err();
            assert_eq!(
                error.param.as_deref(),
                Some(param),
                "{fields}: {}",
                error.message
            );
            assert!(error.message.contains(param), "{}", error.message);
        }
    }

    #[test]
    fn settings_are_in_the_schema() {
        let fields =
            json!({"structured_outputs": {"json_object": true, "disable_any_whitespace": true}});
        let Some(RequestedGrammar {
            grammar: Grammar::JsonSchema(schema),
            ..
        }) = asked(fields).unwrap()
        else {
            panic!("a schema");
        };
        assert_eq!(schema["x-guidance"], json!({"whitespace_flexible": false}));
        let fields = json!({"guided_json": {"type": "object"}, "guided_whitespace_pattern": " ?"});
        let Some(RequestedGrammar {
            grammar: Grammar::JsonSchema(schema),
            ..
        }) = asked(fields).unwrap()
        else {
            panic!("a schema");
        };
        assert_eq!(schema["x-guidance"], json!({"whitespace_pattern": " ?"}));
    }
}
