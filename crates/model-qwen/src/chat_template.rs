//! Chat templates: the Jinja program of a checkpoint that turns messages into a prompt.
//!
//! Renders what transformers' `apply_chat_template` renders (`transformers/utils/chat_template_utils.py`),
//! through minijinja: `trim_blocks`, `lstrip_blocks`, Python's string methods and printing,
//! `tojson` without HTML escapes, jinja2's filters, `%` of texts, `raise_exception`, `strftime_now`, loop controls and
//! `{% generation %}` blocks. The work of a template is bounded, see `fuel`, and by [`render_in_processes`] also what minijinja
//! does not count.

mod apart;
mod arguments;
mod compiled;
mod error;
mod filters;
mod frames;
mod fuel;
mod functions;
mod json;
mod lexer;
mod messages;
mod methods;
mod number_filters;
mod operators;
mod plain_text;
mod pretty;
mod printf;
mod python;
mod render_options;
mod renderer;
mod renderers;
mod safe_text;
mod source;
mod text_classes;
mod text_filters;
mod text_methods;
mod wrap;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

pub use error::TemplateError;
pub use render_options::RenderOptions;
pub use renderer::serve_renders;
pub use renderers::{RENDER_TEMPLATES, render_in_processes, render_in_processes_of};

use compiled::{Compiled, check_size};
use frames::Work;
use messages::Prepared;
use source::TemplateFiles;

/// A compiled chat template. Cloning copies pointers.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    main: Arc<Compiled>,
    /// The template named `tool_use`, taken when there are tools.
    tool_use: Option<Arc<Compiled>>,
    special_tokens: Arc<Map<String, serde_json::Value>>,
    /// Whether it runs where it can harm nobody else.
    is_apart: bool,
}

/// The same for a template that came with a request: minijinja takes a second for a sum with as many terms as fit into it.
const MAX_STRANGER: usize = 32 << 10;
/// What transformers appends to the last message to find it again in the rendered text.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

