"""The loss of 200 steps of LoRA on the bundled model: this trainer on its devices, and PEFT with several seeds.

Each run draws its own order of data/train.jsonl and its own A, so that the runs of PEFT show how far seeds lie apart. Writes curves.svg
(the band is what PEFT's seeds span; every tenth step) and curves.json, and fails if a curve of this trainer leaves the band, smoothed
over 20 steps, by more than one of PEFT's seeds leaves the band of its others.

Run: python crates/trainer-sft/tests/peers/curves.py OUT TRAINER NAME=DEVICE,DTYPE ...   (torch, transformers, peft; CPU)
  as:  ... /tmp/curves target/debug/trainer-sft "CPU, f32=cpu,float32" "GPU, bf16=cuda,bfloat16"
A run of another machine is NAME=FILE, its metrics.jsonl; it keeps each run's under OUT.
"""

import json
import pathlib
import random
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[4]
STEPS, BATCH, RATE, WARMUP, RANK, SEEDS = 200, 4, 1e-4, 10, 16, 8
SMOOTH = 20


def examples(tokenizer):
    """Token ids and labels: the answer and the token that ends it."""
    found = []
    for line in (ROOT / "data/train.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        text = lambda part, **more: tokenizer.apply_chat_template(part, tokenize=False, **more)
        prompt = tokenizer.encode(text(messages[:-1], add_generation_prompt=True))
        tokens = tokenizer.encode(text(messages).removesuffix("\n"))
        assert tokens[: len(prompt)] == prompt
        found.append((tokens, [-100] * len(prompt) + tokens[len(prompt):]))
    return found


def peft_losses(seed):
    import peft
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    folder = ROOT / "data/model"
    data = examples(AutoTokenizer.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    rng, order, losses = random.Random(seed), [], []
    for _ in range(STEPS):
        if not order:
            order = rng.sample(range(len(data)), len(data))
        batch, order = [data[index] for index in order[:BATCH]], order[BATCH:]
        width = max(len(tokens) for tokens, _ in batch)
        pad = lambda row, value: row + [value] * (width - len(row))
        tokens = torch.tensor([pad(tokens, 0) for tokens, _ in batch])
        labels = torch.tensor([pad(labels, -100) for _, labels in batch])
        mask = torch.tensor([pad([1] * len(tokens), 0) for tokens, _ in batch])
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def own_losses(trainer, output, device, dtype, seed):
    flags = {
        "data": ROOT / "data/train.jsonl", "max-steps": STEPS, "batch-size": BATCH, "gradient-accumulation": 1, "quantization": "none",
        "learning-rate": RATE, "lr-schedule": "cosine", "warmup-steps": WARMUP, "weight-decay": 0, "lora-r": RANK,
        "lora-alpha": 2 * RANK, "lora-dropout": 0, "max-grad-norm": 1, "log-steps": 1, "device": device, "compute-dtype": dtype,
        "seed": seed, "output": output,
    }
    command = [trainer] + [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return losses_of(output / "metrics.jsonl")


def losses_of(metrics):
    lines = metrics.read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def smoothed(losses):
    windows = [losses[max(0, end - SMOOTH):end] for end in range(1, len(losses) + 1)]
    return [sum(window) / len(window) for window in windows]


def band_of(curves):
    """The lowest and the highest of them at each step."""
    return [[edge(step) for step in zip(*curves)] for edge in (min, max)]


def outside(curve, band):
    """How far a curve is outside of a band, at most."""
    return max(max(low - loss, loss - high, 0.0) for loss, low, high in zip(curve, *band))


def svg(band, curves):
    width, height, left, bottom = 760, 360, 50, 40
    top = max(max(band[1]), *(max(curve) for curve in curves.values()))
    x = lambda step: left + step * (width - left - 10) / (STEPS - 1)
    y = lambda loss: 10 + (top - loss) * (height - bottom - 10) / top
    path = lambda points: " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
    low, high = (list(enumerate(edge)) for edge in band)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             f'<polygon points="{path(low + high[::-1])}" fill="#bbb"/>']
    for tick in range(int(top) + 1):
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    for step in range(0, STEPS + 1, 50):
        parts.append(f'<text x="{x(min(step, STEPS - 1)):.1f}" y="{height - bottom + 18}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">step</text>')
    parts.append(f'<text x="{width - 200}" y="30" fill="#888">PEFT, {SEEDS} seeds</text>')
    for place, (name, curve) in enumerate(curves.items()):
        colour = ["#06c", "#c30", "#093", "#808"][place % 4]
        parts.append(f'<polyline points="{path(enumerate(curve))}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{width - 200}" y="{48 + 18 * place}" fill="{colour}">{name}</text>')
    return "\n".join(parts + ["</svg>", ""])


def main():
    output, trainer, *runs = sys.argv[1:]
    output = pathlib.Path(output)
    output.mkdir(parents=True)
    seeds = [smoothed(peft_losses(seed)) for seed in range(SEEDS)]
    band = band_of(seeds)
    spread = max(outside(seed, band_of([other for other in seeds if other is not seed])) for seed in seeds)
    curves, worst = {}, {}
    for run in runs:
        name, where = run.rsplit("=", 1)
        if pathlib.Path(where).is_file():
            losses = losses_of(pathlib.Path(where))
        else:
            losses = own_losses(trainer, output / str(len(curves)), *where.split(","), 0)
        curves[name] = smoothed(losses)
        worst[name] = outside(curves[name], band)
    last = {"PEFT": [seed[-1] for seed in seeds], **{name: curve[-1] for name, curve in curves.items()}}
    result = {"a seed of PEFT outside of the others, at most": spread, "furthest outside": worst, "loss of the last 20 steps": last}
    (output / "curves.json").write_text(json.dumps({**result, "curves": curves, "peft": seeds}) + "\n")
    (output / "curves.svg").write_text(svg(band, curves))
    print(json.dumps(result, indent=1))
    sys.exit(any(distance > spread for distance in worst.values()))


main()
