//! `qwen-burn doctor`: what this machine has, and what to do about the rest.

mod check;
mod gpu;
mod machine;
mod models;

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::config::QWEN_BURN;
use crate::program::print;
use check::{Check, Status};

/// Say what this machine has for qwen-burn, and what to do about the rest.
///
/// Every line is `ok`, `note` (something that is of use and isn't there) or `missing`. The status is 1 if something is missing.
#[derive(Debug, Parser)]
#[command(name = "doctor", display_name = QWEN_BURN, version, max_term_width = 110)]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// All that was looked at.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    /// Architecture and system of this build.
    target: String,
    ok: bool,
    checks: Vec<Check>,
}

impl DoctorArgs {
    /// Looks, prints what it has found, and says by its status whether something is missing.
    pub(super) fn run(&self) -> ExitCode {
        let mut checks = machine::checks();
        checks.extend(gpu::checks());
        checks.extend(models::checks());
        let report = Report::new(checks);
        let text = match self.json {
            true => serde_json::to_string_pretty(&report).map(|text| text + "\n"),
            false => Ok(report.text()),
        };
        let printed = text.map_err(anyhow::Error::from).and_then(|t| print(&t));
        match (printed, report.ok) {
            (Ok(()), true) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

impl Report {
    fn new(checks: Vec<Check>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            target: format!("{} {}", std::env::consts::ARCH, std::env::consts::OS),
            ok: checks.iter().all(|check| check.status != Status::Missing),
            checks,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("qwen-burn {}, {}\n", self.version, self.target);
        let width = self.checks.iter().map(|check| check.name.len()).max();
        let width = width.unwrap_or_default();
        for check in &self.checks {
            let status = match check.status {
                Status::Ok => "ok",
                Status::Note => "note",
                Status::Missing => "missing",
            };
            let _ = writeln!(text, "{status:<7}  {:<width$}  {}", check.name, check.found);
            if let Some(advice) = &check.advice {
                let _ = writeln!(text, "{:<7}  {:<width$}  -> {advice}", "", "");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_makes_a_report_bad() {
        let report = Report::new(vec![
            Check::ok("CPU", "2 cores"),
            Check::note("hub", "not reached", "set HF_ENDPOINT"),
        ]);
        assert!(report.ok);
        let text = report.text();
        assert!(text.contains("note     hub  not reached"), "{text}");
        assert!(text.contains("-> set HF_ENDPOINT"), "{text}");
        let bad = Report::new(vec![Check::missing("disk", "no room", "make some")]);
        assert!(!bad.ok);
        let json = serde_json::to_value(&bad).unwrap();
        assert_eq!(json["checks"][0]["status"], "missing");
        assert_eq!(json["checks"][0]["advice"], "make some");
    }
}
