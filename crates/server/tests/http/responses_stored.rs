//! `/v1/responses`: what is kept of answers.

use super::responses::{last_prompt, respond};
use super::*;

#[test]
fn a_conversation_goes_on_after_a_response() {
    let server = TestServer::start(|_| says("a"));
    let first = respond(&server, json!({ "input": "1", "instructions": "i" })).json();
    let second = respond(
        &server,
        json!({ "input": "2", "previous_response_id": first["id"] }),
    )
    .json();
    assert_eq!(second["previous_response_id"], first["id"]);
    // Instructions are of one response.
    assert_eq!(last_prompt(&server), "u:1;a:a;u:2;");
    respond(
        &server,
        json!({ "input": "3", "previous_response_id": second["id"], "stream": true }),
    );
    assert_eq!(last_prompt(&server), "u:1;a:a;u:2;a:a;u:3;");
    // Two conversations may have one beginning.
    respond(
        &server,
        json!({ "input": "4", "previous_response_id": first["id"] }),
    );
    assert_eq!(last_prompt(&server), "u:1;a:a;u:4;");
    let reference = json!([{ "role": "user", "content": "5" }, { "type": "item_reference", "id": first["output"][0]["id"] },
        { "role": "user", "content": "6" }]);
    respond(&server, json!({ "input": reference }));
    assert_eq!(last_prompt(&server), "u:5;a:a;u:6;");
}

#[test]
fn calls_are_remembered() {
    let server =
        TestServer::start(|_| says("<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"));
    let tools = json!([{ "type": "function", "name": "f", "parameters": null, "strict": null }]);
    let first = respond(&server, json!({ "input": "go", "tools": tools })).json();
    let call = &first["output"][0];
    assert_eq!(call["type"], "function_call");
    let output =
        json!([{ "type": "function_call_output", "call_id": call["call_id"], "output": "7" }]);
    let body = json!({ "input": output, "previous_response_id": first["id"], "tools": tools });
    assert_eq!(respond(&server, body).status, 200);
    let remembered = last_prompt(&server);
    // The same conversation, sent whole.
    let whole = json!([{ "role": "user", "content": "go" }, call, output[0]]);
    assert_eq!(
        respond(&server, json!({ "input": whole, "tools": tools })).status,
        200
    );
    assert_eq!(last_prompt(&server), remembered);
    assert!(remembered.contains("t:7;"));
}

#[test]
fn a_stored_response_is_given_listed_and_forgotten() {
    let server = TestServer::start(|_| says("a"));
    let input = json!([{ "role": "user", "content": "1" }, { "role": "assistant", "content": "2" }, { "role": "user", "content": "3" }]);
    let response = respond(&server, json!({ "input": input })).json();
    let path = format!("/v1/responses/{}", response["id"].as_str().unwrap());
    let stored = server.get(&path);
    assert_eq!((stored.status, stored.json()), (200, response.clone()));
    assert_eq!(stored.headers["content-type"], "application/json");
    assert_eq!(server.get(&format!("{path}?stream=true")).status, 400);
    let include = "include=message.output_text.logprobs&include[]=reasoning.encrypted_content";
    assert_eq!(server.get(&format!("{path}?{include}")).json(), response);
    let unknown = server.get(&format!("{path}?{include}&include[]=foo"));
    assert_eq!(unknown.json()["error"]["param"], "include[2]");

    let list = |query: &str| {
        let list = server.get(&format!("{path}/input_items{query}")).json();
        let texts = list["data"].as_array().unwrap().iter();
        let texts: String = texts
            .map(|item| item["content"][0]["text"].as_str().unwrap())
            .collect();
        (
            texts,
            list["has_more"] == true,
            list["last_id"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let (texts, has_more, _) = list("");
    assert_eq!((texts.as_str(), has_more), ("321", false));
    let (texts, has_more, last) = list("?order=asc&limit=2");
    assert_eq!((texts.as_str(), has_more), ("12", true));
    assert_eq!(list(&format!("?order=asc&after={last}")).0, "3");
    for query in ["?order=odd", "?limit=0", "?limit=x", "?after=x"] {
        assert_eq!(
            server.get(&format!("{path}/input_items{query}")).status,
            400
        );
    }

    let cancelled = server.post(&format!("{path}/cancel"), &json!({}));
    assert_eq!(cancelled.status, 400);
    assert!(cancelled.text.contains("background"));
    let delete = |path: &str| server.send(Method::DELETE, path, String::new(), None);
    assert_eq!(
        delete(&path).json(),
        json!({ "id": response["id"], "object": "response", "deleted": true })
    );
    for answer in [
        server.get(&path),
        delete(&path),
        server.post(&format!("{path}/cancel"), &json!({})),
        server.get(&format!("{path}/input_items")),
    ] {
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["param"]),
            (404, &json!("response_id"))
        );
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .contains(response["id"].as_str().unwrap())
        );
    }
    let after = respond(&server, json!({ "previous_response_id": response["id"] }));
    let error = &after.json()["error"];
    assert_eq!(
        (after.status, &error["param"], &error["code"]),
        (
            404,
            &json!("previous_response_id"),
            &json!("previous_response_not_found")
        )
    );
}

#[test]
fn what_is_not_to_be_stored_is_not() {
    let server = TestServer::start_with(&["--max-stored-responses", "2"], |_| says("a"));
    let path = |response: &Value| format!("/v1/responses/{}", response["id"].as_str().unwrap());
    let unstored = respond(&server, json!({ "store": false })).json();
    assert_eq!(
        (&unstored["store"], server.get(&path(&unstored)).status),
        (&json!(false), 404)
    );
    let stored: Vec<Value> = (0..3).map(|_| respond(&server, json!({})).json()).collect();
    let statuses: Vec<_> = stored
        .iter()
        .map(|response| server.get(&path(response)).status)
        .collect();
    assert_eq!(statuses, [404, 200, 200]);
    // A client may name a response, once.
    let named = json!({ "request_id": "mine" });
    assert_eq!(respond(&server, named.clone()).json()["id"], "resp_mine");
    let again = respond(&server, named);
    assert_eq!(
        (again.status, &again.json()["error"]["param"]),
        (400, &json!("request_id"))
    );

    let off = TestServer::start_with(&["--max-stored-responses", "0"], |_| says("a"));
    let response = respond(&off, json!({ "store": true })).json();
    assert_eq!(response["store"], false);
    let missing = off.get(&path(&response));
    assert_eq!(missing.status, 404);
    assert!(missing.text.contains("--max-stored-responses 0"));
}

#[test]
fn tokens_are_counted_without_an_answer() {
    let server = TestServer::start(|_| says("a"));
    let body = json!({ "input": "hi", "instructions": "i" });
    let count = server.post("/v1/responses/input_tokens", &body).json();
    assert_eq!(
        count,
        json!({ "object": "response.input_tokens", "input_tokens": 10 })
    );
    // A prompt of any length, unless it is to be cut; a grammar is not compiled.
    let long = "x".repeat(1000);
    let format = json!({ "type": "json_schema", "name": "n", "schema": { "$ref": "#/$defs/x" } });
    for (extra, num) in [
        (json!({}), 1004),
        (json!({ "truncation": "auto" }), MAX_MODEL_LEN - 1),
        (json!({ "text": { "format": format } }), 1004),
    ] {
        let body = support::merged(json!({ "input": long }), extra);
        let count = server.post("/v1/responses/input_tokens", &body);
        assert_eq!(count.status, 200, "{}", count.text);
        assert_eq!(count.json()["input_tokens"], num);
    }
    assert!(server.seen.lock().unwrap().requests.is_empty());
}
