"""Leaves out of generated chats what the bundled model is not to learn from: see data/README.md.

Reads lines of {"messages": [...]} and writes the kept ones in a drawn order; says on standard error why the others were left out.

Run: python xtask/corpus/clean.py < all.jsonl > CHATS.jsonl
"""

import collections
import json
import random
import re
import sys

PROGRAM = re.compile(
    r"can't assist|cannot assist|can't help with that|as an ai|language model|Alibaba|Qwen|programming|python|javascript|code\b",
    re.I)
UNKNOWN = re.compile(r"[^\x00-\x7f‘’“”–—éè…]")


def repetition(text):
    """The part of the runs of four words that were in the text before, as examples/src/answers.rs counts it."""
    words = re.findall(r"[\w']+", text.lower())
    runs = [tuple(words[i:i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0


def repeated_sentences(text):
    sentences = [s.strip().lower() for s in re.split(r"[.!?\n]+", text) if len(s.split()) >= 3]
    return len(sentences) - len(set(sentences))


def unquoted(text):
    """A turn that is in quotes as a whole, without them."""
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2
    return text[1:-1].strip() if is_quoted else text


def fault(messages):
    """Why a chat is left out, or None."""
    if not all(message["content"] for message in messages):
        return "empty"
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    text = " ".join(answers)
    if PROGRAM.search(text):
        return "refusal, or talk of being a program"
    if not re.search(r"[.!?][\"')]?$", answers[-1]):
        return "no end"
    if max(map(repetition, answers)) > 0.08 or sum(map(repeated_sentences, answers)) > 1:
        return "repeats itself"
    if len(messages) > 2 and repetition(text) > 0.15:
        return "repeats itself over turns"
    if UNKNOWN.search(text + messages[0]["content"]):
        return "other characters"
    return None


def main():
    seen, kept, faults = set(), [], collections.Counter()
    for line in sys.stdin:
        messages = [{"role": m["role"], "content": m["content"].strip()} for m in json.loads(line)["messages"]]
        key = json.dumps(messages)
        messages = [{**m, "content": unquoted(m["content"])} for m in messages]
        why = "duplicate" if key in seen else fault(messages)
        seen.add(key)
        if why:
            faults[why] += 1
        else:
            kept.append(messages)
    random.seed(3)
    random.shuffle(kept)
    for messages in kept:
        print(json.dumps({"messages": messages}, ensure_ascii=False))
    print(f"{len(kept)} kept; left out: {dict(faults)}", file=sys.stderr)


if __name__ == "__main__":
    main()
