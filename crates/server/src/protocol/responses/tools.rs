//! `tools`, which have less depth here than in a chat, and kinds that a chat does not have.

use std::collections::BTreeMap;

use model_qwen::json_type;
use regex_syntax::ast::parse::Parser;
use serde_json::{Map, Value, json};

use super::callee::{Callee, flat_name};
use crate::error::ApiError;
use crate::protocol::switches::boolean;

/// Keys of a function tool.
const FUNCTION: [&str; 5] = ["type", "name", "description", "parameters", "strict"];
/// Keys of a custom tool.
const CUSTOM: [&str; 4] = ["type", "name", "description", "format"];
/// Keys of a namespace.
const NAMESPACE: [&str; 4] = ["type", "name", "description", "tools"];
/// Beginnings of the types that OpenAI's servers run themselves, or have taught their models. Here they are left out.
const HOSTED: [&str; 13] = [
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
    "web_search_preview",
];

/// The tools of a request.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// As answers show them: those that the model may call.
    pub shown: Vec<Value>,
    /// As a chat has them: all are functions.
    pub chat: Vec<Value>,
    /// Where each of these came from.
    pub places: Vec<Place>,
    /// Which tool a function of the chat is.
    pub callees: BTreeMap<String, Callee>,
}

/// Where a function of the chat came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The field of the request.
    pub tool: String,
    /// Whether it is a custom tool there.
    pub is_custom: bool,
}

impl Place {
    /// The field of the request that the rest of a chat's `tools[0]…` came from.
    pub(super) fn field(&self, rest: &str) -> String {
        let Self { tool, is_custom } = self;
        let rest = rest.replace(".function", "");
        // Of a custom tool, only a regular expression makes a schema that may be wrong, and a call strict.
        match *is_custom && (rest.starts_with(".parameters") || rest == ".strict") {
            true => format!("{tool}.format.definition"),
            false => format!("{tool}{rest}"),
        }
    }
}

/// Whether a tool of this type is one of OpenAI's servers; some types end in a date.
pub(super) fn is_hosted(of_type: &str) -> bool {
    let of_type = of_type.split("_20").next().unwrap_or(of_type);
    HOSTED.contains(&of_type)
}

/// The types that [`is_hosted`] knows, as a regular expression.
pub(crate) fn hosted_pattern() -> String {
    format!("^({})(_20.*)?$", HOSTED.join("|"))
}

/// Reads the list `tools`.
///
/// # Errors
/// 400 with the field of a tool that is not understood.
pub fn read_tools(tools: Vec<Value>) -> Result<Tools, ApiError> {
    let mut read = Tools::default();
    for (i, tool) in tools.into_iter().enumerate() {
        let place = format!("tools[{i}]");
        let tool = object(&place, tool)?;
        let shown = match tool.get("type") {
            Some(Value::String(of_type)) if is_hosted(of_type) => {
                tracing::warn!("left out {place}: the server has no tool `{of_type}`");
                continue;
            }
            Some(Value::String(of_type)) if of_type == "namespace" => {
                read.namespace(&place, &tool)?
            }
            _ => read.tool(&place, &tool, None)?,
        };
        read.shown.push(shown);
    }
    Ok(read)
}

/// An object, with its switch in one form.
fn object(place: &str, tool: Value) -> Result<Map<String, Value>, ApiError> {
    match tool {
        Value::Object(mut tool) => {
            if let Some(strict) = tool.get_mut("strict")
                && let Some(on) = boolean(strict)
            {
                *strict = Value::Bool(on);
            }
            Ok(tool)
        }
        other => Err(ApiError::expected(place, "an object", json_type(&other))),
    }
}

impl Tools {
    /// Reads tools that have a common name; the model sees it before their own names.
    fn namespace(&mut self, place: &str, tool: &Map<String, Value>) -> Result<Value, ApiError> {
        let read = Keys { place, tool };
        let name = read.name()?;
        read.text("description")?;
        read.nothing_else(&NAMESPACE)?;
        let Some(Value::Array(tools)) = tool.get("tools") else {
            return Err(read.wrong("tools", "a list of tools"));
        };
        let tools = tools.iter().enumerate().map(|(j, tool)| {
            let place = format!("{place}.tools[{j}]");
            let tool = object(&place, tool.clone())?;
            self.tool(&place, &tool, Some(name))
        });
        let tools: Vec<Value> = tools.collect::<Result<_, _>>()?;
        let description = read.get("description");
        Ok(json!({ "type": "namespace", "name": name, "description": description, "tools": tools }))
    }

