//! What a folder says of embeddings and scores: whether its model is for these, and how hidden states become one vector.
//!
//! Sources: `modules.json` and its folders as sentence-transformers writes them, and `architectures` of `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json_file::{JsonFile, JsonFileError};
use crate::modules::{MODULES as MODULES_FILE, read_modules};

/// What a model ends with, as `architectures` in `config.json` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// lm_head: the next token.
    CausalLm,
    /// Nothing: hidden states.
    Base,
    /// A score.
    Classifier,
}

impl Architecture {
    /// The one that a class of transformers has: `Qwen3Model`, say.
    pub fn of_class(class: &str) -> Self {
        if class.ends_with("ForSequenceClassification") {
            Self::Classifier
        } else if class.ends_with("Qwen2Model") || class.ends_with("Qwen3Model") {
            Self::Base
        } else {
            Self::CausalLm
        }
    }

    /// What the `config.json` of a folder says.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of(dir: &Path) -> Result<Self, JsonFileError> {
        let config = JsonFile::read(dir.join("config.json"))?;
        let classes = config.get("architectures").and_then(Value::as_array);
        let classes = classes.into_iter().flatten().filter_map(Value::as_str);
        let kinds = classes.map(Self::of_class);
        Ok(kinds.reduce(|first, _| first).unwrap_or(Self::CausalLm))
    }
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolingType {
    /// The last token's.
    #[default]
    Last,
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
}

/// The tokens of which a score is the difference of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreTokens {
    /// `yes`.
    pub positive: u32,
    /// `no`; without it the score is the logit of `positive`.
    pub negative: Option<u32>,
}

/// A folder that sentence-transformers wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentenceTransformer {
    /// How hidden states are pooled.
    pub pooling: PoolingType,
    /// Whether vectors have length 1.
    pub normalize: bool,
    /// Tokens of which the score of a cross-encoder is made.
    pub score: Option<ScoreTokens>,
    /// Longest text in tokens.
    pub max_seq_length: Option<usize>,
    /// Whether texts are lower-cased first.
    pub do_lower_case: bool,
}

impl SentenceTransformer {
    /// Reads `modules.json` and what it names; `None` in a folder without that file.
    ///
    /// # Errors
    /// When a file is unreadable, or names a module or a way of pooling that is not computed.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, JsonFileError> {
        let Some(modules) = read_modules(dir)? else {
            return Ok(None);
        };
        let mut found = Self::default();
        for (i, module) in modules.iter().enumerate() {
            let config = || {
                let path = dir.join(&module.path).join("config.json");
                match path.exists() {
                    true => JsonFile::read(path),
                    false => Err(JsonFileError::File {
                        path,
                        reason: "this file is missing, and modules.json names its folder"
                            .to_owned(),
                    }),
                }
            };
            match module.r#type.rsplit('.').next().unwrap_or_default() {
                "Transformer" if module.path.is_empty() => {}
                "Pooling" => found.pooling = pooling(&config()?)?,
                "Normalize" => found.normalize = true,
                "LogitScore" => found.score = Some(score_tokens(&config()?)?),
                _ => {
                    return Err(JsonFileError::Field {
                        path: dir.join(MODULES_FILE),
                        field: format!("[{i}].type"),
                        expected:
                            "Transformer (in the folder itself), Pooling, Normalize or LogitScore"
                                .to_owned(),
                        found: format!("`{}` in `{}`", module.r#type, module.path),
                    });
                }
            }
        }
        let limits = JsonFile::read_optional(dir.join("sentence_bert_config.json"))?;
        found.max_seq_length = limits.top().positive("max_seq_length")?;
        let prompts = JsonFile::read_optional(dir.join("config_sentence_transformers.json"))?;
        if let Some(name) = prompts.top().text("default_prompt_name")? {
            let path = prompts.path().display();
            tracing::warn!(
                "{path}: the prompt `{name}` is not put before texts: write it into them"
            );
        }
        found.do_lower_case = limits.top().boolean("do_lower_case")?.unwrap_or(false);
        Ok(Some(found))
    }
}

