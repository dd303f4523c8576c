"""Golden files of learning rates and optimizers: the tiny model of data/golden/training, trained by PEFT and bitsandbytes.

Writes to data/golden/optimizers/, for each NAME:
  loraplus, rslora       NAME.json: loss, gradient norm and learning rate of each step; NAME.safetensors: the adapter after the last
                         step (PEFT tensor names). Both start from data/golden/training/initial.safetensors
  rslora_config.json     what PEFT writes as adapter_config.json
  full                   full.safetensors: all weights after the run whose losses data/golden/training/losses.json has
  full_8bit              NAME.json and NAME.safetensors: the same with AdamW's moments in 8 bits, 30 steps
  meta.json              versions, settings and tolerances

The batches are the first ones of data/golden/training/batches.json. Run data/golden/training's script first.

Run: python xtask/golden/optimizers.py   (torch, transformers, peft, bitsandbytes; CPU)
"""

import json
import math
import os
import pathlib
import tempfile

# bitsandbytes compiles its reference otherwise.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes
import peft
import torch
import transformers
from bitsandbytes.backends.triton.kernels_optim import optimizer_update_8bit_blockwise_pytorch
from bitsandbytes.functional import create_dynamic_map
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from training import (
    FULL_LR, FULL_STEPS, LR, MAX_NORM, WARMUP, WEIGHT_DECAY, adapter_state, full_groups, set_adapter, train, train_with)

DATA = pathlib.Path(__file__).resolve().parents[2] / "data/golden"
OUT = DATA / "optimizers"
STEPS = 30
RATIO = 16
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Of bitsandbytes: fewer values keep their moments in f32.
MIN_8BIT = 4096
BLOCK = 256


def base():
    return Qwen2ForCausalLM.from_pretrained(
        DATA / "training/model", dtype=torch.float32, attn_implementation="eager")


def adapted(**fields):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=LINEARS, task_type="CAUSAL_LM", **fields)
    model = peft.get_peft_model(base(), config)
    set_adapter(model, load_file(DATA / "training/initial.safetensors"))
    return model


class AdamW8bit(torch.optim.AdamW):
    """AdamW of torch for small parameters and bitsandbytes' reference of its 8-bit kernel for the others."""

    def step(self):
        hidden = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.numel() >= MIN_8BIT:
                    self.update(parameter, group)
                    hidden.append((parameter, parameter.grad))
                    parameter.grad = None
        super().step()
        for parameter, gradient in hidden:
            parameter.grad = gradient

    @torch.no_grad()
    def update(self, parameter, group):
        state = self.state.setdefault(parameter, {})
        if not state:
            state["signed"], state["unsigned"] = create_dynamic_map(signed=True), create_dynamic_map(signed=False)
            state["mean"], state["variance"] = (torch.zeros(parameter.numel(), dtype=torch.uint8) for _ in range(2))
            blocks = math.ceil(parameter.numel() / BLOCK)
            state["mean_absmax"], state["variance_absmax"] = torch.zeros(blocks), torch.zeros(blocks)
            state["steps"] = 0
        state["steps"] += 1
        values = parameter.flatten().clone()
        optimizer_update_8bit_blockwise_pytorch(
            values, parameter.grad.flatten().clone(), state["mean"], state["variance"], *group["betas"], 0.0, 0.0, group["eps"],
            state["steps"], group["lr"], state["signed"], state["unsigned"], state["mean_absmax"], state["variance_absmax"],
            group["weight_decay"], 1.0, False, optimizer_name="adam")
        parameter.copy_(values.reshape(parameter.shape))


def write(name, log, state):
    if log:
        (OUT / f"{name}.json").write_text(json.dumps(log) + "\n")
        print(name, log["loss"][0], log["loss"][-1], max(log["grad_norm"]))
    save_file(state, OUT / f"{name}.safetensors", metadata={"format": "pt"})


def weights(model):
    state = model.state_dict()
    return {name: value.detach().clone().contiguous() for name, value in state.items() if name != "lm_head.weight"}


def main():
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    all_batches = json.loads((DATA / "training/batches.json").read_text())
    batches = all_batches[:STEPS]

    model = adapted()
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=RATIO,
        loraplus_weight_decay=WEIGHT_DECAY, betas=(0.9, 0.999), eps=1e-8)
    rates = {group["lr"] for group in optimizer.param_groups if group["params"]}
    assert sorted(rates) == [LR, LR * RATIO]
    write("loraplus", train_with(model, optimizer, batches), adapter_state(model))

    model = adapted(use_rslora=True)
    log = train(model, [p for p in model.parameters() if p.requires_grad], batches, LR, (0.9, 0.999))
    write("rslora", log, adapter_state(model))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        fields = json.loads(pathlib.Path(folder, "adapter_config.json").read_text())
    fields = fields | {"base_model_name_or_path": "tiny-qwen2"}
    fields["target_modules"].sort()
    (OUT / "rslora_config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")

    model = base()
    log = train(model, full_groups(model), all_batches[:FULL_STEPS], FULL_LR, (0.9, 0.95))
    expected = json.loads((DATA / "training/losses.json").read_text())["full"]["loss"]
    assert all(abs(a - b) < 1e-5 for a, b in zip(log["loss"], expected, strict=True))
    write("full", None, weights(model))

    model = base()
    optimizer = AdamW8bit(full_groups(model), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY)
    write("full_8bit", train_with(model, optimizer, batches), weights(model))
    # What f32 moments would have given is elsewhere.
    f32 = base()
    train(f32, full_groups(f32), batches, LR, (0.9, 0.999))
    ours, theirs = weights(model), weights(f32)
    print("8 bits against f32:", max((ours[name] - theirs[name]).abs().max().item() for name in ours))

    meta = {
        "made_by": "xtask/golden/optimizers.py",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, bitsandbytes)},
        "settings": {"lr": LR, "loraplus_lr_ratio": RATIO, "weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_NORM,
                     "warmup": WARMUP, "r": 4, "lora_alpha": 8, "full_lr": FULL_LR, "full_betas": [0.9, 0.95]},
        "tolerances": {"loss": 1e-4, "adapter": 2e-5, "weights": 5e-5, "weights_8bit": 1.5e-3, "weights_beside_8bit": 5e-4,
                       "k_proj.bias": 1e-3},
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    for path in OUT.glob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
