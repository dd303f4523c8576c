//! How much work a template may do.
//!
//! A template is a program that comes with a model or, where the server allows it, with a request. minijinja counts the
//! instructions it runs and the bytes it makes, and ends it when its fuel is used up. What is computed outside of minijinja
//! (printing, `tojson`, Python's methods) pays here.

use minijinja::{Error, ErrorKind, State};
use serde_json::Value;

use super::render_options::RenderOptions;

/// Fuel of every render. Templates of published models take some hundred for a message.
pub(super) const BASE: u64 = 1_000_000;
/// Most fuel of a template that came with a request: it bounds how deep its values are nested, and so its stack.
pub(super) const MAX_APART: u64 = 4 * BASE;
/// Fuel per value (number, text, list, ...) of what is rendered.
const PER_VALUE: u64 = 200;
/// Bytes that a unit of fuel pays for, as minijinja has it.
const BYTES: usize = 64;
/// How deep lists and objects may be nested in what is printed. JSON that is read is nested at most 128 deep.
pub(super) const MAX_DEPTH: usize = 200;

/// The fuel for a render: some for each value and each byte that goes in, so that long conversations have enough.
pub(super) fn budget(messages: &[Value], options: &RenderOptions) -> u64 {
    let given = messages.iter().chain(&options.tools);
    let given = given.chain(options.extra.values());
    BASE + given.map(fuel_for).sum::<u64>()
}

fn fuel_for(value: &Value) -> u64 {
    let inside = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(fuel_for).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| name.len() as u64 + fuel_for(value))
            .sum(),
    };
    PER_VALUE + inside
}

/// Takes the fuel for so many bytes that are read or written.
pub(super) fn pay(state: &State<'_, '_>, num_bytes: usize) -> Result<(), Error> {
    state.consume_fuel((num_bytes / BYTES) as u64 + 1)
}

/// Takes the fuel for so many bytes.
pub(super) type Pay<'a> = &'a dyn Fn(usize) -> Result<(), Error>;

/// A text that grows at the cost of fuel.
pub(super) struct Text<'a> {
    pub(super) out: String,
    pay: Pay<'a>,
    num_paid: usize,
    num_values: usize,
    depth: usize,
}

impl<'a> Text<'a> {
    pub(super) fn new(pay: Pay<'a>) -> Self {
        Self {
            out: String::new(),
            pay,
            num_paid: 0,
            num_values: 0,
            depth: 0,
        }
    }

    /// Called before a value is written: pays for those before it. Equal parts may be in a value many times, so that its text
    /// is longer than memory has room for.
    pub(super) fn start_value(&mut self) -> Result<(), Error> {
        self.num_values += 1;
        let due = self.out.len() + self.num_values * BYTES;
        if due - self.num_paid >= BYTES * BYTES {
            (self.pay)(due - self.num_paid)?;
            self.num_paid = due;
        }
        Ok(())
    }

    /// Writes what is inside of a list or an object.
    pub(super) fn nested(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("lists and objects are nested more than {MAX_DEPTH} deep"),
            ));
        }
        self.depth += 1;
        write(self)?;
        self.depth -= 1;
        Ok(())
    }
}
