use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// The script `name`.
fn script(name: &str) -> &'static str {
    let path = format!("/page/{name}");
    let mut files = FILES.iter();
    files.find(|file| file.path == path).unwrap().content
}

fn texts(language: &str) -> BTreeMap<String, String> {
    let object = script(language)
        .trim()
        .strip_prefix("export default ")
        .and_then(|object| object.strip_suffix(';'));
    serde_json::from_str(object.unwrap()).unwrap()
}

/// What `{…}` a text has.
fn places(text: &str) -> BTreeSet<&str> {
    let parts = text.split('{').skip(1);
    parts
        .filter_map(|part| part.split_once('}'))
        .map(|(name, _)| name)
        .collect()
}

/// What stands in `text` between `start` and the next `end`.
fn between<'a>(text: &'a str, start: &str, end: char) -> Vec<&'a str> {
    let parts = text.split(start).skip(1);
    parts
        .filter_map(|part| part.split_once(end))
        .map(|(inner, _)| inner)
        .collect()
}

#[test]
fn both_languages_have_every_text() {
    let (en, zh) = (texts("en.js"), texts("zh.js"));
    assert_eq!(en.keys().collect::<Vec<_>>(), zh.keys().collect::<Vec<_>>());
    for (key, text) in &en {
        assert!(!text.is_empty() && !zh[key].is_empty(), "{key}");
        assert_eq!(places(text), places(&zh[key]), "{key}");
    }
}

#[test]
fn every_text_that_is_named_exists_and_every_text_is_named() {
    let texts = texts("en.js");
    let scripts = FILES.iter().filter(|file| {
        file.path.ends_with(".js") && !["en.js", "zh.js"].contains(&&file.path[6..])
    });
    let scripts: String = scripts.map(|file| file.content).collect();
    let index = INDEX.content;
    let mut named = BTreeSet::new();
    for start in [
        "data-t=\"",
        "data-t-aria-label=\"",
        "data-t-placeholder=\"",
        "data-t-title=\"",
    ] {
        named.extend(between(index, start, '"'));
    }
    named.extend(between(&scripts, "t(\"", '"').into_iter().filter(|key| {
        // Other functions end in `t`, too.
        !key.is_empty()
            && key
                .bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_lowercase())
            && !["keydown", "input", "click", "change", "submit"].contains(key)
    }));
    let missing: Vec<_> = named
        .iter()
        .filter(|key| !texts.contains_key(**key))
        .collect();
    // Names of elements and storages stand in calls that end in `t(`, and in none of the texts' places.
    let known = ["textarea", "select", "option", "visibilitychange"];
    assert!(
        missing.iter().all(|key| known.contains(*key)),
        "{missing:?}"
    );
    // Some keys are put together, or stand in a table.
    let prefixes = ["http_", "job_", "role_", "set_", "view_"];
    let is_named = |key: &String| {
        named.contains(key.as_str())
            || prefixes.iter().any(|prefix| key.starts_with(prefix))
            || scripts.contains(&format!("\"{key}\""))
    };
    let unused: Vec<_> = texts.keys().filter(|key| !is_named(key)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn whatever_the_page_loads_is_there() {
    let paths: BTreeSet<&str> = FILES.iter().map(|file| file.path).collect();
    for start in ["src=\"", "href=\"page/"] {
        for name in between(INDEX.content, start, '"') {
            let name = name.trim_start_matches("page/");
            assert!(paths.contains(format!("/page/{name}").as_str()), "{name}");
        }
    }
    for file in FILES.iter().filter(|file| file.path.ends_with(".js")) {
        for name in between(file.content, "from \"./", '"') {
            assert!(paths.contains(format!("/page/{name}").as_str()), "{name}");
        }
    }
}

#[test]
fn no_text_becomes_markup() {
    // The policy forbids these in browsers that know it; other browsers rely on their absence.
    for file in &FILES {
        for name in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ] {
            assert!(!file.content.contains(name), "{}: {name}", file.path);
        }
        assert!(!file.content.contains("style=\""), "{}", file.path);
    }
    assert!(!INDEX.content.contains(" on"), "a handler in the document");
    assert!(!INDEX.content.contains("style="));
    assert_eq!(INDEX.content.matches("<script").count(), 1);
}

#[test]
fn programs_get_no_html() {
    let wants = |accept: &[&'static str]| {
        let accept = accept
            .iter()
            .map(|accept| (header::ACCEPT, HeaderValue::from_static(accept)));
        wants_html(&accept.collect())
    };
    for accept in [
        &["text/html"][..],
        &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
        &["application/json, TEXT/HTML;level=1;q=0.4"],
        &["application/json", "text/html"],
    ] {
        assert!(wants(accept), "{accept:?}");
    }
    for accept in [
        &[][..],
        &["*/*"],
        &["application/json"],
        &["text/*"],
        &["text/html;q=0"],
        &["text/html; q=0.000, */*"],
        &["text/htmlx"],
    ] {
        assert!(!wants(accept), "{accept:?}");
    }
}
