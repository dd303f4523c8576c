//! Autodiff room: empty. Under autodiff the twins in [`super::naive`] run, and burn derives their backward.
