#!/usr/bin/env python3
"""Tool calls of the Berkeley Function Calling Leaderboard, judged by its own checker, against a running server.

    python3 -m venv venv && venv/bin/pip install --no-deps bfcl-eval==2026.3.23
    venv/bin/pip install openai==2.54.0
    server Qwen/Qwen2.5-Coder-0.5B-Instruct --port 8000
    venv/bin/python crates/server/tests/clients/bfcl.py http://127.0.0.1:8000/v1 20

The number is of the first questions of each category; all of them without it. The dependencies of bfcl-eval are those of its
own model handlers, PyTorch among them; its data and its checker need none, so the list of handlers is left out.

A wrong answer is the model's. The server is at fault, and the script ends with 1, if a request fails, if the arguments of a
call are no JSON, if a call names no function of the question, or if a forced call breaks its schema.
"""

import collections
import concurrent.futures
import json
import pathlib
import re
import sys
import types

import openai

# The checker asks this module only whether the model's function names have `_` for `.`, as OpenAI's API wants.
HANDLERS = types.ModuleType("bfcl_eval.constants.model_config")
HANDLERS.MODEL_CONFIG_MAPPING = collections.defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=True))
sys.modules[HANDLERS.__name__] = HANDLERS

import bfcl_eval  # noqa: E402
from bfcl_eval.constants.enums import Language  # noqa: E402
from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
NUMBER = int(sys.argv[2]) if len(sys.argv) > 2 else None
CATEGORIES = sys.argv[3:] or ["simple_python", "multiple", "parallel", "parallel_multiple"]
DATA = pathlib.Path(bfcl_eval.__path__[0]) / "data"
client = openai.OpenAI(base_url=URL, api_key="none", timeout=600, max_retries=0)
MODEL = client.models.list().data[0].id


def questions(category):
    name = f"BFCL_v4_{category}.json"
    asked = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    right = [json.loads(line) for line in (DATA / "possible_answer" / name).read_text().splitlines()]
    right = {answer["id"]: answer["ground_truth"] for answer in right}
    return [(question, right[question["id"]]) for question in asked[:NUMBER]]


def schema(described):
    """JSON Schema of a description, whose types are Python's."""
    made = {key: value for key, value in described.items() if key in ("description", "enum", "required")}
    made["type"] = GORILLA_TO_OPENAPI[described["type"]]
    if "properties" in described:
        made["properties"] = {name: schema(inside) for name, inside in described["properties"].items()}
    if made["type"] == "array":
        made["items"] = schema(described["items"]) if "items" in described else {}
    return made


def tool(function):
    name = re.sub(r"\.", "_", function["name"])
    parameters = schema(function["parameters"])
    return {"type": "function", "function": {"name": name, "description": function["description"], "parameters": parameters}}


def fits(described, value):
    """Whether a value has the types of its schema."""
    kinds = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "array": list, "object": dict}
    if not isinstance(value, kinds[described["type"]]) or "enum" in described and value not in described["enum"]:
        return False
    if isinstance(value, list) and described.get("items"):
        return all(fits(described["items"], item) for item in value)
    if isinstance(value, dict) and "properties" in described:
        inside = described["properties"]
        names = value.keys() <= inside.keys() and {*described.get("required", [])} <= value.keys()
        return names and all(fits(inside[name], item) for name, item in value.items())
    return True


def ask(question, choice):
    """Calls of the answer, and what the server did wrong."""
    tools = [tool(function) for function in question["function"]]
    settings = dict(model=MODEL, temperature=0, max_tokens=400, tools=tools, tool_choice=choice)
    answer = client.chat.completions.create(messages=question["question"][0], **settings).choices[0]
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    calls, faults = [], []
    for call in answer.message.tool_calls or []:
        name, text = call.function.name, call.function.arguments
        try:
            values = json.loads(text)
        except ValueError:
            if answer.finish_reason != "length":
                faults.append(f"no JSON: {text}")
            continue
        calls.append({name: values})
        if name not in known:
            faults.append(f"unknown function {name}")
        elif choice == "required" and not fits(known[name], values):
            faults.append(f"{name} with {text}, not of {json.dumps(known[name])}")
    if choice == "required" and not calls and answer.finish_reason != "length":
        faults.append("no call")
    return calls, faults


def judge(category, question, right, choice):
    try:
        calls, faults = ask(question, choice)
    except openai.OpenAIError as error:
        return False, [f"{type(error).__name__}: {error}"]
    try:
        judged = ast_checker(question["function"], calls, right, Language.PYTHON, category, MODEL)
        return judged["valid"], faults
    except Exception as error:  # The checker does not take calls of every shape.
        return False, faults + ([f"checker: {error!r}"] if calls and not faults else [])


def main():
    num_faults = 0
    print("| category | tool_choice | questions | right |\n|---|---|---|---|")
    for category in CATEGORIES:
        for choice in ("auto", "required"):
            asked = questions(category)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                tasks = [pool.submit(judge, category, *pair, choice) for pair in asked]
                results = [task.result() for task in tasks]
            right = sum(valid for valid, _ in results)
            print(f"| {category} | {choice} | {len(results)} | {right} |", flush=True)
            for (question, _), (_, faults) in zip(asked, results):
                num_faults += len(faults)
                for fault in faults:
                    print(f"{question['id']}: {fault[:600]}", flush=True)
    sys.exit(num_faults > 0)


if __name__ == "__main__":
    main()
