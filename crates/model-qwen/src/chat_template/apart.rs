//! A stack that is large enough for what nobody has looked at.

use std::{io, panic, thread};

/// Stack of every such thread.
const BASE: usize = 16 << 20;
/// Per unit of fuel: a value may become a level deeper with each, and is compared, printed and freed level by level. It is an
/// address space; memory is taken only for what is in use.
const PER_FUEL: usize = 1 << 10;
/// Per byte of a template, such as one of many minus signs.
const PER_BYTE: usize = 4 << 10;

/// The stack for a render.
pub(super) fn stack_for(fuel: u64) -> usize {
    let fuel = usize::try_from(fuel).unwrap_or(usize::MAX);
    fuel.saturating_mul(PER_FUEL).saturating_add(BASE)
}

/// The stack for parsing a template of so many bytes.
pub(super) fn stack_for_source(num_bytes: usize) -> usize {
    num_bytes.saturating_mul(PER_BYTE).saturating_add(BASE)
}

/// Does work on a thread that has such a stack.
///
/// # Errors
/// When the system has no room for it.
pub(super) fn run<T: Send>(stack: usize, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("template".to_owned())
            .stack_size(stack)
            .spawn_scoped(scope, work)?;
        Ok(worker
            .join()
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
    })
}
