//! A report as text.

use std::fmt;

use serde_json::Value;

use super::{AdapterFacts, ModelFacts, Norms, Report};
use crate::tools::numbers::count;

/// Width of the first column.
const WIDTH: usize = 18;

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(out, "folder", self.path.display())?;
        let step = self
            .step
            .map_or_else(String::new, |step| format!(" after step {step}"));
        line(out, "kind", format!("{}{step}", self.kind))?;
        if self.kind != "unknown" {
            line(out, "size", size(self.num_bytes))?;
        }
        if let Some(adapter) = &self.adapter {
            show_adapter(out, adapter)?;
        }
        if let Some(model) = &self.model {
            show_model(out, model)?;
        }
        if let Some(Value::Object(settings)) = &self.training {
            writeln!(out, "training")?;
            let set = settings.iter().filter(|(_, value)| !value.is_null());
            for (name, value) in set {
                writeln!(out, "  {name} = {value}")?;
            }
        }
        if self.problems.is_empty() {
            return line(out, "problems", "none found");
        }
        writeln!(out, "problems")?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(out, "  - {problem}"))
    }
}

fn show_adapter(out: &mut fmt::Formatter<'_>, facts: &AdapterFacts) -> fmt::Result {
    line(
        out,
        "base model",
        match (facts.base_model.as_deref(), facts.is_compared) {
            (base, true) => base.unwrap_or("not named").to_owned(),
            (Some(base), false) => {
                format!("{base} (not a folder here, so not compared: give --model)")
            }
            (None, false) => "not named (not compared: give --model)".to_owned(),
        },
    )?;
    let pattern = |is_one: bool, values: String| match is_one {
        true => String::new(),
        false => format!(", by pattern {values}"),
    };
    let ranks = facts.ranks;
    let by_pattern = pattern(
        ranks == [facts.r; 2] || facts.num_modules == 0,
        format!("{} to {}", ranks[0], ranks[1]),
    );
    line(out, "r", format!("{}{by_pattern}", facts.r))?;
    line(out, "alpha", facts.lora_alpha)?;
    if facts.num_modules > 0 {
        let [low, high] = facts.scaling;
        let how = match facts.use_rslora {
            true => "alpha / √r (rsLoRA)",
            false => "alpha / r",
        };
        let value = match low == high {
            true => format!("{low}"),
            false => format!("{low:.4} to {high:.4}"),
        };
        line(out, "scaling", format!("{value}, {how}"))?;
    }
    if facts.use_dora {
        line(
            out,
            "DoRA",
            "yes, the rows of the weights have lengths of their own",
        )?;
    }
    for (module, [rows, width]) in &facts.saved_modules {
        line(out, "saved whole", format!("{module}, {rows} × {width}"))?;
    }
    line(out, "target modules", facts.target_modules.join(", "))?;
    let dtypes: Vec<&str> = facts.dtypes.iter().map(String::as_str).collect();
    let values = format!(
        "{} in {} modules, {}",
        count(facts.num_parameters),
        facts.num_modules,
        dtypes.join(", ")
    );
    line(out, "parameters", values)?;
    if !facts.norms.is_empty() {
        writeln!(
            out,
            "norm of s·B·A         mean       min       max  layers"
        )?;
    }
    for (kind, norms) in &facts.norms {
        let Norms {
            count,
            min,
            mean,
            max,
        } = norms;
        writeln!(
            out,
            "  {kind:<14} {mean:>9.4} {min:>9.4} {max:>9.4} {count:>7}"
        )?;
    }
    Ok(())
}

fn show_model(out: &mut fmt::Formatter<'_>, facts: &ModelFacts) -> fmt::Result {
    if !facts.model_type.is_empty() {
        let [queries, keys] = facts.heads;
        let shape = format!(
            "{}: {} layers, width {}, {queries} heads on {keys}",
            facts.model_type, facts.num_hidden_layers, facts.hidden_size
        );
        line(out, "architecture", shape)?;
        let tied = match facts.tie_word_embeddings {
            true => "lm_head is the embedding",
            false => "lm_head of its own",
        };
        line(out, "vocabulary", format!("{}, {tied}", facts.vocab_size))?;
        line(out, "context", format!("{} tokens", facts.context_length))?;
    }
    let dtypes = facts.dtypes.iter().map(|(dtype, of)| {
        format!(
            "{} in {dtype} ({} tensors)",
            count(of.num_parameters),
            of.num_tensors
        )
    });
    let dtypes: Vec<String> = dtypes.collect();
    let total = count(facts.num_parameters);
    line(out, "parameters", format!("{total}: {}", dtypes.join(", ")))?;
    line(out, "weight files", facts.num_files)?;
    let template = match facts.has_chat_template {
        true => "yes",
        false => "none",
    };
    line(out, "chat template", template)
}

fn line(out: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(out, "{name:<WIDTH$}{value}")
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}
