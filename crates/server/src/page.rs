//! The page at `/`, which a browser gets; its files are in the folder `page` and part of the program.
//!
//! A client that does not ask for HTML still gets the line that Ollama's clients look for. The files hold no secret and are
//! given without a key, so that the page can ask for one.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::state::AppState;

/// What the page may load and do. Trusted Types without a policy: no script can turn text into markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";
/// Headers of every file.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // A browser asks each time whether its copy is that of this program.
    (header::CACHE_CONTROL, "no-cache"),
    (header::VARY, "Accept"),
];

/// One file of the page.
struct File {
    path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

macro_rules! file {
    ($name:literal, $content_type:literal) => {
        File {
            path: concat!("/page/", $name),
            content_type: $content_type,
            content: include_str!(concat!("../page/", $name)),
        }
    };
}

/// The document, at `/`.
static INDEX: File = File {
    path: "/",
    content_type: "text/html; charset=utf-8",
    content: include_str!("../page/index.html"),
};
/// What it loads.
static FILES: [File; 23] = [
    file!("page.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    file!("list.js", "text/javascript; charset=utf-8"),
    file!("main.js", "text/javascript; charset=utf-8"),
    file!("api.js", "text/javascript; charset=utf-8"),
    file!("chat.js", "text/javascript; charset=utf-8"),
    file!("compare.js", "text/javascript; charset=utf-8"),
    file!("dom.js", "text/javascript; charset=utf-8"),
    file!("draft.js", "text/javascript; charset=utf-8"),
    file!("en.js", "text/javascript; charset=utf-8"),
    file!("export.js", "text/javascript; charset=utf-8"),
    file!("forms.js", "text/javascript; charset=utf-8"),
    file!("i18n.js", "text/javascript; charset=utf-8"),
    file!("markdown.js", "text/javascript; charset=utf-8"),
    file!("message.js", "text/javascript; charset=utf-8"),
    file!("settings.js", "text/javascript; charset=utf-8"),
    file!("status.js", "text/javascript; charset=utf-8"),
    file!("store.js", "text/javascript; charset=utf-8"),
    file!("tabs.js", "text/javascript; charset=utf-8"),
    file!("teach.js", "text/javascript; charset=utf-8"),
    file!("teach_job.js", "text/javascript; charset=utf-8"),
    file!("versions.js", "text/javascript; charset=utf-8"),
    file!("zh.js", "text/javascript; charset=utf-8"),
];

/// Adds `/`, and the page's files unless the page is off.
pub(crate) fn add(router: Router<AppState>, is_on: bool) -> Router<AppState> {
    if !is_on {
        return router.route("/", get(alive));
    }
    let mut router = router.route("/", get(root));
    for file in &FILES {
        let answer = move |headers: HeaderMap| async move { file.answer(&headers) };
        router = router.route(file.path, get(answer));
    }
    router
}

/// The file that a request asks for.
fn file_of(request: &Request, is_on: bool) -> Option<&'static File> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !(is_on && reads) {
        return None;
    }
    let path = request.uri().path();
    match path == INDEX.path {
        true => wants_html(request.headers()).then_some(&INDEX),
        false => FILES.iter().find(|file| file.path == path),
    }
}

/// Whether a request is for the page, which needs no key.
pub(crate) fn is_for_page(request: &Request, is_on: bool) -> bool {
    file_of(request, is_on).is_some()
}

/// The file of the page that a request is for.
pub(crate) fn answer(request: &Request, is_on: bool) -> Option<Response> {
    file_of(request, is_on).map(|file| file.answer(request.headers()))
}

/// What Ollama's clients look for.
async fn alive() -> (HeaderMap, &'static str) {
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
    (headers, "Ollama is running")
}

/// The page for a browser, and for other clients what they look for.
async fn root(headers: HeaderMap) -> Response {
    if wants_html(&headers) {
        return INDEX.answer(&headers);
    }
    let vary = [(header::VARY, HeaderValue::from_static("Accept"))];
    (vary, alive().await).into_response()
}

/// Whether `Accept` names HTML. Programs send `*/*` or nothing.
fn wants_html(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).into_iter();
    let mut ranges = accepts
        .filter_map(|accept| accept.to_str().ok())
        .flat_map(|accept| accept.split(','));
    ranges.any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_html = parts
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        is_html && weight.is_none_or(|weight| weight.parse() != Ok(0.0))
    })
}

impl File {
    /// The file, or 304 if the client has it.
    fn answer(&self, request: &HeaderMap) -> Response {
        let tag = self.tag();
        let known = request.get_all(header::IF_NONE_MATCH).into_iter();
        let is_known = known
            .filter_map(|tags| tags.to_str().ok())
            .flat_map(|tags| tags.split(','))
            .map(|known| known.trim().trim_start_matches("W/"))
            .any(|known| known == "*" || known == tag);
        let headers = HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value)));
        let tag = [(header::ETAG, tag)];
        if is_known {
            return (StatusCode::NOT_MODIFIED, tag, headers).into_response();
        }
        let content_type = [(header::CONTENT_TYPE, self.content_type)];
        (tag, headers, content_type, self.content).into_response()
    }

    /// The same as long as the content is.
    fn tag(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.content.hash(&mut hasher);
        format!("\"{:016x}\"", hasher.finish())
    }
}

#[cfg(test)]
mod tests;
