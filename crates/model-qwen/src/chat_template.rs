//! Chat templates: the Jinja program of a checkpoint that turns messages into a prompt.
//!
//! Renders what transformers' `apply_chat_template` renders (`transformers/utils/chat_template_utils.py`),
//! through minijinja: `trim_blocks`, `lstrip_blocks`, Python's string methods and printing,
//! `tojson` without HTML escapes, jinja2's filters, `%` of texts, `raise_exception`, `strftime_now`, loop controls and
//! `{% generation %}` blocks. The work of a template is bounded, see `fuel`, and by [`render_in_processes`] also what minijinja
//! does not count.

mod apart;
mod arguments;
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
mod pretty;
mod printf;
mod python;
mod renderer;
mod renderers;
mod safe_text;
mod source;
mod text_classes;
mod text_filters;
mod text_methods;
mod wrap;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig};
use serde_json::{Map, Value as Json};

pub use error::TemplateError;
pub use renderer::serve_renders;
pub use renderers::{RENDER_TEMPLATES, render_in_processes, render_in_processes_of};

use frames::Work;
use messages::Prepared;
use renderers::Renderers;
use source::TemplateFiles;

/// What to render besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End with the start of an assistant message.
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// The tools (OpenAI's `tools` list), or `None`.
    pub tools: Option<serde_json::Value>,
    /// Further variables of the template, such as `enable_thinking`.
    pub extra: Map<String, serde_json::Value>,
}

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

#[derive(Debug)]
struct Compiled {
    source: String,
    environment: Environment<'static>,
}

const NAME: &str = "chat";
/// Longest template of a folder in bytes; the longest of published models have a tenth of it.
const MAX_SOURCE: usize = 256 << 10;
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
        Ok(Self {
            main: Arc::new(Compiled {
                source: String::new(),
                ..Compiled::new(text, "the given text")?
            }),
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
            return Ok(Self {
                main: Arc::new(Compiled::elsewhere(source, renderers)?),
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

impl Compiled {
    /// A template that only other processes compile: to parse it is work, too.
    fn elsewhere(source: &str, renderers: &Renderers) -> Result<Self, TemplateError> {
        let work = Work {
            source: source.to_owned(),
            fuel: fuel::BASE,
            variables: None,
        };
        renderers.render(&work)?;
        Ok(Self {
            source: work.source,
            environment: Environment::empty(),
        })
    }

    fn new(source: String, origin: &str) -> Result<Self, TemplateError> {
        check_size(&source, MAX_SOURCE, origin)?;
        let syntax = |e: Error| TemplateError::Syntax {
            origin: origin.to_owned(),
            reason: describe(&e),
        };
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(syntax)?,
        );
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(methods::call);
        environment.set_fuel(Some(fuel::BASE));
        environment.set_formatter(python::format);
        environment.add_filter("tojson", json::tojson);
        filters::add_to(&mut environment);
        functions::add_to(&mut environment);
        let replaced = source::replace_generation_tags(&source::with_newlines(&source));
        // The parser calls itself for each operator, and the end of its tree for each level.
        let environment = apart::run(apart::stack_for_source(source.len()), move || {
            let rewritten = operators::rewrite(&replaced)
                .map_err(|reason| Error::new(ErrorKind::SyntaxError, reason))?;
            environment.add_template_owned(NAME, rewritten.into_owned())?;
            Ok(environment)
        })
        .map_err(|error| TemplateError::Syntax {
            origin: origin.to_owned(),
            reason: error.to_string(),
        })?
        .map_err(syntax)?;
        Ok(Self {
            source,
            environment,
        })
    }

    fn render(&self, variables: Map<String, Json>, fuel: u64) -> Result<String, TemplateError> {
        let variables = python::object_to_value(&variables);
        match self.render_within(variables.clone(), fuel::BASE) {
            // What needs more is rare, and has to copy the environment.
            Err(TemplateError::TooMuchWork { .. }) if fuel > fuel::BASE => {
                self.render_within(variables, fuel)
            }
            rendered => rendered,
        }
    }

    fn render_within(&self, variables: Value, fuel: u64) -> Result<String, TemplateError> {
        let failed = |e: Error| match (functions::raised(&e), e.kind()) {
            (Some(message), _) => TemplateError::Raised(message),
            (None, ErrorKind::OutOfFuel) => TemplateError::TooMuchWork { fuel },
            (None, _) => TemplateError::Render(describe(&e)),
        };
        let mut environment = Cow::Borrowed(&self.environment);
        if fuel != fuel::BASE {
            environment.to_mut().set_fuel(Some(fuel));
        }
        let template = environment.get_template(NAME).map_err(failed)?;
        template.render(variables).map_err(failed)
    }
}

fn check_size(source: &str, limit: usize, origin: &str) -> Result<(), TemplateError> {
    match source.len() > limit {
        false => Ok(()),
        true => Err(TemplateError::Syntax {
            origin: origin.to_owned(),
            reason: format!("expected at most {limit} bytes, found {}", source.len()),
        }),
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

/// minijinja's message with the line, without the source excerpt.
fn describe(error: &Error) -> String {
    let mut text = error.kind().to_string();
    if let Some(detail) = error.detail() {
        text = format!("{text}: {detail}");
    }
    match error.line() {
        Some(line) => format!("{text} (line {line} of the template)"),
        None => text,
    }
}
