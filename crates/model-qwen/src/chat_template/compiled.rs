//! A template that can run.

use std::borrow::Cow;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig};
use serde_json::{Map, Value as Json};

use super::error::TemplateError;
use super::{apart, filters, fuel, functions, json, methods, operators, python, source};

/// The only name in the environment.
const NAME: &str = "chat";
/// Longest template of a folder in bytes; the longest of published models have a tenth of it.
const MAX_SOURCE: usize = 256 << 10;

/// The text of a template, and what it has become.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) source: String,
    environment: Environment<'static>,
}

impl Compiled {
    /// A template that only other processes compile.
    pub(super) fn only_source(source: String) -> Self {
        Self {
            source,
            environment: Environment::empty(),
        }
    }

    /// The template, with where its text is from.
    pub(super) fn new(source: String, origin: &str) -> Result<Self, TemplateError> {
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

    /// The text with these variables, by this much work.
    pub(super) fn render(
        &self,
        variables: Map<String, Json>,
        fuel: u64,
    ) -> Result<String, TemplateError> {
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

/// Refuses a text that is too long.
pub(super) fn check_size(source: &str, limit: usize, origin: &str) -> Result<(), TemplateError> {
    match source.len() > limit {
        false => Ok(()),
        true => Err(TemplateError::Syntax {
            origin: origin.to_owned(),
            reason: format!("expected at most {limit} bytes, found {}", source.len()),
        }),
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
