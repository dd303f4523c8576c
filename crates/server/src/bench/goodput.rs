//! `--goodput`: bounds of times within which requests count.

use clap::ValueEnum;

/// What `--goodput` has a bound for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// Time to the first token
    Ttft,
    /// Mean time of a further token of a request
    Tpot,
    /// Time to the last token
    E2el,
}

pub(super) fn goal(text: &str) -> Result<(Goal, f64), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME:MILLISECONDS")?;
    let goal = Goal::from_str(name, false);
    let goal = goal.map_err(|_| format!("expected ttft, tpot or e2el, found {name}"))?;
    match value.parse::<f64>() {
        Ok(value) if value >= 0.0 => Ok((goal, value)),
        _ => Err(format!("expected milliseconds, found {value}")),
    }
}
