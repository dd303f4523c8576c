//! Fill in the middle, for a model that has the tokens.

use server::engine::GenerateRequest;

use super::*;

const FIM_TOKENS: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
const BEFORE: &str = "def f():";
const BEHIND: &str = "return x";

fn start_filling(script: impl Fn(&GenerateRequest) -> Play + Send + 'static) -> TestServer {
    TestServer::start_with_tokens(&[], &FIM_TOKENS, script)
}

/// The prompt for what is between two texts.
fn fim_prompt() -> Vec<u32> {
    let [before, between, behind] = [258, 259, 260];
    let mut prompt = vec![before];
    prompt.extend(bytes(BEFORE));
    prompt.push(between);
    prompt.extend(bytes(BEHIND));
    prompt.push(behind);
    prompt
}

#[test]
fn a_suffix_is_what_comes_behind_the_answer() {
    // The model ends what it writes with a token of another gap.
    let written = || Play::Tokens(bytes("x = 1").chain([258]).collect(), FinishReason::Stop);
    let server = start_filling(move |_| written());
    let body = json!({ "prompt": BEFORE, "suffix": BEHIND, "max_tokens": 9 });
    let answer = server.complete(body.clone()).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "x = 1");
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &Value::Null)
    );
    let request = server.last_request();
    assert_eq!(request.prompt, fim_prompt());
    for end in [IM_END, 258, 259, 260] {
        assert!(request.stop_token_ids.contains(&end), "{end}");
    }
    // The same by Ollama's API.
    let body = json!({ "model": "base", "prompt": BEFORE, "suffix": BEHIND, "stream": false });
    let answer = server.post("/api/generate", &body).json();
    assert_eq!(answer["response"], "x = 1");
    let same = server.last_request();
    assert_eq!(
        (same.prompt, same.stop_token_ids),
        (fim_prompt(), request.stop_token_ids)
    );
    let show = server.post("/api/show", &json!({ "model": "base" })).json();
    let capabilities = show["capabilities"].as_array().unwrap();
    assert!(capabilities.contains(&json!("insert")), "{capabilities:?}");
}

#[test]
fn tokens_of_a_gap_end_no_text_that_ignores_ends() {
    let server = start_filling(|_| Play::Tokens(bytes("x").collect(), FinishReason::Stop));
    for (ignores, num) in [(false, 3), (true, 0)] {
        let body = json!({ "prompt": BEFORE, "suffix": BEHIND, "ignore_eos": ignores });
        server.complete(body).json();
        let stops = server.last_request().stop_token_ids;
        let found = [258, 259, 260].iter().filter(|id| stops.contains(id));
        assert_eq!(found.count(), num);
    }
}

#[test]
fn a_suffix_goes_with_choices_prompts_and_log_probabilities() {
    let server = start_filling(|_| says("ab"));
    let body = json!({ "prompt": [BEFORE, "x"], "suffix": BEHIND, "n": 2, "logprobs": 1, "prompt_logprobs": 0 });
    let answer = server.complete(body).json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for choice in choices {
        assert_eq!(choice["text"], "ab");
        assert_eq!(choice["logprobs"]["tokens"][0], "a");
    }
    let prompts: Vec<Vec<u32>> = {
        let seen = server.seen.lock().unwrap();
        let requests = seen.requests.iter();
        requests.map(|request| request.prompt.clone()).collect()
    };
    assert_eq!((&prompts[0], &prompts[1]), (&fim_prompt(), &fim_prompt()));
    assert_eq!((prompts[2][1], prompts[2][2]), (u32::from(b'x'), 259));
    // A gap at the beginning of a text.
    let body = json!({ "prompt": "", "suffix": BEHIND });
    let headers = ["content-type: application/json"];
    let answer = server.raw("POST", "/v1/completions", &headers, &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(server.last_request().prompt[..2], [258, 259]);
}

#[test]
fn what_has_no_meaning_beside_a_suffix_is_refused() {
    let server = start_filling(|_| says("x"));
    for (extra, param) in [
        (json!({ "echo": true }), "echo"),
        (
            json!({ "truncate_prompt_tokens": 5 }),
            "truncate_prompt_tokens",
        ),
        (json!({ "prompt": [1, 2] }), "prompt"),
        (json!({ "prompt": [[1], [2]] }), "prompt[0]"),
        (json!({ "suffix": 5 }), "suffix"),
    ] {
        let mut body = json!({ "prompt": BEFORE, "suffix": BEHIND });
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let answer = server.complete(body);
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, error["param"].as_str()),
            (400, Some(param)),
            "{error}"
        );
    }
    let without = TestServer::start(|_| says("x"));
    let answer = without.complete(json!({ "suffix": BEHIND }));
    assert_eq!(answer.status, 400);
    assert!(
        answer
            .text
            .contains("the model has no token <|fim_prefix|>")
    );
}
