//! The page at `/`.

use super::*;

const BROWSER: &str = "accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

fn files() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/page");
    let files = std::fs::read_dir(folder).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "index.html").collect()
}

#[test]
fn a_browser_gets_the_page_and_a_program_what_it_looks_for() {
    let server = TestServer::start(|_| says("x"));
    let page = server.raw("GET", "/", &[BROWSER], "");
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert!(page.text.starts_with("<!doctype html>"));
    for headers in [&[][..], &["accept: */*"], &["accept: application/json"]] {
        let line = server.raw("GET", "/", headers, "");
        assert_eq!(line.text, "Ollama is running", "{headers:?}");
        assert_eq!(line.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(line.headers["vary"], "Accept");
    }
    assert_eq!(server.raw("POST", "/", &[BROWSER], "{}").status, 405);
}

#[test]
fn every_file_is_given_with_its_type_and_the_policy() {
    let server = TestServer::start(|_| says("x"));
    let files = files();
    assert!(files.len() > 10);
    let paths = files.iter().map(|name| format!("/page/{name}"));
    for path in paths.chain(["/".to_owned()]) {
        let file = server.raw("GET", &path, &[BROWSER], "");
        assert_eq!(file.status, 200, "{path}");
        let kind = match path.rsplit('.').next() {
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(file.headers["content-type"], kind, "{path}");
        assert_eq!(file.headers["x-content-type-options"], "nosniff");
        assert_eq!(file.headers["cache-control"], "no-cache");
        assert_eq!(file.headers["referrer-policy"], "no-referrer");
        let policy = file.headers["content-security-policy"].to_str().unwrap();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.split("; ").any(|found| found == rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");

        let head = server.raw("HEAD", &path, &[BROWSER], "");
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        for name in ["content-type", "content-length", "etag"] {
            assert_eq!(head.headers[name], file.headers[name], "{path}");
        }
    }
    let unknown = server.raw("GET", "/page/none.js", &[BROWSER], "");
    assert_eq!(unknown.status, 404);
}

#[test]
fn a_file_that_the_browser_has_is_not_sent_again() {
    let server = TestServer::start(|_| says("x"));
    let get = |tags: &str| server.raw("GET", "/page/main.js", &[tags], "");
    let first = get("accept: */*");
    let tag = first.headers["etag"].to_str().unwrap();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    for tags in [tag.to_owned(), format!("\"x\", W/{tag}"), "*".to_owned()] {
        let again = get(&format!("if-none-match: {tags}"));
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{tags}");
        assert_eq!(again.headers["etag"], tag);
        assert!(again.headers.contains_key("content-security-policy"));
    }
    let other = get("if-none-match: \"x\"");
    assert_eq!((other.status, other.text), (200, first.text));
    let css = server.raw("GET", "/page/page.css", &[], "");
    assert_ne!(css.headers["etag"], tag);
}

#[test]
fn the_page_needs_no_key_and_what_it_asks_for_does() {
    let server = TestServer::start_with(&["--api-key", "secret"], |_| says("x"));
    for path in ["/", "/page/main.js", "/page/page.css"] {
        let page = server.raw("GET", path, &[BROWSER], "");
        assert_eq!(page.status, 200, "{path}");
        assert!(!page.text.contains("secret"));
        assert_eq!(server.raw("HEAD", path, &[BROWSER], "").status, 200);
    }
    for path in ["/v1/models", "/page/none.js", "/page/", "/page"] {
        assert_eq!(
            server.raw("GET", path, &[BROWSER], "").status,
            401,
            "{path}"
        );
    }
    // Only a browser gets the page.
    assert_eq!(server.raw("GET", "/", &["accept: */*"], "").status, 401);
    assert_eq!(server.raw("POST", "/", &[BROWSER], "{}").status, 401);
    let key = "authorization: Bearer secret";
    let line = server.raw("GET", "/", &[key], "");
    assert_eq!(line.text, "Ollama is running");
}

#[test]
fn a_flag_turns_the_page_off() {
    let server = TestServer::start_with(&["--no-page"], |_| says("x"));
    let line = server.raw("GET", "/", &[BROWSER], "");
    assert_eq!(
        (line.status, line.text.as_str()),
        (200, "Ollama is running")
    );
    for name in files() {
        let path = format!("/page/{name}");
        assert_eq!(server.raw("GET", &path, &[BROWSER], "").status, 404);
    }
    let server = TestServer::start_with(&["--no-page", "--api-key", "secret"], |_| says("x"));
    for path in ["/", "/page/main.js"] {
        assert_eq!(server.raw("GET", path, &[BROWSER], "").status, 401);
    }
}
