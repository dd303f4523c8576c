"""Data of docs/benchmarks/2026-11-30-methods.md that comes from data/: pairs, judged answers and prompts.

The rejected answers are what a model says itself to the first question of a chat; later turns are left out:

    cargo run --release -p examples --bin answers -- data/model data/train.jsonl > train.jsonl
    cargo run --release -p examples --bin answers -- data/model data/eval.jsonl > eval.jsonl
    python xtask/bench/trials.py train.jsonl eval.jsonl FOLDER

writes pairs.jsonl and pairs_eval.jsonl for dpo and orpo, kto.jsonl and kto_eval.jsonl, and for grpo prompts.jsonl (36 of data/train.jsonl) and
held-out.jsonl (the other 12) into FOLDER.
"""

import json
import pathlib
import sys

DATA = pathlib.Path(__file__).resolve().parents[2] / "data"


def lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def main(train, held_out, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for own, answers, end in (("train", train, ""), ("eval", held_out, "_eval")):
        chats = [record["messages"] for record in lines(DATA / f"{own}.jsonl")]
        pairs = []
        for chat, said in zip(chats, lines(answers), strict=True):
            assert said["prompt"] == chat[0]["content"], f"{answers}: expected {chat[0]['content']!r}, found {said['prompt']!r}"
            pairs.append({"prompt": chat[:1], "chosen": chat[1:2], "rejected": [{"role": "assistant", "content": said["answer"]}]})
        write(folder / f"pairs{end}.jsonl", pairs)
        judged = [
            {"prompt": pair["prompt"], "completion": pair[key], "label": key == "chosen"}
            for pair in pairs
            for key in ("chosen", "rejected")
        ]
        write(folder / f"kto{end}.jsonl", judged)
    prompts = [{"prompt": record["messages"][:-1]} for record in lines(DATA / "train.jsonl")]
    write(folder / "prompts.jsonl", prompts[:36])
    write(folder / "held-out.jsonl", prompts[36:])


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
