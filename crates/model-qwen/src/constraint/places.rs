//! How many grammars are compiled at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::grammar_error::GrammarError;

/// Grammars that are compiled at once; others wait.
const MAX_COMPILING: usize = 4;
/// Grammars for which nobody waits any more and which are still being compiled: nothing can stop them.
const MAX_OVERDUE: usize = 4;

/// Which grammars are being compiled.
#[derive(Default)]
pub(super) struct Places {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    compiling: usize,
    overdue: usize,
}

/// A grammar that is being compiled. Clones are of the same one.
#[derive(Clone)]
pub(super) struct Place {
    places: Arc<Places>,
    status: Arc<Mutex<Status>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Compiling,
    Overdue,
    Over,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// Waits for a place.
    ///
    /// # Errors
    /// If too many grammars are overdue.
    pub(super) fn new(places: &Arc<Places>) -> Result<Self, GrammarError> {
        let is_full =
            |counts: &mut Counts| counts.compiling >= MAX_COMPILING && counts.overdue < MAX_OVERDUE;
        let counts = places.changed.wait_while(lock(&places.counts), is_full);
        let mut counts = counts.unwrap_or_else(PoisonError::into_inner);
        if counts.overdue >= MAX_OVERDUE {
            return Err(GrammarError::TooLarge(format!(
                "{MAX_OVERDUE} other grammars take too long; try again later"
            )));
        }
        counts.compiling += 1;
        Ok(Self {
            places: Arc::clone(places),
            status: Arc::new(Mutex::new(Status::Compiling)),
        })
    }

    /// Takes note that nobody waits for the grammar any more.
    pub(super) fn give_up(&self) {
        self.change(|status, counts| {
            if *status == Status::Compiling {
                *status = Status::Overdue;
                counts.compiling -= 1;
                counts.overdue += 1;
            }
        });
    }

    /// Takes note that the grammar is compiled, or never will be.
    pub(super) fn leave(&self) {
        self.change(|status, counts| {
            match *status {
                Status::Compiling => counts.compiling -= 1,
                Status::Overdue => counts.overdue -= 1,
                Status::Over => {}
            }
            *status = Status::Over;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Status, &mut Counts)) {
        change(&mut lock(&self.status), &mut lock(&self.places.counts));
        self.places.changed.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_grammar_is_compiled_or_given_up() {
        let places = Arc::new(Places::default());
        let mut taken: Vec<Place> = (0..MAX_COMPILING)
            .map(|_| Place::new(&places).unwrap())
            .collect();
        let waiting = {
            let places = Arc::clone(&places);
            std::thread::spawn(move || Place::new(&places).unwrap())
        };
        taken[0].leave();
        taken[0].leave();
        taken[0] = waiting.join().unwrap();
        for place in &taken {
            place.give_up();
        }
        assert!(Place::new(&places).is_err());
        taken[1].leave();
        Place::new(&places).unwrap().leave();
    }
}
