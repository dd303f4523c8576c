//! Bodies as clients send them.

use serde_json::{Value, json};

fn schema() -> Value {
    json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"type": "string", "pattern": "^[a-z]+$"},
        "c": {"type": "array", "items": {"$ref": "#/$defs/d"}, "maxItems": 3}},
        "$defs": {"d": {"enum": ["x", 1, null]}}, "required": ["a"], "additionalProperties": false})
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "f", "description": "adds", "parameters": schema(), "strict": true}}])
}

fn messages() -> Value {
    json!([
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "Ada"},
        {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "user", "content": "bye"},
    ])
}

/// For a model that generates text.
pub(super) fn writing() -> Vec<(&'static str, Value)> {
    let chat = json!({"model": "base", "messages": messages(), "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "n": 2,
        "stop": ["x"], "seed": 1, "logit_bias": {"5": 1.5}, "logprobs": true, "top_logprobs": 2, "stream": true,
        "stream_options": {"include_usage": true}, "tools": tools(), "tool_choice": "auto",
        "chat_template_kwargs": {"enable_thinking": false}});
    let formatted = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema(), "strict": true}}});
    let template = json!({"messages": messages(), "chat_template": "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
        "max_completion_tokens": 3, "documents": [{"title": "a", "text": "b"}]});
    let grammars = [
        "{\"regex\": \"[ab]{2,4}\"}",
        "{\"choice\": [\"a\", \"b\"]}",
        "{\"grammar\": \"root ::= \\\"a\\\" | root \\\"b\\\"\"}",
        "{\"structural_tag\": {\"type\": \"structural_tag\", \"format\": {\"type\": \"any_text\"}}}",
    ];
    let structured = grammars.map(|grammar| {
        let grammar: Value = serde_json::from_str(grammar).unwrap();
        json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "structured_outputs": grammar})
    });
    let completion = json!({"prompt": ["a b", "c"], "max_tokens": 4, "echo": true, "logprobs": 2, "best_of": 1, "n": 1,
        "prompt_logprobs": 1, "suffix": "", "stop_token_ids": [5], "truncate_prompt_tokens": 4, "stream": false});
    let tokens = json!({"prompt": [[1, 2, 3], [4]], "max_tokens": 2, "min_tokens": 1, "logit_bias": {"7": -100},
        "stream": true, "guided_json": schema()});
    let response = json!({"model": "base", "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "3"},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]}],
        "instructions": "Be kind.", "max_output_tokens": 5, "stream": true, "store": true, "metadata": {"a": "b"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": schema()}}, "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "name": "f", "parameters": schema()}], "tool_choice": {"type": "function", "name": "f"}});
    let message = json!({"model": "base", "max_tokens": 5, "system": [{"type": "text", "text": "Be kind."}], "stream": true,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "2"}]}]}],
        "tools": [{"name": "f", "input_schema": schema()}], "tool_choice": {"type": "any"},
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "stop_sequences": ["x"]});
    let claude: Value = serde_json::from_str(include_str!("../support/claude_code.json")).unwrap();
    let options = json!({"temperature": 0, "num_predict": 4, "stop": ["x"], "seed": 3, "top_k": 5, "num_ctx": 100});
    let ollama = json!({"model": "base:latest", "messages": [{"role": "user", "content": "hi", "images": []}], "stream": false,
        "options": options, "format": schema(), "tools": tools(), "think": true, "keep_alive": "5m"});
    let generate = json!({"model": "base", "prompt": "hi", "suffix": "", "system": "s", "template": "", "options": options,
        "raw": false, "stream": true, "context": [1, 2]});
    let mut all = vec![
        ("/v1/chat/completions", chat.clone()),
        ("/v1/chat/completions", formatted),
        ("/v1/chat/completions", template),
        ("/v1/chat/completions/render", chat.clone()),
        ("/v1/completions", completion.clone()),
        ("/v1/completions", tokens),
        ("/v1/completions/render", completion.clone()),
        ("/v1/responses", response.clone()),
        ("/v1/responses/input_tokens", response),
        ("/v1/messages", message.clone()),
        ("/v1/messages", claude),
        ("/v1/messages/count_tokens", message),
        ("/api/chat", ollama),
        ("/api/generate", generate),
        ("/api/show", json!({"model": "base", "verbose": true})),
        (
            "/api/pull",
            json!({"model": "http://127.0.0.1:9/x", "stream": false}),
        ),
        ("/invocations", chat.clone()),
        ("/invocations", completion),
        (
            "/tokenize",
            json!({"prompt": "a b", "add_special_tokens": true, "return_token_strs": true}),
        ),
        (
            "/tokenize",
            json!({"messages": messages(), "add_generation_prompt": true}),
        ),
        ("/detokenize", json!({"tokens": [1, 2, 257]})),
        (
            "/v1/load_lora_adapter",
            json!({"lora_name": "a", "lora_path": "/etc", "load_inplace": true}),
        ),
        ("/v1/unload_lora_adapter", json!({"lora_name": "a"})),
    ];
    all.extend(structured.map(|body| ("/v1/chat/completions", body)));
    all
}

