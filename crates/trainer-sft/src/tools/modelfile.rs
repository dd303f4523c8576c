//! The Modelfile of Ollama: which files, which template, and how to sample.
//!
//! Source: `docs/modelfile.md` and `docs/template.md` of Ollama. Its templates are Go's, so that a chat template is told apart
//! by what it renders.

use std::path::Path;

use model_qwen::{ChatTemplate, GenerationConfig, RenderOptions, Tokenizer};
use serde_json::{Value, json};

use super::error::ToolError;

/// ChatML: every message between the same marks.
const CHATML: &str = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n";

/// DeepSeek-R1: marks before messages, and one after answers.
const DEEPSEEK: &str = "{{- range .Messages }}{{ if eq .Role \"user\" }}<｜User｜>{{ .Content }}{{ else if eq .Role \"assistant\" }}<｜Assistant｜>{{ .Content }}<｜end▁of▁sentence｜>{{ else }}{{ .Content }}{{ end }}{{ end }}<｜Assistant｜>";

/// A template that Ollama can have, too.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    template: String,
    /// The system prompt of chats that have none.
    system: Option<String>,
}

/// The text of the Modelfile of the model in `dir`, which lies in `model_file`.
pub(super) fn modelfile(
    dir: &Path,
    model_file: &str,
    adapter_file: Option<&str>,
) -> Result<String, ToolError> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    let template = ChatTemplate::from_dir(dir)?;
    let mut lines = vec![format!("FROM ./{model_file}")];
    lines.extend(adapter_file.map(|file| format!("ADAPTER ./{file}")));
    match template.as_ref().and_then(known) {
        Some(known) => {
            lines.push(format!("TEMPLATE \"\"\"{}\"\"\"", known.template));
            let system = known.system.iter();
            lines.extend(system.map(|system| format!("SYSTEM \"\"\"{system}\"\"\"")));
        }
        None => tracing::warn!(
            "{}: the chat template is neither ChatML nor that of DeepSeek-R1, and the Modelfile has no TEMPLATE: write one, \
             or Ollama takes what it finds in the GGUF file",
            dir.display()
        ),
    }
    let generation = GenerationConfig::from_dir(dir, &tokenizer, template.as_ref())?;
    lines.extend(parameters(&generation));
    let ends = generation.eos_token_ids.iter();
    let ends = ends.filter_map(|id| tokenizer.id_to_token(*id));
    lines.extend(ends.map(|end| format!("PARAMETER stop {end:?}")));
    Ok(lines.join("\n") + "\n")
}

fn parameters(generation: &GenerationConfig) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("PARAMETER {name} {value}")));
    };
    let temperature = match generation.do_sample {
        Some(false) => Some("0".to_owned()),
        _ => generation.temperature.map(|value| value.to_string()),
    };
    add("temperature", temperature);
    add("top_p", generation.top_p.map(|value| value.to_string()));
    add("top_k", generation.top_k.map(|value| value.to_string()));
    add("min_p", generation.min_p.map(|value| value.to_string()));
    let penalty = generation.repetition_penalty;
    add("repeat_penalty", penalty.map(|value| value.to_string()));
    let limit = generation.max_new_tokens.filter(|limit| *limit > 0);
    add("num_predict", limit.map(|limit| limit.to_string()));
    lines
}

/// Ollama's template for the same chats; `None` where there is none.
fn known(template: &ChatTemplate) -> Option<Known> {
    let chat = [
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": "One?"}),
        json!({"role": "assistant", "content": "Two."}),
        json!({"role": "user", "content": "Three?"}),
    ];
    let options = RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    };
    // A template that refuses such a chat is none of these.
    let render = |messages: &[Value]| template.render(messages, &options).ok();
    let whole = render(&chat)?;
    let (plain, alone) = (render(&chat[1..])?, render(&chat[1..2])?);
    let chatml = |messages: &[Value]| {
        let marked = messages.iter().map(|message| {
            let text = |field: &str| message[field].as_str().unwrap_or_default();
            format!(
                "<|im_start|>{}\n{}<|im_end|>\n",
                text("role"),
                text("content")
            )
        });
        marked.collect::<String>() + "<|im_start|>assistant\n"
    };
    if whole == chatml(&chat) {
        let system = alone
            .strip_prefix("<|im_start|>system\n")
            .and_then(|rest| rest.split_once("<|im_end|>\n"))
            .map(|(system, _)| system.to_owned());
        let with_system = |messages: &[Value]| match &system {
            None => chatml(messages),
            Some(system) => {
                let first = json!({"role": "system", "content": system});
                chatml(&[&[first], messages].concat())
            }
        };
        let is_same = alone == with_system(&chat[1..2]) && plain == with_system(&chat[1..]);
        return is_same.then(|| Known {
            template: CHATML.to_owned(),
            system,
        });
    }
    let start = template.special_tokens().get("bos_token");
    let start = start.and_then(Value::as_str).unwrap_or_default();
    let deepseek = format!(
        "{start}Be brief.<｜User｜>One?<｜Assistant｜>Two.<｜end▁of▁sentence｜><｜User｜>Three?<｜Assistant｜>"
    );
    let alone_expected = format!("{start}<｜User｜>One?<｜Assistant｜>");
    let think = whole.strip_prefix(&deepseek);
    think
        .filter(|think| alone.strip_prefix(&alone_expected) == Some(think))
        .map(|think| Known {
            template: format!("{DEEPSEEK}{think}"),
            system: None,
        })
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    #[test]
    fn a_limit_of_the_model_is_ollamas_too() {
        for (max_new_tokens, expected) in [
            (Some(20), vec!["PARAMETER num_predict 20".to_owned()]),
            (Some(0), Vec::new()),
            (None, Vec::new()),
        ] {
            let generation = GenerationConfig {
                max_new_tokens,
                ..GenerationConfig::default()
            };
            assert_eq!(parameters(&generation), expected);
        }
    }

    fn of(golden: &str) -> Option<Known> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../data/golden/chat_template")
            .join(golden);
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let source = golden["template"].as_str().unwrap();
        let tokens = golden["special_tokens"].as_object().cloned();
        let template = ChatTemplate::from_source(source, tokens.unwrap_or_default()).unwrap();
        known(&template)
    }

    #[test]
    fn templates_are_told_apart_by_what_they_render() {
        let chatml = of("qwen2_5.json").unwrap();
        assert_eq!(chatml.template, CHATML);
        let system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
        assert_eq!(chatml.system.as_deref(), Some(system));
        let qwen3 = of("qwen3.json").unwrap();
        assert_eq!((qwen3.template.as_str(), qwen3.system), (CHATML, None));
        let deepseek = of("deepseek_r1_distill_qwen.json").unwrap();
        assert_eq!(deepseek.template, format!("{DEEPSEEK}<think>\n"));
        let other = ChatTemplate::from_source("{{ messages[0].content }}", Map::new()).unwrap();
        assert_eq!(known(&other), None);
        // ChatML, but a chat has to begin with instructions.
        let source = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}\
            {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
        let strict = ChatTemplate::from_source(source, Map::new()).unwrap();
        assert_eq!(known(&strict), None);
    }
}
