//! What an adapter folder holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lora_4bit::bnb::TensorFile;
use lora_4bit::peft::{
    CONFIG_FILE, LoraAdapter, LoraConfig, LoraMatrices, TargetModules, WEIGHTS_FILE,
};
use model_qwen::FolderShapes;
use serde::Serialize;
use serde_json::Value;

use super::json_file::read_json;
use crate::tools::base::named_model;
use crate::tools::error::ToolError;

/// An adapter.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AdapterFacts {
    /// What `adapter_config.json` names as the base model.
    pub base_model: Option<String>,
    /// Whether it was compared with a base model; one that is not on this machine is not.
    pub is_compared: bool,
    /// The rank, where no pattern says otherwise.
    pub r: usize,
    /// The alpha, where no pattern says otherwise.
    pub lora_alpha: f64,
    /// Smallest and largest factor of the products.
    pub scaling: [f64; 2],
    /// Smallest and largest rank.
    pub ranks: [usize; 2],
    /// rsLoRA.
    pub use_rslora: bool,
    /// DoRA.
    pub use_dora: bool,
    /// The shapes of weights that it brings whole (`modules_to_save`).
    pub saved_modules: BTreeMap<String, [usize; 2]>,
    /// The names that the adapter aims at.
    pub target_modules: Vec<String>,
    /// Modules with matrices.
    pub num_modules: usize,
    /// Values of all matrices.
    pub num_parameters: usize,
    /// The dtypes of the matrices.
    pub dtypes: BTreeSet<String>,
    /// The change of the weights, `s B A`, by the kind of layer.
    pub norms: BTreeMap<String, Norms>,
}

/// Frobenius norms of `s B A` over the layers of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Norms {
    /// Layers.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The largest.
    pub max: f64,
}

/// Looks at the adapter in a folder.
pub(super) fn look(
    folder: &Path,
    model: Option<&str>,
    problems: &mut Vec<String>,
) -> Result<AdapterFacts, ToolError> {
    let mut facts = AdapterFacts::default();
    if let Err(problem) = read_config(folder, &mut facts) {
        problems.push(problem);
    }
    facts.dtypes = dtypes(folder);
    match LoraAdapter::load(folder) {
        Ok(adapter) => {
            read_matrices(&adapter, &mut facts, problems);
            facts.is_compared = compare(&adapter, model, problems)?;
        }
        Err(error) => {
            let problem = error.to_string();
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }
    Ok(facts)
}

/// The fields of `adapter_config.json`, also where the adapter is refused.
fn read_config(folder: &Path, facts: &mut AdapterFacts) -> Result<(), String> {
    let path = folder.join(CONFIG_FILE);
    if !path.exists() {
        // The loader says so.
        return Ok(());
    }
    let fields = read_json(&path)?;
    let number = |field: &str| fields[field].as_f64();
    facts.base_model = fields["base_model_name_or_path"].as_str().map(Into::into);
    facts.r = number("r").unwrap_or_default() as usize;
    facts.lora_alpha = number("lora_alpha").unwrap_or_default();
    facts.use_rslora = fields["use_rslora"] == true;
    facts.use_dora = fields["use_dora"] == true;
    facts.target_modules = match &fields["target_modules"] {
        Value::String(pattern) => vec![pattern.clone()],
        Value::Array(names) => {
            let mut names: Vec<String> = names
                .iter()
                .filter_map(|name| name.as_str().map(Into::into))
                .collect();
            names.sort_unstable();
            names
        }
        _ => Vec::new(),
    };
    let text = fs::read(&path).map_err(|error| error.to_string())?;
    let config = LoraConfig::from_json(&text).map_err(|error| error.to_string())?;
    // Defaults of missing fields.
    facts.r = config.r;
    facts.lora_alpha = config.lora_alpha;
    if let (true, TargetModules::Pattern(pattern)) =
        (facts.target_modules.is_empty(), config.target_modules)
    {
        facts.target_modules = vec![pattern];
    }
    Ok(())
}

/// The dtypes in the header of the weight file; none where it cannot be read.
fn dtypes(folder: &Path) -> BTreeSet<String> {
    let Ok(file) = TensorFile::open(&folder.join(WEIGHTS_FILE)) else {
        return BTreeSet::new();
    };
    file.dtypes().map(|dtype| dtype.to_string()).collect()
}

fn read_matrices(adapter: &LoraAdapter, facts: &mut AdapterFacts, problems: &mut Vec<String>) {
    let LoraAdapter {
        config,
        modules,
        saved,
    } = adapter;
    facts.saved_modules = saved
        .iter()
        .map(|(module, saved)| (module.clone(), saved.shape))
        .collect();
    facts.num_modules = modules.len();
    facts.num_parameters = modules.values().map(LoraMatrices::len).sum();
    facts.num_parameters += saved
        .values()
        .map(|saved| saved.weight.len())
        .sum::<usize>();
    let scalings = modules.keys().map(|module| config.scaling_for(module));
    facts.scaling = scalings.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], s| {
        [low.min(s), high.max(s)]
    });
    let ranks = modules.values().map(|matrices| matrices.r);
    facts.ranks = ranks.fold([usize::MAX, 0], |[low, high], r| [low.min(r), high.max(r)]);
    let mut norms: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut num_zero = 0;
    for (module, matrices) in modules {
        let norm = config.scaling_for(module).abs() * product_norm(matrices);
        num_zero += usize::from(norm == 0.0);
        let kind = module.rsplit('.').next().unwrap_or(module);
        norms.entry(kind.to_owned()).or_default().push(norm);
    }
    facts.norms = norms
        .into_iter()
        .map(|(kind, norms)| (kind, summary(&norms)))
        .collect();
    if num_zero > 0 {
        problems.push(format!(
            "B A is zero in {num_zero} of {} modules: the adapter is not trained there",
            modules.len()
        ));
    }
}