/// The one mode that `1_Pooling/config.json` turns on: as a switch for each mode, or as `pooling_mode`.
fn pooling(config: &JsonFile) -> Result<PoolingType, JsonFileError> {
    let top = config.top();
    let mut modes = Vec::new();
    for name in config.names() {
        if let Some(mode) = name.strip_prefix("pooling_mode_")
            && top.boolean(name)? == Some(true)
        {
            modes.push(mode.to_owned());
        }
    }
    modes.extend(top.text("pooling_mode")?);
    let modes: Vec<&str> = modes.iter().map(String::as_str).collect();
    match modes.as_slice() {
        ["lasttoken"] => Ok(PoolingType::Last),
        ["mean" | "mean_tokens"] => Ok(PoolingType::Mean),
        ["cls" | "cls_token"] => Ok(PoolingType::Cls),
        _ => {
            let expected = "one of `lasttoken`, `mean` and `cls`";
            Err(top.error("pooling_mode", expected, format!("{modes:?}")))
        }
    }
}

fn score_tokens(config: &JsonFile) -> Result<ScoreTokens, JsonFileError> {
    let top = config.top();
    let id = |field| Ok(top.token_ids(field)?.first().copied());
    let positive = id("true_token_id")?;
    Ok(ScoreTokens {
        positive: positive.ok_or_else(|| top.error("true_token_id", "a token id", "nothing"))?,
        negative: id("false_token_id")?,
    })
}

/// Tokens of a score that `config.json` names, as vLLM reads it: `["no", "yes"]`.
///
/// # Errors
/// When the file cannot be read, or the field is no list of texts.
pub fn classifier_from_token(dir: &Path) -> Result<Option<Vec<String>>, JsonFileError> {
    let config = JsonFile::read(dir.join("config.json"))?;
    let texts = |value: &Value| {
        let texts = value.as_array()?.iter();
        texts.map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let top = config.top();
    top.read("classifier_from_token", "a list of tokens", texts)
}

/// What the logits of a classifier mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProblemType {
    /// One of the classes is right: softmax. Of a single class the logit says how right it is: sigmoid.
    #[default]
    SingleLabel,
    /// Each class is right or not: sigmoid.
    MultiLabel,
    /// They are numbers.
    Regression,
}

/// The classes of a classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Their names; one that `id2label` leaves out has none.
    pub names: Vec<Option<String>>,
    /// What their logits mean.
    pub problem_type: ProblemType,
}

/// The `num` classes of a classifier, as `id2label` and `problem_type` in `config.json` have them: without the first,
/// transformers calls them `LABEL_0` and so on.
///
/// # Errors
/// When the file cannot be read, a field has another form, or `num_labels` or the number of names is another one.
pub fn labels(dir: &Path, num: usize) -> Result<Labels, JsonFileError> {
    let config = JsonFile::read(dir.join("config.json"))?;
    let top = config.top();
    if let Some(given) = top.positive("num_labels")?
        && given != num
    {
        let expected = format!("{num}, the number of rows of score.weight");
        return Err(top.error("num_labels", &expected, given));
    }
    let names = top.read("id2label", "an object", |value| {
        value.as_object().map(Map::len)
    })?;
    if let Some(given) = names.filter(|given| *given != num) {
        let expected = format!("{num} names, one for each row of score.weight");
        return Err(top.error("id2label", &expected, given));
    }
    let problem_type = match top.text("problem_type")?.as_deref() {
        None | Some("single_label_classification") => ProblemType::SingleLabel,
        Some("multi_label_classification") => ProblemType::MultiLabel,
        Some("regression") => ProblemType::Regression,
        Some(other) => {
            let expected = "single_label_classification, multi_label_classification or regression";
            return Err(top.error("problem_type", expected, format!("`{other}`")));
        }
    };
    Ok(Labels {
        names: label_names(dir, num)?,
        problem_type,
    })
}

/// The names of `num` classes, as [`labels`] has them.
///
/// # Errors
/// When the file cannot be read, or the field is no object of texts.
pub fn label_names(dir: &Path, num: usize) -> Result<Vec<Option<String>>, JsonFileError> {
    let config = JsonFile::read(dir.join("config.json"))?;
    let all = |value: &Value| {
        let labels = value.as_object()?;
        let is_text = labels.values().all(Value::is_string);
        is_text.then(|| labels.clone())
    };
    let found = config.top().read("id2label", "an object of texts", all)?;
    let name = |i: usize| match &found {
        Some(labels) => {
            let label = labels.get(&i.to_string());
            label.and_then(Value::as_str).map(str::to_owned)
        }
        None => Some(format!("LABEL_{i}")),
    };
    Ok((0..num).map(name).collect())
}

