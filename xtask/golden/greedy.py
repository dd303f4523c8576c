"""Greedy text of a real checkpoint, computed by transformers in f32. Set MODEL to its folder.

Writes data/golden/greedy/NAME.json: prompts (token ids, rendered by the model's own chat template) and the
tokens that follow. `cargo run -p examples --bin check_greedy -- MODEL_DIR FILE` compares.
"""
import json
import os
import pathlib
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "data/golden") / "greedy"
LONG = " ".join(
    f"Entry {i}: the ship passed buoy {i * 37 % 101} at {i % 12} o'clock and logged {i * i % 97} knots of wind."
    for i in range(1, 26)
)
PROMPTS = {
    "english": "Explain in a few sentences why the sky is blue.",
    "chinese": "请用几句话介绍一下长城的历史。",
    "code": "Write a Python function that returns the n-th Fibonacci number iteratively.",
    "long": LONG + "\nWhich entry logged the most wind? Explain your answer.",
}
TOKENS = 48


def main():
    folder = os.environ.get("MODEL")
    if not folder:
        print("greedy: set MODEL to the folder of a real checkpoint; skipped")
        return
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cases = []
    for name, prompt in PROMPTS.items():
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
                                 num_beams=1, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0)
        cases.append({"name": name, "message": prompt, "prompt": ids[0].tolist(), "output": out[0, ids.shape[1]:].tolist()})
        print(name, ids.shape[1], repr(tokenizer.decode(out[0, ids.shape[1]:])), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    result = {"model": pathlib.Path(folder).name, "torch": torch.__version__, "transformers": transformers.__version__,
              "dtype": "float32", "tolerance": "equal token for token", "cases": cases}
    (OUT / f"{pathlib.Path(folder).name}.json").write_text(json.dumps(result, ensure_ascii=False) + "\n")


main()
