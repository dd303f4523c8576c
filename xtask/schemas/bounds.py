#!/usr/bin/env python3
"""Bodies that fit `/openapi.json` and that the server refuses all the same.

    venv/bin/pip install jsonschema==4.26.0
    server --port 8000
    venv/bin/python xtask/schemas/bounds.py http://127.0.0.1:8000

Each field of a request in turn gets values that its schema suggests: bounds and their neighbours, members of lists, one of each
type, and the same inside of objects and lists. A row is printed for each reason why a body that fits is no 200. What remains are
reasons that no schema of one field has: lengths that depend on the prompt, fields that need each other, names that are not there,
texts in a language of their own, and what the model cannot do. Ends with 1 after a 5xx.
"""
import json
import sys
import urllib.error
import urllib.request

import jsonschema

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
CHAT = [{"role": "user", "content": "hi"}]
FEW = {"num_predict": 2}
BODIES = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"model": None, "messages": CHAT, "max_tokens": 2},
    "/v1/messages/count_tokens": {"model": None, "messages": CHAT},
    "/api/chat": {"model": None, "messages": CHAT, "stream": False, "options": FEW},
    "/api/generate": {"model": None, "prompt": "hi", "stream": False, "options": FEW},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [5]},
    "/v1/embeddings": {"input": "hi"},
    "/pooling": {"input": "hi"},
    "/classify": {"input": "hi"},
    "/score": {"text_1": "a", "text_2": "b"},
    "/rerank": {"query": "a", "documents": ["b"]},
    "/api/embed": {"model": None, "input": "hi"},
    "/api/embeddings": {"model": None, "prompt": "hi"},
}
NUMBERS = [0, 1, 2, 7, -1, -2, 10**6, 2**31, 2**63 - 1]
# Fields that are refused without another one.
TOGETHER = {"top_logprobs": {"logprobs": True}, "stream_options": {"stream": True}}
MAX_DEPTH = 6


def get(path):
    return json.load(urllib.request.urlopen(URL + path, timeout=60))


def post(path, body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
        return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(schema, depth=0):
    """Values that a schema suggests; some of them do not fit it."""
    if schema is True or not schema:
        return [1, "x", True, [], {}] if depth == 0 else ["x"]
    found = [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]
    for inner in schema.get("anyOf", []) + schema.get("oneOf", []):
        found += samples(inner, depth + 1)
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        found += of_kind(kind, schema, depth)
    return found


def of_kind(kind, schema, depth):
    if kind in ("integer", "number"):
        bounds = [schema[key] for key in ("minimum", "exclusiveMinimum", "maximum") if key in schema]
        return [*bounds, *(bound + 1 for bound in bounds), *NUMBERS, *([0.5, 1e-5, 1.5, -0.5] if kind == "number" else [])]
    if kind == "array":
        items = samples(schema.get("items", True), depth + 1)[:40] if depth < MAX_DEPTH else ["x"]
        return [[], *([item] for item in items), *([items[:2]] if len(items) > 1 else [])]
    if kind == "object":
        inside, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        base = {key: (samples(inside.get(key, True), depth + 1) or ["x"])[0] for key in schema.get("required", [])}
        found = [base]
        for key, inner in inside.items() if depth < MAX_DEPTH else []:
            found += [{**base, key: value} for value in samples(inner, depth + 1)[:14]]
        if isinstance(others, dict):
            found += [{**base, key: value} for value in samples(others, depth + 1)[:6] for key in ("5", "x")]
        return found
    return {"null": [None], "boolean": [True, False], "string": ["", "x", "a b", "é" * 3]}[kind]


def reason(text):
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError):
        return text
    return str(error["message"] if isinstance(error, dict) else error)


def main():
    paths, model = get("/openapi.json")["paths"], get("/v1/models")["data"][0]["id"]
    has_failed = False
    for path, base in BODIES.items():
        base = {**base, **({"model": model} if "model" in base else {})}
        status, text = post(path, base)
        if status != 200:
            print(f"{path}: not of this server: {reason(text)}")
            continue
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        fits = jsonschema.Draft202012Validator(schema).is_valid
        num, seen = 0, set()
        for field, inner in schema["properties"].items():
            for value in samples(inner):
                body = {**base, **TOGETHER.get(field, {}), field: value}
                body = {key: value for key, value in body.items() if key in schema["properties"]}
                if not fits(body):
                    continue
                num += 1
                status, text = post(path, body)
                has_failed |= status >= 500
                key = (field, reason(text)[:60])
                if status != 200 and key not in seen:
                    seen.add(key)
                    print(f"{path}: {field} = {json.dumps(value, ensure_ascii=False)[:120]}: {status}: {reason(text)[:200]}", flush=True)
        print(f"{path}: {num} bodies that fit, {len(seen)} reasons", flush=True)
    sys.exit(has_failed)


main()