/// Where the weights of a score come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreHead {
    /// `score.weight`, with a row for each label.
    Label,
    /// Rows of lm_head.
    Tokens(ScoreTokens),
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    const MODULES: &str = r#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;

    #[test]
    fn modules_say_how_to_pool() {
        let last = r#"{"word_embedding_dimension": 8, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true, "include_prompt": true}"#;
        let limits = r#"{"max_seq_length": 512, "do_lower_case": false}"#;
        let dir = folder(&[
            ("modules.json", MODULES),
            ("1_Pooling/config.json", last),
            ("sentence_bert_config.json", limits),
        ]);
        let found = SentenceTransformer::from_dir(dir.path()).unwrap().unwrap();
        let expected = SentenceTransformer {
            normalize: true,
            max_seq_length: Some(512),
            ..SentenceTransformer::default()
        };
        assert_eq!(found, expected);
        for (mode, expected) in [
            (r#"{"pooling_mode_mean_tokens": true}"#, PoolingType::Mean),
            (r#"{"pooling_mode": "cls"}"#, PoolingType::Cls),
        ] {
            let dir = folder(&[("modules.json", MODULES), ("1_Pooling/config.json", mode)]);
            let found = SentenceTransformer::from_dir(dir.path()).unwrap().unwrap();
            assert_eq!(found.pooling, expected);
        }
        let none = folder(&[]);
        assert_eq!(SentenceTransformer::from_dir(none.path()).unwrap(), None);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let error = |files: &[(&str, &str)]| {
            let dir = folder(files);
            SentenceTransformer::from_dir(dir.path())
                .unwrap_err()
                .to_string()
        };
        let two = r#"{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}"#;
        let found = error(&[("modules.json", MODULES), ("1_Pooling/config.json", two)]);
        assert!(
            found.contains("`pooling_mode`") && found.contains("max_tokens"),
            "{found}"
        );
        let found = error(&[("modules.json", MODULES)]);
        assert!(
            found.contains("1_Pooling/config.json: this file is missing"),
            "{found}"
        );
        let dense = r#"[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#;
        let found = error(&[("modules.json", dense)]);
        assert!(
            found.contains("`[0].type`") && found.contains("Dense"),
            "{found}"
        );
        assert!(error(&[("modules.json", "{}")]).contains("a list of modules"));
    }

    #[test]
    fn classes_have_the_names_that_the_folder_gives_them() {
        let read = |config: &str, num| labels(folder(&[("config.json", config)]).path(), num);
        let names = |config: &str, num| {
            let names = read(config, num).unwrap().names.into_iter();
            names.map(Option::unwrap_or_default).collect::<Vec<_>>()
        };
        assert_eq!(names("{}", 2), ["LABEL_0", "LABEL_1"]);
        let named = r#"{"id2label": {"1": "bad", "0": "good"}, "num_labels": 2}"#;
        assert_eq!(names(named, 2), ["good", "bad"]);
        assert_eq!(names(r#"{"id2label": {"1": "bad"}}"#, 1), [""]);
        for (problem, expected) in [
            ("null", ProblemType::SingleLabel),
            ("\"single_label_classification\"", ProblemType::SingleLabel),
            ("\"multi_label_classification\"", ProblemType::MultiLabel),
            ("\"regression\"", ProblemType::Regression),
        ] {
            let config = format!("{{\"problem_type\": {problem}}}");
            assert_eq!(read(&config, 1).unwrap().problem_type, expected);
        }
        for (wrong, field) in [
            (r#"{"id2label": ["good"]}"#, "`id2label`"),
            (r#"{"id2label": {"0": 5}}"#, "`id2label`"),
            (r#"{"num_labels": 3}"#, "`num_labels`"),
            (r#"{"id2label": {"0": "a"}}"#, "`id2label`"),
            (
                r#"{"id2label": {"0": "a", "1": "b", "2": "c"}}"#,
                "`id2label`",
            ),
            (r#"{"problem_type": "ranking"}"#, "`problem_type`"),
        ] {
            let error = read(wrong, 2).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_class_says_what_a_model_ends_with() {
        for (class, expected) in [
            ("Qwen3ForCausalLM", Architecture::CausalLm),
            ("Qwen3Model", Architecture::Base),
            ("Qwen2ForSequenceClassification", Architecture::Classifier),
        ] {
            assert_eq!(Architecture::of_class(class), expected);
        }
    }
}
