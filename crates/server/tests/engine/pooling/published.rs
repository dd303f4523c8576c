//! Folders in the layouts of Qwen3-Embedding and Qwen3-Reranker, and what transformers computes with them
//! (`xtask/golden/published.py`).

use super::*;

#[test]
fn embedding_models_are_read_as_they_are_published() {
    for case in ["published/embedding", "published/sharded"] {
        let expected = expected(case);
        let vectors: Vec<Vec<f64>> = expected["embeddings"]
            .as_array()
            .unwrap()
            .iter()
            .map(numbers)
            .collect();
        // config.json says `Qwen3ForCausalLM`: what the folder is for is in modules.json.
        let server = Server::start_in(&golden(case), &[]);
        for input in ["texts", "tokens"] {
            let found = embed(&server, &json!({ "input": expected[input] }));
            assert_eq!(found.len(), vectors.len());
            for (found, expected) in found.iter().zip(&vectors) {
                check(found, expected);
            }
        }
        // The model is one of Matryoshka: its first values are a vector.
        let body = json!({ "input": expected["texts"][0], "dimensions": 8 });
        let short = embed(&server, &body).remove(0);
        let norm = vectors[0][..8].iter().map(|x| x * x).sum::<f64>().sqrt();
        let scaled: Vec<f64> = vectors[0][..8].iter().map(|x| x / norm).collect();
        check(&short, &scaled);
    }
}

#[test]
fn rerankers_are_read_as_they_are_published() {
    for case in ["published/reranker", "published/reranker_head"] {
        let expected = expected(case);
        let pairs = expected["pairs"].as_array().unwrap();
        let side = |i: usize| -> Vec<&Value> { pairs.iter().map(|pair| &pair[i]).collect() };
        let server = Server::start_in(&golden(case), &["--hf-overrides", RERANKER]);
        let body = json!({ "text_1": side(0), "text_2": side(1) });
        let (status, answer) = server.post("/score", &body);
        assert_eq!(status, 200, "{answer}");
        let found = column(&answer, "data", "score");
        let found: Vec<f64> = found.iter().map(|score| score.as_f64().unwrap()).collect();
        check(&found, &numbers(&expected["scores"]));
        // Without the overrides the folder is a model of texts.
        let server = Server::start_in(&golden(case), &[]);
        let body = json!({ "prompt": "x", "max_tokens": 2 });
        assert_eq!(server.post("/v1/completions", &body).0, 200);
    }
}

#[test]
fn a_reranker_with_a_head_of_its_own_is_a_classifier() {
    let expected = expected("published/classifier");
    let server = Server::start_in(&golden("published/classifier"), &[]);
    let (status, answer) = server.post("/classify", &json!({ "input": expected["texts"] }));
    assert_eq!(status, 200, "{answer}");
    let found = column(&answer, "data", "probs");
    let found: Vec<f64> = found.into_iter().flat_map(numbers).collect();
    check(&found, &numbers(&expected["scores"]));
}
