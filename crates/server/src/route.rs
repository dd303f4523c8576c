//! One path of the HTTP API: what answers there, and how its requests count.

use axum::routing::MethodRouter;

use crate::state::AppState;

/// A path of the API.
pub(crate) struct Route {
    pub(crate) path: &'static str,
    /// What answers there.
    pub(crate) methods: MethodRouter<AppState>,
    pub(crate) kind: RouteKind,
}

/// How requests to a path count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteKind {
    /// They give the engine work: they have traces and are load.
    Work {
        /// Whether a line of a batch may ask for it.
        in_batch: bool,
    },
    /// They are counted.
    Other,
    /// Load balancers, scrapers and the page send them again and again; they are not counted, as in vLLM.
    Polled {
        /// Whether they pass without an API key.
        is_open: bool,
    },
}

impl Route {
    /// A path whose requests give the engine work.
    pub(crate) fn work(path: &'static str, methods: MethodRouter<AppState>) -> Self {
        let kind = RouteKind::Work { in_batch: false };
        Self::of(path, methods, kind)
    }

    /// The same for one that batches may ask for, too.
    pub(crate) fn batch_work(path: &'static str, methods: MethodRouter<AppState>) -> Self {
        let kind = RouteKind::Work { in_batch: true };
        Self::of(path, methods, kind)
    }

    /// A path that the engine has no work with.
    pub(crate) fn other(path: &'static str, methods: MethodRouter<AppState>) -> Self {
        Self::of(path, methods, RouteKind::Other)
    }

    /// A path that is polled, with an API key if the server has one.
    pub(crate) fn polled(path: &'static str, methods: MethodRouter<AppState>) -> Self {
        let kind = RouteKind::Polled { is_open: false };
        Self::of(path, methods, kind)
    }

    /// The same without an API key.
    pub(crate) fn polled_open(path: &'static str, methods: MethodRouter<AppState>) -> Self {
        let kind = RouteKind::Polled { is_open: true };
        Self::of(path, methods, kind)
    }

    fn of(path: &'static str, methods: MethodRouter<AppState>, kind: RouteKind) -> Self {
        Self {
            path,
            methods,
            kind,
        }
    }
}