fn summary(norms: &[f64]) -> Norms {
    let sum: f64 = norms.iter().sum();
    Norms {
        count: norms.len(),
        min: norms.iter().copied().fold(f64::INFINITY, f64::min),
        mean: sum / norms.len().max(1) as f64,
        max: norms.iter().copied().fold(0.0, f64::max),
    }
}

/// Frobenius norm of `B A`: the root of the trace of `(Bᵀ B) (A Aᵀ)`, two symmetric matrices of the rank's size.
fn product_norm(matrices: &LoraMatrices) -> f64 {
    let LoraMatrices {
        a,
        b,
        r,
        in_features,
        out_features,
        ..
    } = matrices;
    let columns = (0..*r).flat_map(|k| b.iter().skip(k).step_by(*r).copied());
    let b_t: Vec<f32> = columns.collect();
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        let pairs = x.iter().zip(y);
        pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let products = |i: usize, j: usize| {
        let [a, b] = [(a, *in_features), (&b_t, *out_features)].map(|(rows, width)| {
            let row = |k: usize| &rows[k * width..][..width];
            dot(row(i), row(j))
        });
        a * b
    };
    let mut trace = 0.0;
    for i in 0..*r {
        let above: f64 = (0..i).map(|j| products(i, j)).sum();
        trace += products(i, i) + 2.0 * above;
    }
    trace.max(0.0).sqrt()
}

/// Compares the adapter with its base model, where that is on this machine, and says whether it is.
fn compare(
    adapter: &LoraAdapter,
    model: Option<&str>,
    problems: &mut Vec<String>,
) -> Result<bool, ToolError> {
    let base = adapter.config.base_model_name_or_path.as_deref();
    let folder = match model {
        Some(model) => named_model(model)?,
        // A hub id is not downloaded for a look.
        None => match base.map(Path::new).filter(|base| base.is_dir()) {
            Some(folder) => folder.to_owned(),
            None => return Ok(false),
        },
    };
    match FolderShapes::open(&folder) {
        Ok(base) => match base.check_adapter(adapter) {
            Ok(()) => problems.extend(base.missing(adapter)),
            Err(error) => problems.push(error.to_string()),
        },
        Err(error) => problems.push(format!("the base model cannot be used: {error}")),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_that_of_the_product() {
        let matrices = LoraMatrices {
            a: vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.0],
            b: vec![1.0, 2.0, -1.0, 4.0],
            r: 2,
            in_features: 3,
            out_features: 2,
            magnitude: None,
        };
        // B A = [[-1, 3, 3], [-5, 0, -3]]
        let expected = (1.0f64 + 9.0 + 9.0 + 25.0 + 0.0 + 9.0).sqrt();
        assert!((product_norm(&matrices) - expected).abs() < 1e-9);
    }
}
