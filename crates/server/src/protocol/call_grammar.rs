//! What an answer has to keep to where a request says which tools it calls, or that calls follow their schemas: in the terms of
//! structural tags.

mod closed_schema;
mod function_form;

use model_qwen::{Grammar, GrammarError};
use serde_json::{Value, json};

use super::grammar::RequestedGrammar;
use super::tools::ToolChoice;
use crate::answer::{CLOSE_CALL, CLOSE_THINK, OPEN_CALL, OPEN_FUNCTION, OPEN_THINK, Tool};
use crate::error::ApiError;
use closed_schema::closed_schema;

/// Line ends that the model may write before a call.
const LINE_ENDS: &str = r"\n{0,2}";

/// Which calls an answer may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallForms {
    /// At most one.
    pub(crate) only_one: bool,
    /// Of no other tools, which the model reads of, too.
    pub(crate) only_these: bool,
    /// Those in the form `<function=…>`, too.
    pub(crate) functions: bool,
}

/// What the answer has to keep to, by the request's own grammar and by its tools.
///
/// # Errors
/// 400 if the answer has to be a call, and to keep to a grammar, or if a strict tool cannot be called in a form.
pub(crate) fn with_calls(
    asked: Option<RequestedGrammar>,
    choice: &ToolChoice,
    tools: &[Tool],
    CallForms {
        only_one,
        only_these,
        functions,
    }: CallForms,
) -> Result<Option<RequestedGrammar>, ApiError> {
    let called: Vec<&Tool> = match choice {
        ToolChoice::None => return Ok(asked),
        ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
        ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
    };
    // Those whose schemas calls follow.
    let followed = called.iter().copied();
    let followed = followed.filter(|tool| *choice != ToolChoice::Auto || tool.strict);
    let followed: Vec<Tool> = followed.cloned().collect();
    if *choice == ToolChoice::Auto {
        return Ok(match asked {
            None => {
                let format = triggered_calls(tools, only_these, functions)?;
                format.map(|format| of_tools(format, followed))
            }
            // The model answers in the format, or calls.
            Some(asked) => Some(match json_format(&asked.grammar) {
                Some(answer) if !tools.is_empty() => {
                    let calls = calls(&called, only_one, false);
                    RequestedGrammar {
                        param: asked.param,
                        ..of_tools(
                            json!({ "type": "or", "elements": [calls, answer] }),
                            followed,
                        )
                    }
                }
                _ => asked,
            }),
        });
    }
    if let Some(RequestedGrammar { param, .. }) = asked {
        let message = format!("`tool_choice` asks for a call, which cannot keep to `{param}`.");
        return Err(ApiError::bad_request("tool_choice", message));
    }
    let only_one = only_one || matches!(choice, ToolChoice::Named(_));
    Ok(Some(of_tools(calls(&called, only_one, true), followed)))
}

fn of_tools(format: Value, tools: Vec<Tool>) -> RequestedGrammar {
    let grammar = Grammar::StructuralTag(json!({ "format": format }));
    RequestedGrammar {
        tools,
        ..RequestedGrammar::new("tools", grammar)
    }
}

/// The same with reasoning before it: with its tag or without any.
pub(crate) fn with_reasoning(asked: RequestedGrammar) -> RequestedGrammar {
    let Some(format) = format_of(&asked.grammar) else {
        return asked;
    };
    reasoned(asked, OPEN_THINK, format)
}

/// The same behind reasoning that the prompt has begun.
///
/// # Errors
/// 400 if the grammar cannot be a part of another one.
pub(crate) fn after_reasoning(asked: RequestedGrammar) -> Result<RequestedGrammar, ApiError> {
    match format_of(&asked.grammar) {
        Some(format) => Ok(reasoned(asked, "", format)),
        None => {
            let param = asked.param;
            let message = format!(
                "`{param}`: the prompt ends inside of reasoning, behind which this grammar cannot begin: the model has no token \
                 `{CLOSE_THINK}`. Switch reasoning off, or give another grammar."
            );
            Err(ApiError::bad_request(param, message))
        }
    }
}

fn reasoned(asked: RequestedGrammar, begin: &str, format: Value) -> RequestedGrammar {
    let reasoning = json!({ "type": "tag", "begin": begin, "content": { "type": "any_text" }, "end": CLOSE_THINK });
    let line_ends = json!({ "type": "regex", "pattern": LINE_ENDS });
    let reasoned = json!({ "type": "sequence", "elements": [reasoning, line_ends, format] });
    let format = match begin.is_empty() {
        true => reasoned,
        false => json!({ "type": "or", "elements": [reasoned, format] }),
    };
    RequestedGrammar {
        grammar: Grammar::StructuralTag(json!({ "format": format })),
        ..asked
    }
}

/// One call at least. Arguments follow the schemas of all tools, or of strict ones.
fn calls(tools: &[&Tool], only_one: bool, all_schemas: bool) -> Value {
    let tags: Vec<Value> = tools
        .iter()
        .map(|tool| json_tag(tool, all_schemas))
        .collect();
    let calls = json!({ "type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": true,
        "stop_after_first": only_one });
    let line_ends = json!({ "type": "regex", "pattern": LINE_ENDS });
    json!({ "type": "sequence", "elements": [line_ends, calls] })
}

