#!/usr/bin/env python3
"""Tool calls of the Berkeley Function Calling Leaderboard, judged by its own checker, against a running server.

    python3 -m venv venv && venv/bin/pip install --no-deps bfcl-eval==2026.3.23
    venv/bin/pip install openai==2.54.0
    server Qwen/Qwen2.5-Coder-0.5B-Instruct --port 8000
    venv/bin/python crates/server/tests/clients/bfcl.py http://127.0.0.1:8000/v1 20

The number is of the first questions of each category; all of them without it. Names of categories may follow. `--save FILE` writes
the calls of `auto`, one question a line, for `bfcl_transformers.py`, which asks the same model without a server.

A wrong answer is the model's. The server is at fault, and the script ends with 1, if a request fails, if the arguments of a
call are no JSON, if a call names no function of the question, or if a forced call breaks its schema.
"""

import argparse
import concurrent.futures
import json
import sys

import openai

from bfcl_questions import CATEGORIES, MAX_TOKENS, is_right, questions, tool

parser = argparse.ArgumentParser()
parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000/v1")
parser.add_argument("number", nargs="?", type=int)
parser.add_argument("categories", nargs="*")
parser.add_argument("--save")
args = parser.parse_args()
client = openai.OpenAI(base_url=args.url, api_key="none", timeout=600, max_retries=0)
MODEL = client.models.list().data[0].id


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
    """Calls of the answer, what the server did wrong, and the length of the prompt."""
    tools = [tool(function) for function in question["function"]]
    settings = dict(model=MODEL, temperature=0, max_tokens=MAX_TOKENS, tools=tools, tool_choice=choice)
    response = client.chat.completions.create(messages=question["question"][0], **settings)
    answer = response.choices[0]
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
    return calls, faults, response.usage.prompt_tokens


def judge(category, question, right, choice):
    """Whether the answer is right, what the server did wrong, and what another decoding is compared with."""
    try:
        calls, faults, prompt_tokens = ask(question, choice)
    except openai.OpenAIError as error:
        return False, [f"{type(error).__name__}: {error}"], {}
    answer = {"id": question["id"], "prompt_tokens": prompt_tokens, "calls": calls}
    try:
        return is_right(category, question, calls, right), faults, answer
    except Exception as error:  # The checker does not take calls of every shape.
        return False, faults + ([f"checker: {error!r}"] if calls and not faults else []), answer


def main():
    num_faults, saved = 0, []
    print("| category | tool_choice | questions | right |\n|---|---|---|---|")
    for category in args.categories or CATEGORIES:
        for choice in ("auto", "required"):
            asked = questions(category, args.number)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                tasks = [pool.submit(judge, category, *pair, choice) for pair in asked]
                results = [task.result() for task in tasks]
            num_right = sum(valid for valid, _, _ in results)
            print(f"| {category} | {choice} | {len(results)} | {num_right} |", flush=True)
            for (question, _), (_, faults, answer) in zip(asked, results):
                num_faults += len(faults)
                for fault in faults:
                    print(f"{question['id']}: {fault[:600]}", flush=True)
                if choice == "auto" and answer:
                    saved.append(json.dumps(answer))
    if args.save:
        with open(args.save, "w") as file:
            file.write("".join(line + "\n" for line in saved))
    sys.exit(num_faults > 0)


if __name__ == "__main__":
    main()
