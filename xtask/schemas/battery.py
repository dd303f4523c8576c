#!/usr/bin/env python3
"""Sends JSON Schemas to a running server, and checks that each answer keeps to its schema or that the schema is refused by name.

    python3 -m venv venv && venv/bin/pip install -r xtask/schemas/requirements.txt
    target/debug/server --port 8000 &
    venv/bin/python xtask/schemas/battery.py http://127.0.0.1:8000 --drawn 1000
    venv/bin/python xtask/schemas/battery.py http://127.0.0.1:8000 --folder jsonschemabench/maskbench/data --every 20

A folder has files of one schema each, as such or under the key `schema`. Ends with 1 if an answer broke its schema, if a
request hung, or if the server failed.
"""

import argparse
import collections
import concurrent.futures
import decimal
import json
import pathlib
import re
import statistics
import sys
import time
import urllib.error
import urllib.request

import jsonschema

import draw
import prefix

FIELD = "response_format.json_schema.schema"
FAILURES = ("broken", "failed", "hung")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--drawn", type=int, default=0, help="schemas drawn from seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--folder", type=pathlib.Path, help="files of schemas")
    parser.add_argument("--every", type=int, default=1, help="each so many files of the folder, by name")
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a request hangs")
    parser.add_argument("--compact", action="store_true", help="without white space, so that fewer answers are cut")
    parser.add_argument("--record", type=pathlib.Path, help="a file for a line of JSON for each schema")
    return parser.parse_args()


def schemas(args):
    for seed in range(args.seed, args.seed + args.drawn):
        yield f"seed {seed}", draw.Draw(seed).document()
    for path in sorted(args.folder.glob("*.json"))[:: args.every] if args.folder else []:
        found = json.loads(path.read_text())
        yield path.stem, found.get("schema", found) if isinstance(found, dict) else found


def post(args, body):
    """Status and JSON of the answer."""
    url, headers = f"{args.address}/v1/chat/completions", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=args.timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            return error.code, json.loads(text)
        except ValueError:
            return error.code, {"error": {"message": text}}


