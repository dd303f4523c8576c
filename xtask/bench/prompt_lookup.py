#!/usr/bin/env python3
"""Edits of code, chats, and questions about code by two servers of one model, without and with drafts by prompt lookup.

    server MODEL --max-model-len 8192 --port 8001 --speculative-config off
    server MODEL --max-model-len 8192 --port 8002
    python3 xtask/bench/prompt_lookup.py 8001 8002 [edit] [chat] [question]

On a GPU the second server needs --speculative-config '{"method": "ngram", "num_speculative_tokens": 3}'. Each request goes to one
server and then to the other, in an order that changes from request to request. Rows have tokens per second from the first token of
an answer to its last, how many times as fast the second server is, the same in time of the servers' processes (Linux, of this
machine, without processes that they start), and whether the texts are the same.
"""
import argparse
import http.client
import json
import os
import pathlib
import re
import statistics
import time

ROOT = pathlib.Path(__file__).parents[2]
FILES = [
    "crates/server/src/engine/speculation/cost.rs",
    "crates/model-qwen/src/detokenizer.rs",
    "xtask/golden/merge.py",
    "crates/server/tests/clients/guidellm.py",
    "crates/server/src/cors.rs",
    "crates/kv-paging/src/prompt_lookup.rs",
    "xtask/golden/optimizers.py",
    "crates/server/page/api.js",
]
CHATS = [
    "Explain how a hash map works.",
    "Write a short story about a fisherman.",
    "Give me a recipe for pancakes.",
    "Write a Python function that checks whether a number is prime.",
    "What are the causes of inflation?",
    "Translate to French: The weather is nice today, and we go to the beach with our children.",
    "List ten animals with one sentence about each.",
    "Write a JSON object that describes a book with ten fields.",
    "Summarize the plot of Romeo and Juliet.",
    "Write a SQL query that joins users and orders, and explain it.",
    "What is the difference between TCP and UDP?",
    "Write an HTML page with a form for name and email.",
]
QUESTIONS = ["Summarize in plain words what this file does.", "List three problems of this code."]


def source(file):
    return "\n".join((ROOT / file).read_text().splitlines()[:120])


def edit(file):
    text = source(file)
    name = re.search(r"(?:fn|def|function) (\w+)", text)[1]
    ask = f"Rename the function `{name}` to `{name}_renamed` in this file, everywhere. Return the whole file and nothing else."
    return f"{ask}\n\n```\n{text}\n```"


KINDS = {
    "edit": (220, [(pathlib.Path(file).name, edit(file)) for file in FILES]),
    "chat": (100, [(text[:30], text) for text in CHATS]),
    "question": (100, [(text[:30], f"{text}\n\n```\n{source(FILES[0])}\n```") for text in QUESTIONS]),
}


def process_of(port):
    """The process that listens at a port; None where Linux does not tell."""
    table = pathlib.Path("/proc/net/tcp")
    if not table.exists():
        return None
    sockets = table.read_text().splitlines()
    listens = {line.split()[9] for line in sockets if line.split()[1].endswith(f":{port:04X}") and " 0A " in line}
    for fd in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if any(os.readlink(fd) == f"socket:[{inode}]" for inode in listens):
                return fd.parts[2]
        except OSError:
            continue
    return None


def seconds_of(process):
    if process is None:
        return 0.0
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port, process, text, max_tokens):
    """The answer, its number of tokens, and seconds from its first token to its last, by the clock and of the process."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer, first, last, num_tokens = "", None, None, 0
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        part = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        if part:
            last = time.monotonic(), seconds_of(process)
            first = first or last
            answer += part
    return answer, num_tokens, last[0] - first[0], last[1] - first[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ports", nargs=2, type=int, metavar="port", help="of the server without drafts, then of the one with drafts")
    # Some versions of argparse look for the empty list among the choices.
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="kind", help=f"{', '.join(KINDS)}; all, if none is named")
    args = parser.parse_args()
    ports = args.ports
    processes = [process_of(port) for port in ports]
    print("| request | tokens | tok/s without | with | times | times in CPU time | text |\n|---|---|---|---|---|---|---|")
    for kind in args.kinds or KINDS:
        max_tokens, requests = KINDS[kind]
        rows = []
        for i, (name, text) in enumerate(requests):
            order = [0, 1] if i % 2 == 0 else [1, 0]
            found = {which: ask(ports[which], processes[which], text, max_tokens) for which in order}
            without, drafts = found[0], found[1]
            more = without[1] - 1
            times, cpu = without[2] / drafts[2], without[3] / drafts[3] if drafts[3] else float("nan")
            text = "same" if without[0] == drafts[0] else "OTHER"
            print(f"| {kind}: {name} | {without[1]} | {more / without[2]:.1f} | {(drafts[1] - 1) / drafts[2]:.1f} | {times:.2f} "
                  f"| {cpu:.2f} | {text} |", flush=True)
            rows.append((times, cpu, without, drafts))
        whole = [sum(row[2][i] for row in rows) / sum(row[3][i] for row in rows) if any(row[3][i] for row in rows) else float("nan")
                 for i in (2, 3)]
        print(f"| {kind}: median, least, all together | | | | {statistics.median(r[0] for r in rows):.2f}, "
              f"{min(r[0] for r in rows):.2f}, {whole[0]:.2f} | {statistics.median(r[1] for r in rows):.2f}, "
              f"{min(r[1] for r in rows):.2f}, {whole[1]:.2f} | |", flush=True)


main()