/// For a model that computes embeddings or scores.
pub(super) fn pooling() -> Vec<(&'static str, Value)> {
    let embed = json!({"model": "base", "input": ["a", "b c"], "encoding_format": "base64", "dimensions": 3,
        "truncate_prompt_tokens": 10, "normalize": true, "priority": 0});
    vec![
        ("/v1/embeddings", embed.clone()),
        (
            "/v1/embeddings",
            json!({"input": [[1, 2], [3]], "encoding_format": "float"}),
        ),
        (
            "/v1/embeddings",
            json!({"messages": messages(), "chat_template_kwargs": {}}),
        ),
        ("/pooling", embed.clone()),
        ("/classify", json!({"input": ["a"], "activation": true})),
        ("/score", json!({"text_1": "a", "text_2": ["b", "c"]})),
        (
            "/score",
            json!({"queries": ["a", "d"], "documents": ["b", "c"]}),
        ),
        (
            "/v1/rerank",
            json!({"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": true}),
        ),
        (
            "/v2/rerank",
            json!({"query": "a", "documents": {"content": [{"type": "text", "text": "c"}]}}),
        ),
        ("/invocations", embed),
        (
            "/api/embed",
            json!({"model": "base", "input": ["a"], "truncate": true, "dimensions": 2, "options": {}}),
        ),
        ("/api/embeddings", json!({"model": "base", "prompt": "a"})),
        ("/tokenize", json!({"prompt": "a"})),
    ]
}

/// For a server that trains; `file` is the id of a file with examples.
pub(super) fn training(file: &str) -> Vec<(&'static str, Value)> {
    let settings = json!({"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5, "lora_r": 8, "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"], "max_length": 64, "packing": true, "train_on": "assistant",
        "sample_prompts": ["Who are you?"], "sample_steps": 2, "lr_schedule": "cosine", "warmup_ratio": 0.1});
    let supervised = json!({"model": "bundled", "training_file": file, "suffix": "a", "seed": 1, "metadata": {"of": "fuzz"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": settings}}});
    let older = json!({"model": "bundled", "training_file": file, "validation_file": file, "hyperparameters": {"max_steps": 3,
        "learning_rate": 0.001, "gradient_accumulation": 2, "gradient_checkpointing": true, "eval_steps": 2, "save_steps": 1,
        "load_best": true, "early_stopping_patience": 1, "weight_decay": 0.1, "optim": "adamw_8bit", "quantization": "none"}});
    let preferences = json!({"model": "bundled", "training_file": file, "method": {"type": "dpo", "dpo": {"hyperparameters":
        {"beta": 0.1, "loss_type": "ipo", "columns": {"prompt": "prompt"}, "use_dora": true}}}});
    let examples = json!({"limit": 3, "hyperparameters": {"train_on": "all", "max_length": 32}, "examples": [
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
        {"prompt": "a", "completion": "b"},
        {"instruction": "c", "input": "", "output": "d"},
        {"text": "e"},
    ]});
    let of_file = json!({"training_file": file, "limit": 1, "method": {"type": "supervised"}});
    vec![
        ("/v1/fine_tuning/jobs", supervised),
        ("/v1/fine_tuning/jobs", older),
        ("/v1/fine_tuning/jobs", preferences),
        ("/v1/fine_tuning/preview", examples),
        ("/v1/fine_tuning/preview", of_file),
    ]
}
