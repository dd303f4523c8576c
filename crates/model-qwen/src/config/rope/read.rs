//! From the sections of a `config.json` to a [`RopeScaling`].

use serde_json::{Map, Value};

use super::{Llama3, LongRope, RopeScaling, Yarn};
use crate::json_file::{JsonFile, JsonFileError, Nested, says_nothing};

/// The shape that RoPE depends on.
#[derive(Clone, Copy)]
pub(in crate::config) struct RopeShape {
    pub(in crate::config) head_dim: usize,
    pub(in crate::config) max_position_embeddings: usize,
}

/// Base of the frequencies, and their scaling. `notes` gets what the user should know.
///
/// `rope_scaling` comes before `rope_parameters`, and a `rope_theta` in the chosen one before that of the file, as in
/// transformers.
pub(in crate::config) fn read_rope(
    file: &JsonFile,
    shape: RopeShape,
    notes: &mut Vec<String>,
) -> Result<(f64, Option<RopeScaling>), JsonFileError> {
    let section = |field| {
        let found = file.object_in(field)?;
        Ok::<_, JsonFileError>(found.filter(|section| !section.object().is_empty()))
    };
    let (scaling, parameters) = (section("rope_scaling")?, section("rope_parameters")?);
    let top = file.top();
    let outer_theta = top.number("rope_theta")?;
    if let (Some(scaling), Some(parameters)) = (&scaling, &parameters) {
        let lost = parameters.number("rope_theta")?;
        let found = scaling.number("rope_theta")?.or(outer_theta);
        if let Some(lost) = lost
            && found.is_none()
            && lost != DEFAULT_THETA
        {
            return Err(scaling.error(
                "rope_theta",
                format!(
                    "the base {lost} of rope_parameters: where both are given, rope_scaling is read and rope_parameters is not"
                ),
                "nothing",
            ));
        }
        let without_theta = |section: &Nested<'_>| {
            let mut object = section.object().clone();
            object.remove("rope_theta");
            let kind = object.remove("type");
            object
                .entry("rope_type")
                .or_insert(kind.unwrap_or_default());
            object
        };
        if without_theta(scaling) != without_theta(parameters) {
            notes.push("rope_scaling and rope_parameters differ: rope_scaling is used".to_owned());
        }
    }
    let section = scaling.or(parameters);
    let inner_theta = match &section {
        Some(section) => section.number("rope_theta")?,
        None => None,
    };
    if let (Some(inner), Some(outer)) = (inner_theta, outer_theta)
        && inner != outer
    {
        notes.push(format!(
            "rope_theta is {outer}, and {inner} beside the type of RoPE: {inner} is used"
        ));
    }
    let theta = inner_theta.or(outer_theta).unwrap_or(DEFAULT_THETA);
    if !(theta.is_finite() && theta > 1.0) {
        return Err(top.error("rope_theta", "a number above 1", theta));
    }
    let partial = top.number("partial_rotary_factor")?;
    let Some(section) = section else {
        return match partial {
            None | Some(1.0) => Ok((theta, None)),
            Some(partial) => Err(top.error("partial_rotary_factor", "1", partial)),
        };
    };
    let original = top.positive("original_max_position_embeddings")?;
    let reader = Reader {
        original,
        partial,
        section,
        shape,
    };
    Ok((theta, reader.scaling(notes)?))
}

/// Base of the frequencies where no file says it.
const DEFAULT_THETA: f64 = 10_000.0;

/// Reads one section.
struct Reader<'a> {
    section: Nested<'a>,
    shape: RopeShape,
    /// The original context beside the section, which comes first.
    original: Option<usize>,
    /// `partial_rotary_factor` beside the section, which comes second.
    partial: Option<f64>,
}