/// A call in `<tool_call>`. Arguments follow the schema, if the tool is strict or `has_schema`.
fn json_tag(tool: &Tool, has_schema: bool) -> Value {
    let arguments = match has_schema || tool.strict {
        true => arguments(tool, " ?"),
        false => json!({ "type": "json_schema", "json_schema": { "type": "object" } }),
    };
    let name = Value::from(tool.name.as_str());
    json!({
        "type": "tag",
        "begin": format!("{OPEN_CALL}\n{{\"name\": {name}, \"arguments\": "),
        "content": arguments,
        "end": format!("}}\n{CLOSE_CALL}"),
    })
}

/// What may follow the name of a strict tool where it is no call's: all but `"arguments"`, up to where they differ.
fn other_than_arguments() -> Value {
    const SPACE: &str = r"\s{0,16}";
    let name = "arguments";
    let others = (0..=name.len()).map(|len| match name[len..].chars().next() {
        Some(next) => format!("{}[^{next}]", &name[..len]),
        None => format!("{name}[^\"]"),
    });
    let others = others.collect::<Vec<_>>().join("|");
    let pattern = format!(r#"{SPACE}([^\s,]|,{SPACE}([^\s"]|"({others})))"#);
    json!({ "type": "regex", "pattern": pattern })
}

/// Any text, whose calls of strict tools follow their schemas, and with `only_these`, whose calls in tags are of these tools;
/// `None` if that says nothing. A model may write a call in `<tool_call>` or without it, on one line or on several, with a space
/// beside a colon or without it. Other JSON may have a tool's name, too, and stays as it is.
fn triggered_calls(
    tools: &[Tool],
    only_these: bool,
    functions: bool,
) -> Result<Option<Value>, ApiError> {
    let strict = tools.iter().filter(|tool| tool.strict);
    let forms = strict.flat_map(|tool| [": ", ":", " : ", " :"].map(|colon| (tool, colon)));
    let tags = forms.map(|(tool, colon)| {
        let between = r#"\s{0,16},\s{0,16}"arguments"\s{0,16}:\s{0,16}"#;
        let between = json!({ "type": "regex", "pattern": between });
        let call = [between, arguments(tool, r"\s{0,16}")];
        let call = json!({ "type": "sequence", "elements": call });
        json!({
            "type": "tag",
            "begin": format!("\"name\"{colon}{}", Value::from(tool.name.as_str())),
            "content": { "type": "or", "elements": [call, other_than_arguments()] },
            "end": "",
        })
    });
    let mut tags: Vec<Value> = tags.collect();
    let mut triggers: Vec<Value> = tags.iter().map(|tag| tag["begin"].clone()).collect();
    if only_these && !tools.is_empty() {
        // Behind the tag a call may have the other form.
        let brace = if functions { "\n{" } else { "" };
        triggers.push(Value::from(format!("{OPEN_CALL}{brace}")));
        tags.extend(tools.iter().map(|tool| json_tag(tool, false)));
    }
    if tags.is_empty() {
        return Ok(None);
    }
    if functions {
        let functions = function_form::tags(tools)?;
        if !functions.is_empty() {
            triggers.push(Value::from(OPEN_FUNCTION));
        }
        tags.extend(functions);
    }
    Ok(Some(
        json!({ "type": "triggered_tags", "triggers": triggers, "tags": tags }),
    ))
}

/// Arguments that follow the tool's schema and have no properties besides.
fn arguments(tool: &Tool, space: &str) -> Value {
    json!({ "type": "json_schema", "json_schema": closed_schema(&tool.parameters, space) })
}

/// The first of the tools whose schema cannot be used, if it is the fault of one: the grammar of all calls says what is wrong in
/// other words.
pub(crate) fn unusable_tool(
    tools: &[Tool],
    check: impl Fn(&Grammar) -> Result<(), GrammarError>,
) -> Option<ApiError> {
    let mut errors = tools.iter().filter_map(|tool| {
        let grammar = Grammar::JsonSchema(closed_schema(&tool.parameters, " ?"));
        let error = check(&grammar).err()?;
        let param = format!("tools[{}].function.parameters", tool.index);
        let message = format!("`{param}` (of `{}`) cannot be used: {error}", tool.name);
        Some(ApiError::bad_request(param, message))
    });
    errors.next()
}

fn json_format(grammar: &Grammar) -> Option<Value> {
    let schema = match grammar {
        Grammar::JsonSchema(schema) => schema.clone(),
        Grammar::JsonObject => json!({ "type": "object" }),
        _ => return None,
    };
    Some(json!({ "type": "json_schema", "json_schema": schema }))
}

/// A grammar as a part of a structural tag, if it can be one.
fn format_of(grammar: &Grammar) -> Option<Value> {
    match grammar {
        Grammar::JsonSchema(_) | Grammar::JsonObject => json_format(grammar),
        Grammar::Regex(regex) => Some(json!({ "type": "regex", "pattern": regex })),
        Grammar::Lark(source) | Grammar::Ebnf(source) => {
            Some(json!({ "type": "grammar", "grammar": source }))
        }
        Grammar::StructuralTag(tag) => tag.get("format").cloned(),
        Grammar::Choice(choices) if choices.iter().all(|choice| !choice.is_empty()) => {
            let texts = choices
                .iter()
                .map(|text| json!({ "type": "const_string", "value": text }));
            Some(json!({ "type": "or", "elements": texts.collect::<Vec<_>>() }))
        }
        Grammar::Choice(_) => None,
    }
}
