//! The pages of the book that list fields and flags have every one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::path::Path;

use server::config::VLLM_FLAGS;
use server::protocol::fields::{Endpoint, FIELDS, Field, Verdict};

/// Compares the part of a page between its marks with `table`; with `UPDATE_DOCS=1` it writes it there.
fn check(page: &str, table: &str) {
    const BEGIN: &str = "<!-- generated: UPDATE_DOCS=1 cargo test -p server --test docs -->\n";
    const END: &str = "<!-- end -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/src")
        .join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert!(
        found == table,
        "docs/src/{page} differs: run UPDATE_DOCS=1 cargo test -p server --test docs"
    );
}

/// The pages of other APIs, and whose fields they have.
const PAGES: [(&str, &[Endpoint]); 3] = [
    ("anthropic.md", &[Endpoint::Messages, Endpoint::CountTokens]),
    (
        "finetuning-api.md",
        &[
            Endpoint::FineTuningJob,
            Endpoint::FineTuningSettings,
            Endpoint::FineTuningPreview,
        ],
    ),
    (
        "ollama.md",
        &[
            Endpoint::OllamaChat,
            Endpoint::OllamaGenerate,
            Endpoint::OllamaEmbed,
            Endpoint::OllamaEmbeddings,
            Endpoint::OllamaOptions,
            Endpoint::OllamaShow,
        ],
    ),
];

#[test]
fn every_field_has_a_row() {
    let is_of = |field: &Field, endpoints: &[Endpoint]| {
        let mut endpoints = endpoints.iter();
        endpoints.any(|endpoint| field.is_of(*endpoint))
    };
    for (page, endpoints) in PAGES {
        check(page, &table(|field| is_of(field, endpoints)));
    }
    let is_elsewhere = |field: &Field| PAGES.iter().any(|(_, of)| is_of(field, of));
    check("api.md", &table(|field| !is_elsewhere(field)));
}

/// The table of some fields.
fn table(is_shown: impl Fn(&Field) -> bool) -> String {
    let mut table = "\n| field | of | | |\n|---|---|---|---|\n".to_owned();
    for field in FIELDS.iter().filter(|field| is_shown(field)) {
        let verdict = match &field.verdict {
            Verdict::Works => "works".to_owned(),
            Verdict::Harmless => "harmless".to_owned(),
            Verdict::Refused(neutral) if neutral.is_empty() => "refused".to_owned(),
            Verdict::Refused(neutral) => {
                let neutral: Vec<String> = neutral.iter().map(|v| format!("`{v}`")).collect();
                format!("refused, but {}", neutral.join(" and "))
            }
        };
        let (name, endpoints, note) = (field.name, field.endpoints, field.note);
        writeln!(table, "| `{name}` | {endpoints} | {verdict} | {note} |").unwrap();
    }
    table.push('\n');
    table
}

#[test]
fn every_flag_has_a_row() {
    let mut table = "\n| flag of vLLM | | |\n|---|---|---|\n".to_owned();
    for flag in VLLM_FLAGS.iter() {
        let verdict = match flag.verdict.split_once(" if ") {
            Some((_, values)) => {
                let values: Vec<String> = values.split(' ').map(|v| format!("`{v}`")).collect();
                format!("harmless with {}, else refused", values.join(", "))
            }
            None => flag.verdict.to_owned(),
        };
        writeln!(table, "| `{}` | {verdict} | {} |", flag.flag, flag.note).unwrap();
    }
    table.push('\n');
    check("compatibility.md", &table);
}
