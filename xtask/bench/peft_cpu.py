"""LoRA training of PEFT on the CPU, 1 x 512 tokens. usage: peft_cpu.py MODEL_DIR THREADS [DTYPE ...]"""
import multiprocessing
import resource
import sys
import time

TOKENS, STEPS = 512, 4


def train(folder, threads, dtype):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.arange(TOKENS)[None] * 2_654_435_761 % model.config.vocab_size
    for _ in range(STEPS):
        start = time.time()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate = TOKENS / (time.time() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"PEFT LoRA, {dtype}: 1 x {TOKENS}: {rate:.1f} tok/s; loss {loss.item():.3f}; peak {peak} MiB", flush=True)


if __name__ == "__main__":
    for name in sys.argv[3:] or ["bfloat16", "float32"]:
        # A process for each, so that the peak is its own.
        arguments = (sys.argv[1], int(sys.argv[2]), name)
        process = multiprocessing.get_context("spawn").Process(target=train, args=arguments)
        process.start()
        process.join()
