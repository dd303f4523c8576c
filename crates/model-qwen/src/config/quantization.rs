//! How the weights of a folder are quantized, before a tensor is looked at.

use std::path::Path;

use crate::json_file::{JsonFile, JsonFileError, Nested, says_nothing};
use crate::model_folder::QUANTIZATION_FILES;

/// What is supported.
const SUPPORTED: &str = "weights in bf16, f16 or f32 (`--quantization nf4` quantizes them while they are loaded), or bitsandbytes \
                         NF4 (`quant_method` bitsandbytes, `load_in_4bit`, `bnb_4bit_quant_type` nf4)";

/// Refuses weights in a format other than those of [`SUPPORTED`], by the format's name.
pub(super) fn check_quantization(file: &JsonFile) -> Result<(), JsonFileError> {
    for field in ["quantization_config", "quantization"] {
        let section = file.object_in(field)?;
        if let Some(section) =
            section.filter(|section| section.object().values().any(|v| !v.is_null()))
        {
            return check(&section);
        }
    }
    Ok(())
}

/// Refuses a folder in which a file beside `config.json` says that the weights are quantized.
pub(super) fn check_files(dir: &Path, file: &JsonFile) -> Result<(), JsonFileError> {
    let says = file.get("quantization_config");
    if says.is_some_and(|value| !says_nothing(value)) {
        return Ok(());
    }
    match QUANTIZATION_FILES
        .iter()
        .map(|name| dir.join(name))
        .find(|path| path.is_file())
    {
        Some(path) => Err(JsonFileError::File {
            path,
            reason: format!("expected {SUPPORTED}; this file says that the weights are quantized"),
        }),
        None => Ok(()),
    }
}

fn check(section: &Nested<'_>) -> Result<(), JsonFileError> {
    let is_on = |fields: [&str; 2]| -> Result<bool, JsonFileError> {
        for field in fields {
            if section.boolean(field)? == Some(true) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let in_8_bit = is_on(["load_in_8bit", "_load_in_8bit"])?;
    let in_4_bit = is_on(["load_in_4bit", "_load_in_4bit"])?;
    let method = match section.text("quant_method")? {
        Some(method) => method,
        None if in_4_bit || in_8_bit => "bitsandbytes".to_owned(),
        None => match section.text("quant_algo")? {
            Some(algorithm) => algorithm,
            None => {
                let names: Vec<&str> = section.object().keys().map(String::as_str).collect();
                let found = format!("nothing beside {}", names.join(", "));
                return Err(section.error("quant_method", SUPPORTED, found));
            }
        },
    };
    if method != "bitsandbytes" {
        return Err(section.error("quant_method", SUPPORTED, format!("`{method}`")));
    }
    if in_8_bit {
        return Err(section.error("load_in_8bit", SUPPORTED, "true (LLM.int8)"));
    }
    let kind = section.text("bnb_4bit_quant_type")?;
    match kind.as_deref() {
        Some("nf4") | None => Ok(()),
        Some(other) => Err(section.error("bnb_4bit_quant_type", SUPPORTED, format!("`{other}`"))),
    }
}