impl ChatTemplate {
    /// Loads the template of a checkpoint folder: `chat_template.jinja`, else `chat_template` of
    /// `chat_template.json` or `tokenizer_config.json` (a string, or a list of named templates). The special
    /// tokens of `tokenizer_config.json` become variables (`bos_token`, `eos_token`, ...).
    /// `None` when the folder has no template.
    ///
    /// # Errors
    /// When a file is unreadable or malformed, or the template is not valid Jinja.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TemplateError> {
        let Some(files) = TemplateFiles::read(dir)? else {
            return Ok(None);
        };
        let compile = |source: String| {
            Compiled::new(source, &files.origin.display().to_string()).map(Arc::new)
        };
        Ok(Some(Self {
            main: compile(files.main)?,
            tool_use: files.tool_use.map(compile).transpose()?,
            special_tokens: Arc::new(files.special_tokens),
            is_apart: false,
        }))
    }

    /// Compiles a template given as text. `special_tokens` holds variables such as `bos_token`.
    ///
    /// # Errors
    /// When the template is not valid Jinja.
    pub fn from_source(
        source: &str,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Result<Self, TemplateError> {
        Ok(Self {
            main: Arc::new(Compiled::new(source.to_owned(), "the given text")?),
            tool_use: None,
            special_tokens: Arc::new(special_tokens),
            is_apart: false,
        })
    }

    /// A template that refuses messages with these words: all of them, or those without tools where there is a template named
    /// `tool_use`. Its [`Self::source`] is empty.
    ///
    /// # Errors
    /// When the template for tools is not valid Jinja.
    pub fn refusing(
        reason: &str,
        tool_use: Option<&str>,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Result<Self, TemplateError> {
        let reason = Json::from(reason);
        let text = format!("{{{{ raise_exception({reason}) }}}}");
        let tool_use = tool_use.map(|source| Compiled::new(source.to_owned(), "the name tool_use"));
        let mut refusing = Compiled::new(text, "the given text")?;
        refusing.source.clear();
        Ok(Self {
            main: Arc::new(refusing),
            tool_use: tool_use.transpose()?.map(Arc::new),
            special_tokens: Arc::new(special_tokens),
            is_apart: false,
        })
    }

    /// [`Self::from_source`] for a text of which nobody knows what it does. It is rendered by a thread of its own, which has room
    /// for values nested as deep as its work allows.
    ///
    /// # Errors
    /// When the template is not valid Jinja.
    pub fn from_stranger(
        source: &str,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Result<Self, TemplateError> {
        check_size(source, MAX_STRANGER, "the given text")?;
        if let Some(renderers) = renderers::renderers() {
            // To parse it is work, too.
            let work = Work {
                source: source.to_owned(),
                fuel: fuel::BASE,
                variables: None,
            };
            renderers.render(&work)?;
            return Ok(Self {
                main: Arc::new(Compiled::only_source(work.source)),
                tool_use: None,
                special_tokens: Arc::new(special_tokens),
                is_apart: true,
            });
        }
        Ok(Self {
            is_apart: true,
            ..Self::from_source(source, special_tokens)?
        })
    }

    /// The special tokens that the template sees as variables, such as `eos_token`.
    pub fn special_tokens(&self) -> &Map<String, serde_json::Value> {
        &self.special_tokens
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.main.source
    }

    /// The text of the template that is taken when there are tools, if it is another one.
    pub fn tool_use_source(&self) -> Option<&str> {
        self.tool_use
            .as_ref()
            .map(|compiled| compiled.source.as_str())
    }

    /// The text of the template that is taken with or without tools.
    pub fn source_for(&self, has_tools: bool) -> &str {
        &self.choose(has_tools).source
    }

    fn choose(&self, has_tools: bool) -> &Compiled {
        match &self.tool_use {
            Some(tool_use) if has_tools => tool_use,
            _ => &self.main,
        }
    }

    /// Renders `messages` (objects with `role`, `content` and so on, as in OpenAI's API).
    ///
    /// Beyond what transformers does, messages take the forms OpenAI clients send: a list of text
    /// parts as `content` is joined with newlines when the template wants a string, an assistant
    /// message may lack `content`, and `tool_calls[].function.arguments` may be a JSON string or an object: the template
    /// gets an object, unless it joins texts. A template that fails at a message without `content` gets an empty text.
    ///
    /// # Errors
    /// When a message is malformed, or the template fails or refuses the messages.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let has_tools = options.tools.as_ref().is_some_and(|tools| !tools.is_null());
        let template = self.choose(has_tools);
        if options.continue_final_message && options.add_generation_prompt {
            return Err(TemplateError::ContinueFinalMessage(
                "cannot be combined with add_generation_prompt: the first goes on with the last message, the second starts a new one".to_owned(),
            ));
        }
        let mut prepared = Prepared::new(messages, &template.source)?;
        let continued = if options.continue_final_message {
            Some(prepared.tag_final_message(CONTINUE_TAG)?)
        } else {
            None
        };

        let fuel = fuel::budget(messages, options);
        let with_text = prepared.with_text();
        let render = |prepared| self.rendered(template, self.variables(prepared, options), fuel);
        let rendered = match (render(prepared), with_text) {
            // Some templates tell a call by `content is none`, some look into a text.
            (Err(error @ (TemplateError::Render(_) | TemplateError::Raised(_))), Some(filled)) => {
                render(filled).map_err(|_| error)?
            }
            (rendered, _) => rendered?,
        };
        match continued {
            Some(final_text) => cut_after_final_message(&rendered, &final_text),
            None => Ok(rendered),
        }
    }

    /// What the template sees; of equal names, the last one counts.
    fn variables(&self, prepared: Prepared, options: &RenderOptions) -> Map<String, Json> {
        let mut variables = Map::clone(&self.special_tokens);
        variables.insert("documents".to_owned(), Json::Null);
        variables.extend(options.extra.clone());
        variables.insert("messages".to_owned(), prepared.into_json());
        let tools = options.tools.clone().unwrap_or_default();
        variables.insert("tools".to_owned(), tools);
        let add_generation_prompt = Json::Bool(options.add_generation_prompt);
        variables.insert("add_generation_prompt".to_owned(), add_generation_prompt);
        variables
    }

    /// Runs the template where its limits are kept.
    fn rendered(
        &self,
        template: &Compiled,
        variables: Map<String, Json>,
        fuel: u64,
    ) -> Result<String, TemplateError> {
        if !self.is_apart {
            return template.render(variables, fuel);
        }
        let fuel = fuel.min(fuel::MAX_APART);
        if let Some(renderers) = renderers::renderers() {
            let work = Work {
                source: template.source.clone(),
                fuel,
                variables: Some(variables),
            };
            return renderers.render(&work);
        }
        apart::run(apart::stack_for(fuel), move || {
            template.render(variables, fuel)
        })
        .map_err(|error| TemplateError::Render(error.to_string()))?
    }
}

/// The part of `rendered` up to the end of the last message, as transformers cuts it.
fn cut_after_final_message(rendered: &str, final_text: &str) -> Result<String, TemplateError> {
    let tag = rendered.rfind(CONTINUE_TAG.trim());
    match tag {
        Some(at) if rendered.contains(final_text.trim()) => {
            let kept = &rendered[..at];
            // The template keeps spaces at the end of a message, or it strips them.
            let exact = rendered[at..].starts_with(CONTINUE_TAG);
            Ok(if exact { kept } else { kept.trim_end() }.to_owned())
        }
        _ => Err(TemplateError::ContinueFinalMessage(
            "the final message does not appear in the rendered text, because the chat template deletes parts of it".to_owned(),
        )),
    }
}
