#!/usr/bin/env python3
"""The questions of `bfcl.py` answered by transformers' own greedy decoding, judged by the same checker.

    python3 -m venv venv && venv/bin/pip install --no-deps bfcl-eval==2026.3.23
    venv/bin/pip install torch==2.11.0 transformers==5.17.0
    venv/bin/python crates/server/tests/clients/bfcl_transformers.py FOLDER 20

FOLDER holds the model. The number and the categories are those of `bfcl.py`. `--beside FILE` compares with the calls that
`bfcl.py --save FILE` wrote, question by question, and ends with 1 if a prompt has another length, or if a question has no answer in
the file. The settings are the server's with `temperature` 0: what the folder's `generation_config.json` says of penalties holds for
both. `--dtype` is float32, the server's on a CPU.

Calls are taken out of the text by the rules of docs/src/tools.md, "What calls look like": JSON behind `<tool_call>` or `<tools>`,
at the start of a line, or in a block of code, that is complete and names a tool of the question.
"""

import argparse
import json
import re
import sys

import torch
import transformers

from bfcl_questions import CATEGORIES, MAX_TOKENS, is_right, questions, tool

# A token that no answer has: penalties count padding, too.
PAD = "<|fim_pad|>"

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("number", nargs="?", type=int)
parser.add_argument("categories", nargs="*")
parser.add_argument("--beside")
parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--at-once", type=int, default=6, help="prompts of a batch; they are padded on their left")
args = parser.parse_args()
torch.set_num_threads(args.threads)
tokenizer = transformers.AutoTokenizer.from_pretrained(args.folder, padding_side="left", pad_token=PAD)
model = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=getattr(torch, args.dtype)).eval()


def render(question, tools):
    messages = question["question"][0]
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)


def decode(prompts):
    """What the model writes behind each prompt, up to its first token that ends."""
    ids = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        # Sampling is off, so its settings have no use; the folder's penalties stay.
        written = model.generate(
            **ids, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=MAX_TOKENS
        )
    written = written[:, ids["input_ids"].shape[1] :]
    # The tags of calls stay, whether or not they are special tokens.
    texts = tokenizer.batch_decode(written, skip_special_tokens=False)
    return [re.split(r"<\|(?:im_end|endoftext)\|>", text)[0] for text in texts]


def calls_of(text, tools):
    """Calls in a text, as `{name: values}`."""
    names = {tool["function"]["name"] for tool in tools}
    read = json.JSONDecoder(strict=False).raw_decode
    calls, end = [], 0
    for place in re.finditer(r"(?:^|<tool_call>|<tools>)\s*(?=[{\[])", text, re.MULTILINE):
        if place.end() < end:
            continue
        try:
            found, end = read(text, place.end())
        except ValueError:
            continue
        found = found if isinstance(found, list) else [found]
        if all(isinstance(call, dict) and call.get("name") in names for call in found):
            calls += [{call["name"]: call.get("arguments", call.get("parameters", {}))} for call in found]
    return calls


def judge(category, question, right, calls):
    try:
        return is_right(category, question, calls, right)
    except Exception:  # The checker does not take calls of every shape.
        return False


def answers(asked):
    """Calls and the length of the prompt, of each question. Prompts of a like length are in one batch."""
    tools = [[tool(function) for function in question["function"]] for question, _ in asked]
    prompts = [render(question, own) for (question, _), own in zip(asked, tools)]
    lengths = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
    order = sorted(range(len(asked)), key=lambda i: lengths[i])
    found = [None] * len(asked)
    for start in range(0, len(order), args.at_once):
        batch = order[start : start + args.at_once]
        for i, text in zip(batch, decode([prompts[i] for i in batch])):
            found[i] = (calls_of(text, tools[i]), lengths[i])
        print(f"{start + len(batch)} of {len(order)}", file=sys.stderr, flush=True)
    return found


def main():
    beside, is_comparison = {}, True
    if args.beside:
        with open(args.beside) as file:
            beside = {line["id"]: line for line in map(json.loads, file)}
    print("| category | questions | right | same calls |\n|---|---|---|---|")
    for category in args.categories or CATEGORIES:
        num_right, num_same, others = 0, 0, []
        asked = questions(category, args.number)
        for (question, right), (calls, prompt_tokens) in zip(asked, answers(asked)):
            num_right += judge(category, question, right, calls)
            if not args.beside:
                continue
            server = beside.get(question["id"])
            if server is None:
                # A request that has failed, or a file of fewer questions.
                is_comparison = False
                others.append(f"{question['id']}: no answer of the server")
                continue
            num_same += server["calls"] == calls
            if server["calls"] != calls:
                others.append(f"{question['id']}: {json.dumps(calls)}, by the server {json.dumps(server['calls'])}")
            if server["prompt_tokens"] != prompt_tokens:
                is_comparison = False
                others.append(f"{question['id']}: {prompt_tokens} tokens of the prompt, {server['prompt_tokens']} in the server")
        print(f"| {category} | {len(asked)} | {num_right} | {num_same if args.beside else '-'} |", flush=True)
        for other in others:
            print(other[:900], flush=True)
    sys.exit(not is_comparison)


if __name__ == "__main__":
    main()
