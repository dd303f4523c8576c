//! Where the time goes: sums the spans of the kernels by name.
//!
//! On the CPU an operation is finished when its call returns, so the time inside its span is the time it takes.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Registry};

/// What the rows of the table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The modules of the model. In inference, several matrix products may run at the same time within one of them.
    Modules,
    /// The kernels, with the shapes of the weights.
    Kernels,
}

/// Calls and time by operation.
#[derive(Clone, Debug)]
pub struct Profile {
    rows: Rows,
    totals: Arc<Mutex<BTreeMap<String, (usize, Duration)>>>,
}

impl Profile {
    /// Starts to listen; for the whole process.
    ///
    /// # Errors
    ///
    /// If the process listens to spans already.
    pub fn install(rows: Rows) -> anyhow::Result<Self> {
        use tracing_subscriber::layer::SubscriberExt;
        let profile = Self {
            rows,
            totals: Arc::default(),
        };
        tracing::subscriber::set_global_default(Registry::default().with(profile.clone()))?;
        Ok(profile)
    }

    /// The table of what was summed since the last call, out of `elapsed` for `tokens` tokens; starts over.
    #[must_use]
    pub fn take(&self, elapsed: Duration, tokens: usize) -> String {
        let totals = match self.totals.lock() {
            Ok(mut totals) => std::mem::take(&mut *totals),
            Err(_) => return String::new(),
        };
        let mut rows: Vec<_> = totals.into_iter().collect();
        rows.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
        let inside: Duration = rows.iter().map(|(_, (_, time))| *time).sum();
        let others = (0, elapsed.saturating_sub(inside));
        rows.push(("everything else".to_owned(), others));
        let mut table =
            "| operation | calls | µs a token | share |\n|---|---|---|---|\n".to_owned();
        for (name, (calls, time)) in rows {
            let each = time.as_secs_f64() * 1e6 / tokens as f64;
            let share = 100.0 * time.as_secs_f64() / elapsed.as_secs_f64();
            let _ = writeln!(table, "| {name} | {calls} | {each:.1} | {share:.1} % |");
        }
        table
    }
}

/// What a span keeps: its operation, and when it was entered.
struct Timing(String, Option<Instant>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Profile {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let metadata = attributes.metadata();
        let is_product = metadata.target().starts_with("lora_4bit");
        let is_module = metadata.name().contains("_proj") || metadata.name() == "lm_head";
        let other_rows = match self.rows {
            Rows::Modules => is_product,
            Rows::Kernels => is_module,
        };
        if other_rows {
            return;
        }
        let mut name = metadata.name().to_owned();
        attributes.record(&mut Fields(&mut name));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Timing(name, None));
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(timing) = span.extensions_mut().get_mut::<Timing>()
        {
            timing.1 = Some(Instant::now());
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let now = Instant::now();
        if let Some(span) = context.span(id)
            && let Some(Timing(name, Some(start))) = span.extensions().get::<Timing>()
            && let Ok(mut totals) = self.totals.lock()
        {
            let total = totals.entry(name.clone()).or_default();
            total.0 += 1;
            total.1 += now - *start;
        }
    }
}

/// Appends ` field=value` for every field.
struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