impl Reader<'_> {
    fn scaling(&self, notes: &mut Vec<String>) -> Result<Option<RopeScaling>, JsonFileError> {
        let section = &self.section;
        if let Some((layer, _)) = section.object().iter().find(|(_, value)| value.is_object()) {
            let expected = "the parameters of all layers";
            return Err(section.error(layer, expected, "an object of its own"));
        }
        let kind = section.text("rope_type")?;
        let kind = match kind {
            Some(kind) => Some(kind),
            None => section.text("type")?,
        };
        if kind.is_none() && section.get("factor").is_some() {
            return Err(section.error("rope_type", TYPES, "nothing beside `factor`"));
        }
        if let Some(sections) = section.get("mrope_section").filter(|s| !says_nothing(s)) {
            return Err(section.error("mrope_section", "nothing: a text model", sections));
        }
        let kind = kind.unwrap_or_else(|| "default".to_owned());
        let (scaling, keys): (_, &[&str]) = match kind.as_str() {
            "default" => (None, &[]),
            "linear" => {
                let factor = self.required("factor")?;
                (Some(RopeScaling::Linear { factor }), &["factor"])
            }
            "dynamic" => (Some(self.dynamic(notes)?), &["factor"]),
            "yarn" => (Some(RopeScaling::Yarn(self.yarn()?)), &YARN_KEYS),
            "longrope" | "su" => (
                Some(RopeScaling::LongRope(self.long_rope(notes)?)),
                &LONG_KEYS,
            ),
            "llama3" => (Some(RopeScaling::Llama3(self.llama3()?)), &LLAMA3_KEYS),
            "proportional" => (
                Some(self.proportional()?),
                &["factor", "partial_rotary_factor"],
            ),
            other => {
                let found = format!("`{other}`");
                return Err(section.error("rope_type", TYPES, found));
            }
        };
        if kind != "proportional" {
            let partial = self.partial_rotary_factor()?;
            if partial != 1.0 {
                return Err(section.error("partial_rotary_factor", "1", partial));
            }
        }
        let unread = unread(section.object(), keys);
        if !unread.is_empty() {
            notes.push(format!(
                "RoPE of type {kind} doesn't read {}",
                unread.join(", ")
            ));
        }
        Ok(scaling)
    }

    fn dynamic(&self, notes: &mut Vec<String>) -> Result<RopeScaling, JsonFileError> {
        let factor = self.required("factor")?;
        let alpha = self.section.get("alpha");
        if let Some(alpha) = alpha.filter(|alpha| !says_nothing(alpha)) {
            return Err(self.section.error("alpha", "nothing", alpha));
        }
        notes.push(format!(
            "RoPE of type dynamic is computed up to max_position_embeddings ({}), where it changes nothing",
            self.shape.max_position_embeddings
        ));
        Ok(RopeScaling::Dynamic { factor })
    }

    fn yarn(&self) -> Result<Yarn, JsonFileError> {
        let section = &self.section;
        let original = self.original_max_position_embeddings()?;
        let factor = match self.positive("factor")? {
            Some(factor) => factor,
            None => self.shape.max_position_embeddings as f64 / original as f64,
        };
        let extrapolation = section.number("extrapolation_factor")?;
        if let Some(found) = extrapolation.filter(|&found| found != 1.0) {
            return Err(section.error("extrapolation_factor", "1", found));
        }
        if section.boolean("apply_yarn_scaling")? == Some(false) {
            return Err(section.error("apply_yarn_scaling", "true", false));
        }
        let or = |field, default| -> Result<f64, JsonFileError> {
            let found = section.number(field)?.filter(|&found| found != 0.0);
            Ok(found.unwrap_or(default))
        };
        let magnitude = |scale: f64, mscale: f64| match scale > 1.0 {
            true => 0.1 * mscale * scale.ln() + 1.0,
            false => 1.0,
        };
        let (mscale, all_dim) = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
        let mut attention_factor = match self.positive("attention_factor")? {
            Some(given) => given,
            None if mscale != 0.0 && all_dim != 0.0 => {
                magnitude(factor, mscale) / magnitude(factor, all_dim)
            }
            None => magnitude(factor, 1.0),
        };
        if let Some(times) = self.positive("attn_factor")? {
            if let Some(found) = section.get("attention_factor") {
                let expected = "one of both, attn_factor or attention_factor";
                return Err(section.error("attention_factor", expected, found));
            }
            attention_factor *= times;
        }
        Ok(Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: or("beta_fast", 32.0)?,
            beta_slow: or("beta_slow", 1.0)?,
            truncate: section.boolean("truncate")?.unwrap_or(true),
            attention_factor,
        })
    }

    fn long_rope(&self, notes: &mut Vec<String>) -> Result<LongRope, JsonFileError> {
        let original = self.original_max_position_embeddings()?;
        let max = self.shape.max_position_embeddings;
        let factor = match self.positive("factor")? {
            Some(factor) => factor,
            None => max as f64 / original as f64,
        };
        let attention_factor = match self.positive("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        if original < max {
            notes.push(format!(
                "RoPE of type longrope is computed up to original_max_position_embeddings ({original}), not up to {max}: \
                 longer texts have other factors"
            ));
        }
        Ok(LongRope {
            short_factor: self.factors("short_factor")?,
            long_factor: self.factors("long_factor")?,
            original_max_position_embeddings: original,
            attention_factor,
        })
    }

    fn llama3(&self) -> Result<Llama3, JsonFileError> {
        let (low, high) = (
            self.required("low_freq_factor")?,
            self.required("high_freq_factor")?,
        );
        if high <= low {
            let expected = format!("more than low_freq_factor ({low})");
            return Err(self.section.error("high_freq_factor", expected, high));
        }
        Ok(Llama3 {
            factor: self.required("factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: self.original_max_position_embeddings()?,
        })
    }

    fn proportional(&self) -> Result<RopeScaling, JsonFileError> {
        let partial_rotary_factor = self.partial_rotary_factor()?;
        if partial_rotary_factor > 1.0 {
            let expected = "a number of at most 1";
            return Err((self.section).error(
                "partial_rotary_factor",
                expected,
                partial_rotary_factor,
            ));
        }
        Ok(RopeScaling::Proportional {
            factor: self.positive("factor")?.unwrap_or(1.0),
            partial_rotary_factor,
        })
    }

    fn partial_rotary_factor(&self) -> Result<f64, JsonFileError> {
        let inner = self.positive("partial_rotary_factor")?;
        Ok(inner.or(self.partial).unwrap_or(1.0))
    }

    fn original_max_position_embeddings(&self) -> Result<usize, JsonFileError> {
        let field = "original_max_position_embeddings";
        let inner = self.section.positive(field)?;
        let found = self.original.or(inner);
        Ok(found.unwrap_or(self.shape.max_position_embeddings))
    }

    /// A number above zero.
    fn positive(&self, field: &str) -> Result<Option<f64>, JsonFileError> {
        match self.section.number(field)? {
            Some(found) if found.is_finite() && found > 0.0 => Ok(Some(found)),
            Some(found) => Err(self.section.error(field, "a number above 0", found)),
            None => Ok(None),
        }
    }

    fn required(&self, field: &str) -> Result<f64, JsonFileError> {
        let found = self.positive(field)?;
        found.ok_or_else(|| self.section.error(field, "a number above 0", "nothing"))
    }

    /// One number above zero for each pair of head dimensions.
    fn factors(&self, field: &str) -> Result<Vec<f64>, JsonFileError> {
        let half = self.shape.head_dim / 2;
        let expected = format!("{half} numbers above 0, one for each pair of head dimensions");
        let read = |value: &Value| -> Option<Vec<f64>> {
            let numbers = value.as_array()?.iter().map(Value::as_f64);
            let numbers: Vec<f64> = numbers.collect::<Option<_>>()?;
            let fits = numbers.len() == half && numbers.iter().all(|n| n.is_finite() && *n > 0.0);
            fits.then_some(numbers)
        };
        let found = self.section.read(field, &expected, read)?;
        found.ok_or_else(|| self.section.error(field, expected, "nothing"))
    }
}

const TYPES: &str =
    "`default`, `linear`, `dynamic`, `yarn`, `longrope`, `llama3` or `proportional`";
const YARN_KEYS: [&str; 11] = [
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "truncate",
    "attention_factor",
    "attn_factor",
    "extrapolation_factor",
    "apply_yarn_scaling",
    "mscale",
    "mscale_all_dim",
];
const LONG_KEYS: [&str; 5] = [
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "short_factor",
    "long_factor",
];
const LLAMA3_KEYS: [&str; 4] = [
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
];

/// The keys of a section that say something and are read for no type, or for another one.
fn unread<'a>(section: &'a Map<String, Value>, read: &[&str]) -> Vec<&'a str> {
    let always = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    let says = section.iter().filter(|(_, value)| !value.is_null());
    let names = says.map(|(name, _)| name.as_str());
    names
        .filter(|name| !always.contains(name) && !read.contains(name))
        .collect()
}
