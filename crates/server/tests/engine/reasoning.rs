//! A budget of reasoning, with a model that has tokens for its tags.

use serde_json::{Value, json};

use crate::client::Server;
use crate::model::TestModel;

/// Makes the last two tokens of the vocabulary tags of reasoning, and gives their ids.
fn with_tags(model: &TestModel) -> [u64; 2] {
    let path = model.dir().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let mut ids = [0, 0];
    for (tag, place) in ["</think>", "<think>"].into_iter().zip([1, 0]) {
        let bpe = tokenizer["model"].as_object_mut().unwrap();
        bpe["merges"].as_array_mut().unwrap().pop();
        let vocab = bpe["vocab"].as_object_mut().unwrap();
        let (name, id) = vocab
            .iter()
            .map(|(name, id)| (name.clone(), id.as_u64().unwrap()))
            .max_by_key(|(_, id)| *id)
            .unwrap();
        vocab.remove(&name);
        ids[place] = id;
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let token = json!({ "id": id, "content": tag, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true });
        // The tokenizer counts in the order of the list.
        added.insert(added.len() - (1 - place), token);
    }
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    ids
}

#[test]
fn reasoning_ends_when_its_budget_is_spent() {
    let model = TestModel::new();
    let [_, end] = with_tags(&model);
    let server = Server::start(&model, &["--reasoning-parser", "deepseek_r1"]);
    let answer = |budget: Value| {
        let body = json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 24, "temperature": 0,
            "ignore_eos": true, "return_token_ids": true, "thinking_token_budget": budget });
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let ids = |answer: &Value| -> Vec<u64> {
        let ids = answer["choices"][0]["token_ids"].as_array().unwrap();
        ids.iter().map(|id| id.as_u64().unwrap()).collect()
    };
    // The random model does not end it.
    let free = answer(json!(null));
    assert!(!ids(&free).contains(&end));
    assert_eq!(ids(&free).len(), 24);
    for budget in [1, 7] {
        let bound = answer(json!(budget));
        let found = ids(&bound);
        assert_eq!(found[..budget], ids(&free)[..budget]);
        assert_eq!((found[budget], found.len()), (end, 24));
        let content = &bound["choices"][0]["message"]["content"];
        assert!(!content.as_str().unwrap().is_empty());
        let details = &bound["usage"]["completion_tokens_details"];
        let num = details["reasoning_tokens"].as_u64().unwrap() as usize;
        assert!((budget..=budget + 1).contains(&num), "{num}");
    }
}