def body(args, model, schema, number):
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": "Write an example, as JSON."}],
        "temperature": 1,
        "top_p": 1,
        "top_k": -1,
        "seed": number,
        "max_tokens": args.max_tokens,
    }
    if args.compact:
        return {**asked, "structured_outputs": {"json": schema, "disable_any_whitespace": True}}
    return {**asked, "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}}}


def no_duplicates(pairs):
    names = [name for name, _ in pairs]
    if len(names) != len({*names}):
        raise ValueError(f"a name twice: {names}")
    return dict(pairs)


def multiple_of(_, number, instance, __):
    """By decimals: in floats, 520.91 is no multiple of 0.01."""
    if isinstance(instance, (int, float)) and not isinstance(instance, bool):
        with decimal.localcontext(prec=2000):
            if decimal.Decimal(repr(instance)) % decimal.Decimal(repr(number)):
                yield jsonschema.ValidationError(f"{instance} is no multiple of {number}")


def has_format(checker, name, value):
    """RFC 3339 has a year 0, which Python's dates do not have. It is a leap year, as 2000 is."""
    if name in ("date", "date-time") and isinstance(value, str) and value.startswith("0000-"):
        value = value.replace("0000", "2000", 1)
    return checker.conforms(value, name)


def format_of(of, name, instance, _):
    if not has_format(of.format_checker, name, instance):
        yield jsonschema.ValidationError(f"{instance!r} is no {name}")


def validator(schema):
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    checker = kind.FORMAT_CHECKER
    kind = jsonschema.validators.extend(kind, {"multipleOf": multiple_of, "format": format_of})
    return kind(schema, format_checker=checker)


def wrong(schema, text):
    """What is wrong with a whole answer, or nothing."""
    try:
        value = json.loads(text, object_pairs_hook=no_duplicates)
    except ValueError as error:
        return f"no JSON: {error}"
    error = next(validator(schema).iter_errors(value), None)
    return error and f"{'/'.join(map(str, error.absolute_path))}: {error.message}"


def wrong_prefix(schema, text):
    """What is wrong with an answer that was cut, as far as it shows."""
    try:
        members = prefix.members(text)
    except ValueError as error:
        return f"no prefix of JSON: {error}"
    properties = schema.get("properties") if isinstance(schema, dict) else None
    for name, value in members.items():
        if isinstance(properties, dict) and name in properties:
            error = next(validator(schema).descend(value, properties[name]), None)
            if error:
                return f"{name}: {error.message}"
        elif isinstance(schema, dict) and schema.get("additionalProperties") is False and "patternProperties" not in schema:
            return f"{name}: no such property"
    return None


def outcome(args, schema, status, answer):
    """A kind of outcome, and its details."""
    if status == 400:
        error = answer.get("error") or {}
        field = "structured_outputs.json" if args.compact else FIELD
        named = error.get("param") == field and len(error.get("message", "")) > len(field) + 25
        return ("refused" if named else "failed"), error.get("message", "")
    if status != 200:
        return "failed", f"{status}: {json.dumps(answer)[:300]}"
    choice = answer["choices"][0]
    text, finish = choice["message"]["content"] or "", choice["finish_reason"]
    if finish == "stop":
        found = wrong(schema, text)
        return ("broken", f"{found}: {text}") if found else ("kept", "")
    if finish == "length":
        found = wrong_prefix(schema, text)
        return ("broken", f"{found}: {text}") if found else ("cut", "")
    return "failed", f"finish_reason {finish!r}"


def try_one(args, model, number, name, schema):
    start = time.monotonic()
    try:
        status, answer = post(args, body(args, model, schema, number))
        kind, details = outcome(args, schema, status, answer)
    except TimeoutError:
        kind, details = "hung", ""
    except (OSError, ValueError, KeyError, IndexError) as error:
        kind, details = "failed", f"{type(error).__name__}: {error}"
    except Exception as error:  # The validator does not take every schema: references that it cannot find, say.
        kind, details = "unchecked", f"{type(error).__name__}: {error}"
    return {"name": name, "outcome": kind, "details": details, "seconds": time.monotonic() - start, "schema": schema}


def reason(details):
    """A reason of refusal without names, to count by."""
    details = details.split("cannot be used:")[-1].strip()
    if not details.startswith("Unimplemented keys"):
        details = re.sub(r'"[^"]*"|\d+', "…", details)
    return details[:110]


def main():
    args = arguments()
    with urllib.request.urlopen(f"{args.address}/v1/models", timeout=30) as answer:
        model = json.load(answer)["data"][0]["id"]
    results = []
    record = args.record.open("w") if args.record else None
    with concurrent.futures.ThreadPoolExecutor(args.concurrency) as pool:
        tasks = [pool.submit(try_one, args, model, number, *pair) for number, pair in enumerate(schemas(args))]
        for task in concurrent.futures.as_completed(tasks):
            result = task.result()
            results.append(result)
            if record:
                print(json.dumps(result), file=record, flush=True)
            if result["outcome"] in FAILURES:
                print(f"{result['outcome']}: {result['name']}: {result['details'][:600]}", flush=True)
                print(f"  {json.dumps(result['schema'])[:1500]}", flush=True)
    report(results)
    with urllib.request.urlopen(f"{args.address}/health", timeout=30) as answer:
        assert answer.status == 200
    sys.exit(any(result["outcome"] in FAILURES for result in results))


def report(results):
    counts = collections.Counter(result["outcome"] for result in results)
    print(f"{len(results)} schemas: " + ", ".join(f"{number} {kind}" for kind, number in counts.most_common()))
    for kind in ("refused", "unchecked"):
        reasons = collections.Counter(reason(result["details"]) for result in results if result["outcome"] == kind)
        for words, number in reasons.most_common(40):
            print(f"  {kind} {number}: {words}")
    refused = [result["seconds"] for result in results if result["outcome"] == "refused"]
    if refused:
        print(f"refusals take {statistics.median(refused) * 1000:.0f} ms (median), {max(refused) * 1000:.0f} ms (longest)")


if __name__ == "__main__":
    main()
