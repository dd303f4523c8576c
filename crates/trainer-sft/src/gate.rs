//! What a run passes before each piece of its work, so that others on the same device may come first.

use std::cell::RefCell;
use std::rc::Rc;

/// A piece of a run's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A micro-batch, a batch of an evaluation, or a token of an answer.
    Batch,
    /// A layer of it, or a chunk of its logits: for a program that cannot wait for a whole batch.
    Layer,
}

type Wait = Rc<dyn Fn(Piece)>;

thread_local! {
    /// What work of this thread passes. A run computes on one thread, and the layers of its model lie deep below it.
    static HERE: RefCell<Option<Wait>> = const { RefCell::new(None) };
}

/// As long as it is there, work of this thread passes a gate.
pub(crate) struct Behind(Option<Wait>);

impl Behind {
    /// Lets the work of this thread pass `wait`, which may wait.
    pub(crate) fn new(wait: impl Fn(Piece) + 'static) -> Self {
        Self(HERE.replace(Some(Rc::new(wait))))
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        HERE.set(self.0.take());
    }
}

/// Returns when the work of this thread may go on.
pub(crate) fn pass(piece: Piece) {
    let wait = HERE.with_borrow(Clone::clone);
    if let Some(wait) = wait {
        wait(piece);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn work_passes_the_gate_that_it_is_behind() {
        let passed = Rc::new([Cell::new(0), Cell::new(0)]);
        let count = |index: usize| {
            let passed = Rc::clone(&passed);
            move |piece| {
                assert_eq!(piece, Piece::Layer);
                passed[index].set(passed[index].get() + 1);
            }
        };
        let numbers = || [passed[0].get(), passed[1].get()];
        pass(Piece::Layer);
        let outer = Behind::new(count(0));
        pass(Piece::Layer);
        let inner = Behind::new(count(1));
        pass(Piece::Layer);
        assert_eq!(numbers(), [1, 1]);
        drop(inner);
        pass(Piece::Layer);
        assert_eq!(numbers(), [2, 1]);
        drop(outer);
        pass(Piece::Layer);
        assert_eq!(numbers(), [2, 1]);
    }
}
