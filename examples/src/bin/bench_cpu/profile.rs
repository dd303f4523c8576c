//! Where the time goes: sums the spans of the kernels by name.
//!
//! On the CPU an operation is finished when its call returns, so the time inside its span is the time it takes. Matrix
//! products are counted by the module they belong to, because several run at the same time.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Registry};

/// Calls and time by operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    totals: Arc<Mutex<BTreeMap<String, (usize, Duration)>>>,
}

impl Profile {
    /// Starts to listen; for the whole process.
    pub(crate) fn install() -> anyhow::Result<Self> {
        use tracing_subscriber::layer::SubscriberExt;
        let profile = Self::default();
        tracing::subscriber::set_global_default(Registry::default().with(profile.clone()))?;
        Ok(profile)
    }

    /// The table of what was summed since the last call, out of `elapsed` for `tokens` tokens; starts over.
    pub(crate) fn take(&self, elapsed: Duration, tokens: usize) -> String {
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
        if metadata.target().starts_with("lora_4bit") {
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