    /// Reads a function or a custom tool.
    fn tool(
        &mut self,
        place: &str,
        tool: &Map<String, Value>,
        namespace: Option<&str>,
    ) -> Result<Value, ApiError> {
        let read = Keys { place, tool };
        let (keys, is_custom) = match read.get("type") {
            Value::String(of_type) if of_type == "function" => (&FUNCTION[..], false),
            Value::String(of_type) if of_type == "custom" => (&CUSTOM[..], true),
            Value::String(of_type) => {
                let expected =
                    "`function`, `custom` or `namespace` (the server has no tools of its own)";
                let param = format!("{place}.type");
                let found = format!("`{of_type}`");
                return Err(ApiError::expected(param, expected, &found));
            }
            _ => return Err(read.wrong("type", "`function`, `custom` or `namespace`")),
        };
        let name = read.name()?;
        read.text("description")?;
        let function = match is_custom {
            true => custom(&read)?,
            false => function(&read)?,
        };
        read.nothing_else(keys)?;
        let flat = flat_name(namespace, name);
        let mut chat = Map::from_iter([("name".to_owned(), Value::from(flat.as_str()))]);
        // The model reads what is here.
        chat.extend(
            function
                .into_iter()
                .filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false))),
        );
        self.chat
            .push(json!({ "type": "function", "function": chat }));
        self.places.push(Place {
            tool: place.to_owned(),
            is_custom,
        });
        let callee = Callee {
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            is_custom,
        };
        let before = self.callees.insert(flat.clone(), callee.clone());
        if before.is_some_and(|before| before != callee) {
            let found = format!("another tool that the model would read as `{flat}`");
            let expected = "a name of its own";
            return Err(ApiError::expected(
                format!("{place}.name"),
                expected,
                &found,
            ));
        }
        let keys = keys.iter().map(|key| ((*key).to_owned(), read.get(key)));
        Ok(Value::Object(keys.collect()))
    }
}

/// What a chat has of a function.
fn function(read: &Keys<'_>) -> Result<Map<String, Value>, ApiError> {
    match read.get("parameters") {
        Value::Null | Value::Object(_) => {}
        _ => return Err(read.wrong("parameters", "an object, a JSON schema")),
    }
    match read.get("strict") {
        Value::Null | Value::Bool(_) => {}
        _ => return Err(read.wrong("strict", "a boolean")),
    }
    let keys = ["description", "parameters", "strict"];
    Ok(Map::from_iter(
        keys.map(|key| (key.to_owned(), read.get(key))),
    ))
}

/// A custom tool takes a text: in a chat it is a function of one string.
fn custom(read: &Keys<'_>) -> Result<Map<String, Value>, ApiError> {
    let mut input = json!({ "type": "string" });
    let mut description = read.get("description");
    let mut is_strict = false;
    let place = format!("{}.format", read.place);
    let format = match read.get("format") {
        Value::Null => Map::new(),
        format => object(&place, format)?,
    };
    let format = Keys {
        place: &place,
        tool: &format,
    };
    match format.get("type").as_str() {
        None if format.tool.is_empty() => {}
        Some("text") => format.nothing_else(&["type"])?,
        Some("grammar") => {
            let Value::String(definition) = format.get("definition") else {
                return Err(format.wrong("definition", "a string"));
            };
            match format.get("syntax").as_str() {
                Some("regex") => {
                    // By itself: between the anchors `a)|(b` would be none.
                    if let Err(error) = Parser::new().parse(&definition) {
                        let param = format!("{place}.definition");
                        let message = format!("`{param}` cannot be used: {error}");
                        return Err(ApiError::bad_request(param, message));
                    }
                    input["pattern"] = Value::from(format!("^(?:{definition})$"));
                    is_strict = true;
                }
                // A grammar can't say what a string of JSON holds.
                Some("lark") => {
                    let before = description.as_str().map(|text| format!("{text}\n"));
                    let before = before.unwrap_or_default();
                    description = Value::from(format!(
                        "{before}The input has to match this Lark grammar:\n{definition}"
                    ));
                }
                _ => return Err(format.wrong("syntax", "`regex` or `lark`")),
            }
            format.nothing_else(&["type", "definition", "syntax"])?;
        }
        _ => return Err(format.wrong("type", "`text` or `grammar`")),
    }
    let parameters = json!({
        "type": "object",
        "properties": { "input": input },
        "required": ["input"],
        "additionalProperties": false,
    });
    let function =
        json!({ "description": description, "parameters": parameters, "strict": is_strict });
    Ok(function.as_object().cloned().unwrap_or_default())
}

