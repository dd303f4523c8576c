"""Golden files of the trainer: a tiny random Qwen2 trained by PyTorch.

Writes to data/golden/training/:
  model/              the tiny model as an HF folder, f32
  batches.json        token ids and labels of every optimizer step and micro-batch
  initial.safetensors the A and B that both trainers start from (PEFT tensor names)
  plain.safetensors, nf4.safetensors  the adapters after the last step
  losses.json         loss, gradient norm and learning rate of each step: plain, nf4, full
  optimizer.json      AdamW steps on one vector; schedules.json: learning-rate factors
  meta.json           versions and tolerances

Run: python xtask/golden/training.py   (torch, transformers, peft, bitsandbytes; CPU)
"""

import copy
import json
import pathlib
import random

import bitsandbytes
import peft
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "data/golden/training"
STEPS, ACCUMULATION, SEQUENCES = 50, 2, 2
LR, WEIGHT_DECAY, MAX_NORM, WARMUP = 1e-3, 0.01, 1.0, 5
FULL_STEPS, FULL_LR = 20, 3e-3


def tiny_model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=128, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None, eos_token_id=0, pad_token_id=None, attn_implementation="eager", dtype="float32",
    )
    model = Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.12 * torch.randn_like(parameter))
    return model


def make_batches():
    rng = random.Random(1)
    phrases = [[rng.randrange(1, 256) for _ in range(20)] for _ in range(6)]
    steps = []
    for _ in range(STEPS):
        step = []
        for _ in range(ACCUMULATION):
            sequences = []
            for _ in range(SEQUENCES):
                phrase = rng.choice(phrases)
                length = rng.randrange(4, 20)
                prompt = rng.randrange(1, length - 1)
                tokens = phrase[:length] + [0]
                labels = [-100] * prompt + tokens[prompt:]
                sequences.append({"tokens": tokens, "labels": labels})
            step.append(sequences)
        steps.append(step)
    return steps


def micro_loss(model, sequences):
    """Summed cross-entropy of a padded micro-batch."""
    width = max(len(s["tokens"]) for s in sequences)
    pad = lambda row, value: row + [value] * (width - len(row))
    tokens = torch.tensor([pad(s["tokens"], 0) for s in sequences])
    labels = torch.tensor([pad(s["labels"], -100) for s in sequences])
    mask = torch.tensor([pad([1] * len(s["tokens"]), 0) for s in sequences])
    logits = model(input_ids=tokens, attention_mask=mask).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum")


def train(model, groups, batches, lr, betas):
    return train_with(model, torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, weight_decay=WEIGHT_DECAY), batches)


def train_with(model, optimizer, batches):
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, WARMUP, len(batches))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    log = {"loss": [], "grad_norm": [], "lr": []}
    for step in batches:
        targets = sum(label != -100 for micro in step for s in micro for label in s["labels"][1:])
        optimizer.zero_grad()
        total = 0.0
        for micro in step:
            loss = micro_loss(model, micro) / targets
            loss.backward()
            total += loss.item()
        log["loss"].append(total)
        log["grad_norm"].append(torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM).item())
        log["lr"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return log


def quantize_base(model):
    """Replace every linear of the layers by what bitsandbytes' NF4 with double quantization reads back as, frozen.

    This is what Linear4bit with an f32 compute dtype computes: dequantize, then an f32 product."""
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            packed, state = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            module.weight.data = dequantize_4bit(packed, state).to(torch.float32)


def lora(model):
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def adapter_state(model):
    return {k: v.detach().clone().contiguous() for k, v in peft.get_peft_model_state_dict(model).items()}


def set_adapter(model, state):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name.replace(".default", "")])


def full_groups(model):
    """All parameters; matrices decay."""
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if p.dim() == 2]},
        {"params": [p for n, p in named if p.dim() == 1], "weight_decay": 0.0},
    ]


