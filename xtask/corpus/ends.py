"""Pairs of beginnings with two ends: the third round of data/README.md.

Reads what `answers MODEL CHATS.jsonl --max-tokens 300` prints, and asks a server of ours with the same MODEL. The sentences before an
answer's first repetition begin both. The rejected one goes on as the answer did. The chosen one goes on as the model does with a
temperature: the end that repeats least of three drawn ones. An answer without such an end gives no pair.

Run: python xtask/corpus/ends.py http://127.0.0.1:8000 ANSWERS.jsonl > PAIRS.jsonl
"""

import argparse
import json
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from clean import repetition

RUN = 4
SAMPLING = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.15, "max_tokens": 160, "n": 3, "seed": 1}
IS_ENDED = re.compile(r"[.!?][\"']?$")


def halves(text):
    """The sentences before the first one that says two runs of four words again, and the sentences from there on; or None."""
    sentences = re.findall(r"\s*[^.!?]*[.!?]+[\"']?|\s*[^.!?]+$", text)
    seen, words = set(), []
    for number, sentence in enumerate(sentences):
        start = max(0, len(words) - RUN + 1)
        words += re.findall(r"[\w']+", sentence.lower())
        runs = [tuple(words[i:i + RUN]) for i in range(start, len(words) - RUN + 1)]
        again = 0
        for run in runs:
            again += run in seen
            seen.add(run)
        if number and again >= 2:
            return "".join(sentences[:number]), sentences[number:]
    return None


def rejected_end(sentences):
    """Where a repetition begins is learnt, not how long it is: whole sentences of about 45 words, at most 60."""
    end = ""
    for sentence in sentences:
        if end and len((end + sentence).split()) > 45:
            break
        end += sentence
    return " ".join(end.split(" ")[:60])


def chosen_end(server, messages, beginning):
    """The drawn end that repeats least of what was said, or None."""
    turns = [*messages, {"role": "assistant", "content": beginning}]
    body = {"messages": turns, "add_generation_prompt": False, "continue_final_message": True, **SAMPLING}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{server}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        choices = json.load(answer)["choices"]
    most, best = max(0.03, repetition(beginning)), None
    for choice in choices:
        text = choice["message"]["content"]
        is_whole = choice["finish_reason"] == "stop" and IS_ENDED.search(text.strip())
        if not is_whole or not 10 <= len(text.split()) <= 90:
            continue
        again = repetition(beginning + text)
        if again <= most and (best is None or again < best[0]):
            best = again, text
    return best and best[1]


def pair(server, answer):
    """A record for `--method dpo`, or None."""
    parts = halves(answer["answer"])
    if parts is None:
        return None
    beginning, rest = parts
    prompt = [{"role": "user", "content": answer["prompt"]}]
    end = chosen_end(server, prompt, beginning)
    if end is None:
        return None
    turn = lambda text: [{"role": "assistant", "content": text.rstrip()}]
    return {"prompt": prompt, "chosen": turn(beginning + end), "rejected": turn(beginning + rejected_end(rest))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="its address")
    parser.add_argument("answers", help="file of what `answers` printed")
    parser.add_argument("--most", type=float, default=0.10, help="part of repetitions above which an answer loops")
    parser.add_argument("--number", type=int, default=400, help="answers that loop or do not end, the first ones of the file")
    args = parser.parse_args()
    with open(args.answers) as file:
        answers = [json.loads(line) for line in file]
    broken = [a for a in answers if a["repetition"] > args.most or not a["has_ended"]][:args.number]
    with ThreadPoolExecutor(8) as threads:
        pairs = [made for made in threads.map(lambda answer: pair(args.server, answer), broken) if made]
    for made in pairs:
        print(json.dumps(made, ensure_ascii=False))
    print(f"{len(pairs)} pairs of {len(broken)} answers that loop or do not end", file=sys.stderr)


if __name__ == "__main__":
    main()
