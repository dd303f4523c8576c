//! What the trainer warns of, for the events of a job.

use std::fmt::{Debug, Write as _};

use tracing::dispatcher::{self, Dispatch};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Level, Metadata};

/// The crate whose warnings are about the job.
const TRAINER: &str = "trainer_sft";

/// Does `work`, and calls `hear` with each warning of the trainer on this thread. The log has them, too.
pub(super) fn heard<T>(
    hear: impl Fn(String) + Send + Sync + 'static,
    work: impl FnOnce() -> T,
) -> T {
    let log = dispatcher::get_default(Dispatch::clone);
    let listening = Dispatch::new(Listening { log, hear });
    dispatcher::with_default(&listening, work)
}

/// The log, and somebody who hears it.
struct Listening<H> {
    log: Dispatch,
    hear: H,
}

fn is_heard(metadata: &Metadata<'_>) -> bool {
    *metadata.level() == Level::WARN && metadata.target().starts_with(TRAINER)
}

impl<H: Fn(String) + Send + Sync + 'static> Subscriber for Listening<H> {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let interest = self.log.register_callsite(metadata);
        match is_heard(metadata) {
            true => Interest::sometimes(),
            false => interest,
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_heard(metadata) || self.log.enabled(metadata)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.log.new_span(span)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        self.log.record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.log.record_follows_from(span, follows);
    }

    fn event(&self, event: &Event<'_>) {
        if is_heard(event.metadata()) {
            let mut message = Message::default();
            event.record(&mut message);
            (self.hear)(message.0);
        }
        if self.log.enabled(event.metadata()) {
            self.log.event(event);
        }
    }

    fn enter(&self, span: &Id) {
        self.log.enter(span);
    }

    fn exit(&self, span: &Id) {
        self.log.exit(span);
    }

    fn clone_span(&self, span: &Id) -> Id {
        self.log.clone_span(span)
    }

    fn try_close(&self, span: Id) -> bool {
        self.log.try_close(span)
    }
}

/// The text of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a String cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn warnings_of_the_trainer_are_heard() {
        let heard_all = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&heard_all);
        let done = heard(
            move |text| own.lock().unwrap().push(text),
            || {
                tracing::warn!(target: "trainer_sft::run", "a warm-up of {} steps", 3);
                tracing::warn!(target: "server", "of another kind");
                tracing::info!(target: "trainer_sft", "no warning");
                7
            },
        );
        tracing::warn!(target: "trainer_sft", "too late");
        assert_eq!(done, 7);
        assert_eq!(*heard_all.lock().unwrap(), ["a warm-up of 3 steps"]);
    }
}