def optimizer_golden():
    torch.manual_seed(3)
    start = torch.randn(6)
    grads = [torch.randn(6) * s for s in (1.0, 0.1, 3.0, 1e-6, 0.5)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    values, norms = [], []
    for grad in grads:
        parameter.grad = grad.clone()
        norms.append(torch.nn.utils.clip_grad_norm_([parameter], 1.0).item())
        optimizer.step()
        values.append(parameter.detach().tolist())
    return {"lr": 0.01, "weight_decay": 0.1, "max_norm": 1.0, "start": start.tolist(),
            "grads": [g.tolist() for g in grads], "norms": norms, "values": values}


def schedules_golden():
    out = []
    for name, make in {
        "cosine": transformers.get_cosine_schedule_with_warmup,
        "linear": transformers.get_linear_schedule_with_warmup,
        "constant": lambda o, warmup, total: transformers.get_constant_schedule_with_warmup(o, warmup),
    }.items():
        for warmup, total in [(0, 7), (3, 20), (5, 5)]:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            schedule = make(optimizer, warmup, total)
            factors = []
            for _ in range(total):
                factors.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            out.append({"schedule": name, "warmup": warmup, "total": total, "factors": factors})
    peak = 2e-4
    for warmup, total in [(0, 7), (3, 10)]:
        for name, settings, arguments in [
            ("cosine_with_min_lr", {"min_lr_rate": 0.1}, {"min_lr_rate": 0.1}),
            ("inverse_sqrt", {}, {}),
            ("polynomial", {"lr_power": 1.0, "min_lr": 1e-7}, {"power": 1.0, "lr_end": 1e-7}),
            ("polynomial", {"lr_power": 2.0, "min_lr": 2e-5}, {"power": 2.0, "lr_end": 2e-5}),
            ("warmup_stable_decay", {"lr_decay_steps": 4, "min_lr_rate": 0.0}, {"num_decay_steps": 4}),
            ("warmup_stable_decay", {"lr_decay_steps": 2, "min_lr_rate": 0.25},
             {"num_decay_steps": 2, "min_lr_ratio": 0.25}),
            ("constant_with_warmup", {}, {}),
        ]:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
            schedule = transformers.get_scheduler(name, optimizer, warmup, total, arguments)
            factor = schedule.lr_lambdas[0]
            factors = [factor(step) for step in range(total + 2)]
            out.append({"schedule": name, "warmup": warmup, "total": total, **settings, "factors": factors})
    return out


def main():
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    base = tiny_model()
    base.save_pretrained(OUT / "model")
    (OUT / "model/generation_config.json").unlink(missing_ok=True)
    batches = make_batches()
    write = lambda name, value: (OUT / name).write_text(json.dumps(value) + "\n")
    write("batches.json", batches)

    torch.manual_seed(2)
    model = lora(copy.deepcopy(base))
    initial = adapter_state(model)
    initial = {k: v if "lora_A" in k else 0.02 * torch.randn_like(v) for k, v in initial.items()}
    save_file(initial, OUT / "initial.safetensors", metadata={"format": "pt"})
    losses = {}
    for name in ("plain", "nf4"):
        start = copy.deepcopy(base)
        if name == "nf4":
            quantize_base(start)
        model = lora(start)
        set_adapter(model, initial)
        losses[name] = train(model, [p for p in model.parameters() if p.requires_grad], batches, LR, (0.9, 0.999))
        save_file(adapter_state(model), OUT / f"{name}.safetensors", metadata={"format": "pt"})

    model = copy.deepcopy(base)
    losses["full"] = train(model, full_groups(model), batches[:FULL_STEPS], FULL_LR, (0.9, 0.95))
    write("losses.json", losses)
    write("optimizer.json", optimizer_golden())
    write("schedules.json", schedules_golden())
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft, bitsandbytes)}
    meta = {
        "versions": versions,
        "script": "xtask/golden/training.py",
        "settings": {"lr": LR, "weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_NORM, "warmup": WARMUP, "r": 4,
                     "lora_alpha": 8, "full_lr": FULL_LR, "full_betas": [0.9, 0.95]},
        "tolerances": {"loss": 1e-4, "adapter": 2e-5, "schedule": 1e-12, "optimizer": 1e-6},
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    for name, log in losses.items():
        print(name, log["loss"][0], log["loss"][-1], max(log["grad_norm"]), min(log["grad_norm"]))


if __name__ == "__main__":
    main()
