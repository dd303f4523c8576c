"""Prefill and greedy decode of Hugging Face transformers on the CPU. usage: hf_cpu.py MODEL_DIR THREADS"""
import sys
import time

import torch
from transformers import AutoModelForCausalLM

PROMPT, GENERATED = 512, 64

torch.set_num_threads(int(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
ids = torch.arange(1000, 1000 + 7 * PROMPT, 7)[None] % model.config.vocab_size
with torch.inference_mode():
    model(ids[:, :64])
    for _ in range(2):
        start = time.time()
        model(ids)
        prefill = PROMPT / (time.time() - start)
        times = []
        for n in (1, 1 + GENERATED):
            start = time.time()
            model.generate(ids[:, :32], max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
            times.append(time.time() - start)
        decode = GENERATED / (times[1] - times[0])
        print(f"transformers bf16: prefill {PROMPT}: {prefill:.1f} tok/s; decode {decode:.2f} tok/s")
