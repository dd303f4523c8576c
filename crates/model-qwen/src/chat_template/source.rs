//! Where a checkpoint keeps its chat template, and the tags minijinja does not know.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::TemplateError;
use crate::json_file::{self, JsonFile, json_type};
use crate::model_folder::TOOL_USE_TEMPLATE;
use crate::special_tokens::special_tokens;

/// What the files of a checkpoint folder say about its chat template.
pub(super) struct TemplateFiles {
    /// The file the template comes from.
    pub(super) origin: PathBuf,
    pub(super) main: String,
    pub(super) tool_use: Option<String>,
    pub(super) special_tokens: Map<String, Value>,
}

impl TemplateFiles {
    /// `None` when no file has a template.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, TemplateError> {
        let special_tokens = special_tokens(dir)?;
        let jinja = dir.join("chat_template.jinja");
        let main = match jinja.is_file() {
            true => read_text(&jinja)?,
            false => String::new(),
        };
        // An empty file says what a missing one says.
        if !main.trim().is_empty() {
            let tool_use = dir.join(TOOL_USE_TEMPLATE);
            return Ok(Some(Self {
                main,
                tool_use: tool_use
                    .is_file()
                    .then(|| read_text(&tool_use))
                    .transpose()?,
                origin: jinja,
                special_tokens,
            }));
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let file = JsonFile::read_optional(dir.join(name))?;
            let path = file.path().to_owned();
            let (main, tool_use) = match file.get("chat_template") {
                None => continue,
                Some(Value::String(template)) if template.is_empty() => continue,
                Some(Value::String(template)) => (template.clone(), None),
                Some(Value::Array(list)) if list.is_empty() => continue,
                Some(Value::Array(list)) => named(&path, list)?,
                Some(other) => {
                    return Err(TemplateError::File {
                        path,
                        reason: format!(
                            "chat_template: expected a string or a list of named templates, found {}",
                            json_type(other)
                        ),
                    });
                }
            };
            return Ok(Some(Self {
                origin: path,
                main,
                tool_use,
                special_tokens,
            }));
        }
        Ok(None)
    }
}

/// The templates `default` and `tool_use` of `[{"name": .., "template": ..}, ..]`; the only one is the default.
fn named(path: &Path, list: &[Value]) -> Result<(String, Option<String>), TemplateError> {
    let file = |reason: String| TemplateError::File {
        path: path.to_path_buf(),
        reason,
    };
    let mut names: Vec<String> = Vec::new();
    let mut only = None;
    let (mut default, mut tool_use) = (None, None);
    for (i, entry) in list.iter().enumerate() {
        let field = |name: &str| {
            entry.get(name).and_then(Value::as_str).ok_or_else(|| {
                file(format!(
                    "chat_template[{i}].{name}: expected a string, found {}",
                    entry.get(name).map_or("nothing", json_type)
                ))
            })
        };
        let (name, template) = (field("name")?, field("template")?);
        match name {
            "default" => default = Some(template.to_owned()),
            "tool_use" => tool_use = Some(template.to_owned()),
            _ => {}
        }
        only = (list.len() == 1).then(|| template.to_owned());
        names.push(name.to_owned());
    }
    match default.or(only) {
        Some(default) => Ok((default, tool_use)),
        None => Err(TemplateError::NoDefault {
            path: path.to_path_buf(),
            names,
            tool_use,
        }),
    }
}

fn read_text(path: &Path) -> Result<String, TemplateError> {
    json_file::read_text(path).map_err(|reason| TemplateError::File {
        path: path.to_path_buf(),
        reason,
    })
}

/// Every `{% tag %}` of `source`: its position and what stands between the `%` signs, without
/// whitespace control.
pub(super) fn block_tags(source: &str) -> impl Iterator<Item = (std::ops::Range<usize>, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + source[at..].find("{%")?;
        let end = start + 2 + source[start + 2..].find("%}")?;
        at = end + 2;
        let inner = &source[start + 2..end];
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
        let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
        Some((start..end + 2, inner.trim()))
    })
}

/// transformers' `{% generation %}` .. `{% endgeneration %}` marks the assistant's text for a loss
/// mask and renders its content in a scope of its own, which is what `{% with %}` does.
pub(super) fn replace_generation_tags(source: &str) -> String {
    let mut replaced = String::with_capacity(source.len());
    let mut copied = 0;
    for (range, tag) in block_tags(source) {
        let name = match tag {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => continue,
        };
        replaced.push_str(&source[copied..range.start]);
        replaced.push_str(&source[range.clone()].replace(tag, name));
        copied = range.end;
    }
    replaced.push_str(&source[copied..]);
    replaced
}

/// The same text with the line ends of jinja2, which reads and writes `\n` alone.
pub(super) fn with_newlines(source: &str) -> Cow<'_, str> {
    match source.contains('\r') {
        true => source.replace("\r\n", "\n").replace('\r', "\n").into(),
        false => source.into(),
    }
}