/// An object of the request, whose keys are read.
struct Keys<'a> {
    place: &'a str,
    tool: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Value {
        self.tool.get(key).cloned().unwrap_or_default()
    }

    fn wrong(&self, key: &str, expected: &str) -> ApiError {
        let found = match self.tool.get(key) {
            None => "nothing".to_owned(),
            Some(Value::String(text)) => format!("`{}`", text.chars().take(64).collect::<String>()),
            Some(other) => json_type(other).to_owned(),
        };
        ApiError::expected(format!("{}.{key}", self.place), expected, &found)
    }

    fn name(&self) -> Result<&str, ApiError> {
        match self.tool.get("name") {
            Some(Value::String(name)) if !name.is_empty() => Ok(name),
            _ => Err(self.wrong("name", "a name")),
        }
    }

    fn text(&self, key: &str) -> Result<(), ApiError> {
        match self.get(key) {
            Value::Null | Value::String(_) => Ok(()),
            _ => Err(self.wrong(key, "a string")),
        }
    }

    /// Refuses keys that ask for something else.
    fn nothing_else(&self, keys: &[&str]) -> Result<(), ApiError> {
        for (key, value) in self
            .tool
            .iter()
            .filter(|(key, _)| !keys.contains(&key.as_str()))
        {
            let says_nothing = match value {
                Value::Null | Value::Bool(false) => true,
                // The model calls functions directly.
                value => key == "allowed_callers" && *value == json!(["direct"]),
            };
            if !says_nothing {
                return Err(self.wrong(key, "none (tools have no such setting)"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str) -> Value {
        json!({ "type": "function", "name": name })
    }

    #[test]
    fn tools_are_functions() {
        let parameters = json!({ "type": "object", "properties": { "a": {} } });
        let full = json!({ "type": "function", "name": "f", "description": "d", "parameters": parameters, "strict": true });
        let bare = json!({ "type": "function", "name": "g", "strict": null, "defer_loading": false, "allowed_callers": ["direct"] });
        let tools = read_tools(vec![full.clone(), bare]).unwrap();
        assert_eq!(tools.shown[0], full);
        assert_eq!(
            tools.shown[1],
            json!({ "type": "function", "name": "g", "description": null, "parameters": null, "strict": null })
        );
        assert_eq!(
            tools.chat[0],
            json!({ "type": "function", "function": { "name": "f", "description": "d", "parameters": parameters, "strict": true } })
        );
        assert_eq!(
            tools.chat[1],
            json!({ "type": "function", "function": { "name": "g" } })
        );
        for (tool, param) in [
            (json!("f"), "tools[0]"),
            (json!({ "name": "f" }), "tools[0].type"),
            (json!({ "type": "odd", "name": "f" }), "tools[0].type"),
            (json!({ "type": "custom" }), "tools[0].name"),
            (
                json!({ "type": "custom", "name": "f", "parameters": {} }),
                "tools[0].parameters",
            ),
            (
                json!({ "type": "custom", "name": "f", "format": "text" }),
                "tools[0].format",
            ),
            (
                json!({ "type": "custom", "name": "f", "format": { "type": "json" } }),
                "tools[0].format.type",
            ),
            (
                json!({ "type": "custom", "name": "f", "format": { "type": "grammar", "syntax": "ebnf", "definition": "a" } }),
                "tools[0].format.syntax",
            ),
            (
                json!({ "type": "custom", "name": "f", "format": { "type": "grammar", "syntax": "lark" } }),
                "tools[0].format.definition",
            ),
            (
                json!({ "type": "namespace", "name": "n" }),
                "tools[0].tools",
            ),
            (
                json!({ "type": "namespace", "name": "n", "tools": [{ "type": "web_search" }] }),
                "tools[0].tools[0].type",
            ),
            (
                json!({ "type": "namespace", "name": "n", "tools": [function("f"), { "type": "custom", "name": "f" }] }),
                "tools[0].tools[1].name",
            ),
            (
                json!({ "type": "function", "function": { "name": "f" } }),
                "tools[0].name",
            ),
            (json!({ "type": "function", "name": "" }), "tools[0].name"),
            (
                json!({ "type": "function", "name": "f", "description": 1 }),
                "tools[0].description",
            ),
            (
                json!({ "type": "function", "name": "f", "parameters": "{}" }),
                "tools[0].parameters",
            ),
            (
                json!({ "type": "function", "name": "f", "strict": "maybe" }),
                "tools[0].strict",
            ),
            (
                json!({ "type": "function", "name": "f", "defer_loading": true }),
                "tools[0].defer_loading",
            ),
        ] {
            let error = read_tools(vec![tool]).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(error.message.contains("expected"));
        }
    }

    #[test]
    fn strict_has_the_forms_of_other_switches() {
        for (given, strict) in [
            (json!("true"), true),
            (json!(1), true),
            (json!("off"), false),
        ] {
            let tool = json!({ "type": "function", "name": "f", "strict": given });
            let tools = read_tools(vec![tool]).unwrap();
            assert_eq!(tools.shown[0]["strict"], strict);
            let chat = tools.chat[0]["function"].get("strict");
            assert_eq!(chat, strict.then(|| json!(true)).as_ref());
        }
    }

    #[test]
    fn custom_tools_are_functions_of_a_text() {
        let custom = |format: Value| json!({ "type": "custom", "name": "p", "description": "d", "format": format });
        let of = |format: Value| {
            let tools = read_tools(vec![custom(format.clone())]).unwrap();
            assert_eq!(tools.shown, [custom(format)]);
            assert!(tools.callees["p"].is_custom);
            tools.chat[0]["function"].clone()
        };
        let parameters = |input: Value| json!({ "type": "object", "properties": { "input": input }, "required": ["input"], "additionalProperties": false });
        let text = json!({ "name": "p", "description": "d", "parameters": parameters(json!({ "type": "string" })) });
        assert_eq!(of(json!(null)), text);
        assert_eq!(of(json!({ "type": "text" })), text);
        let grammar =
            |syntax: &str| json!({ "type": "grammar", "syntax": syntax, "definition": "a|b" });
        let found = of(grammar("regex"));
        let pattern = json!({ "type": "string", "pattern": "^(?:a|b)$" });
        assert_eq!(
            (&found["parameters"], &found["strict"]),
            (&parameters(pattern), &json!(true))
        );
        let found = of(grammar("lark"));
        assert_eq!(found["parameters"], text["parameters"]);
        let description = found["description"].as_str().unwrap();
        assert!(description.starts_with("d\n") && description.ends_with("a|b"));
        for wrong in ["(", "a)|(b", "[z-a]"] {
            let mut format = grammar("regex");
            format["definition"] = json!(wrong);
            let error = read_tools(vec![custom(format)]).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("tools[0].format.definition"));
            assert!(error.message.contains(wrong), "{}", error.message);
        }
    }

    #[test]
    fn the_pattern_of_hosted_tools_says_what_is_left_out() {
        let pattern = fancy_regex::Regex::new(&hosted_pattern()).unwrap();
        let others = ["function", "custom", "web_searches", "my_mcp", "mcp_1", ""];
        let dated = HOSTED.map(|of_type| format!("{of_type}_2026_11_30"));
        let known = HOSTED.into_iter().chain(dated.iter().map(String::as_str));
        for of_type in known.chain(others) {
            let found = pattern.is_match(of_type).unwrap();
            assert_eq!(found, is_hosted(of_type), "{of_type}");
            assert_eq!(found, !others.contains(&of_type), "{of_type}");
        }
    }

    #[test]
    fn tools_of_others_are_left_out_and_namespaces_are_flat() {
        let space = json!({ "type": "namespace", "name": "n", "description": "d", "tools": [
            { "type": "function", "name": "f", "description": null, "parameters": null, "strict": null },
            { "type": "custom", "name": "p", "description": null, "format": null },
        ] });
        let given = json!([{ "type": "web_search", "external_web_access": true }, { "type": "web_search_preview_2025_03_11" },
            { "type": "mcp", "server_label": "x" }, space, function("f"), { "type": "local_shell" }]);
        let tools = read_tools(given.as_array().unwrap().clone()).unwrap();
        assert_eq!(tools.shown[0], space);
        assert_eq!(tools.shown.len(), 2);
        let names = tools.chat.iter().map(|tool| &tool["function"]["name"]);
        assert_eq!(names.collect::<Vec<_>>(), ["n__f", "n__p", "f"]);
        let places = tools.places.iter().map(|place| place.tool.as_str());
        assert_eq!(
            places.collect::<Vec<_>>(),
            ["tools[3].tools[0]", "tools[3].tools[1]", "tools[4]"]
        );
        let callee = |name: &str, namespace: Option<&str>, is_custom| Callee {
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            is_custom,
        };
        assert_eq!(tools.callees["n__f"], callee("f", Some("n"), false));
        assert_eq!(tools.callees["n__p"], callee("p", Some("n"), true));
        assert_eq!(tools.callees["f"], callee("f", None, false));
    }
}
