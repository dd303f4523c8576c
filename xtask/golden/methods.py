"""Golden files of training methods: the tiny model of data/golden/training trained by PEFT.

Writes to data/golden/methods/, for each method NAME (dora, modules_to_save):
  NAME.json              loss and gradient norm of each step
  NAME/start/            the adapter that both trainers start from, as PEFT saves it
  NAME/end/              the adapter after the last step
  NAME/logits.safetensors  input_ids [1, 12], and the logits of the base with the adapter of the last step
  meta.json              versions, settings and tolerances

The batches are the first ones of data/golden/training/batches.json. Run data/golden/training's script first.

Run: python xtask/golden/methods.py   (torch, transformers, peft, bitsandbytes; CPU)
"""

import json
import pathlib
import shutil

import peft
import torch
import transformers
from safetensors.torch import save_file
from transformers import Qwen2ForCausalLM

from training import LR, MAX_NORM, WARMUP, WEIGHT_DECAY, train

DATA = pathlib.Path(__file__).resolve().parents[2] / "data/golden"
OUT = DATA / "methods"
STEPS = 30
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base():
    return Qwen2ForCausalLM.from_pretrained(
        DATA / "training/model", dtype=torch.float32, attn_implementation="eager")


def config(**fields):
    fields = {"r": 4, "lora_alpha": 8, "target_modules": LINEARS, "task_type": "CAUSAL_LM"} | fields
    return peft.LoraConfig(**fields)


def save(model, path):
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    file = path / "adapter_config.json"
    fields = json.loads(file.read_text()) | {"base_model_name_or_path": "tiny-qwen2"}
    fields["target_modules"].sort()
    file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def disturb(model):
    """What a new adapter leaves at zero or at the base's own value is moved, so that every term counts."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn_like(parameter))
            elif "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))


def run(name, batches, **fields):
    torch.manual_seed(1)
    model = peft.get_peft_model(base(), config(**fields))
    folder = OUT / name
    disturb(model)
    save(model, folder / "start")
    log = train(model, [p for p in model.parameters() if p.requires_grad], batches, LR, (0.9, 0.999))
    save(model, folder / "end")
    (OUT / f"{name}.json").write_text(json.dumps(log) + "\n")
    model.eval()
    torch.manual_seed(9)
    ids = torch.randint(2, 256, (1, 12))
    with torch.no_grad():
        logits = model(ids).logits
    plain = base()(ids).logits
    assert (logits - plain).abs().max() > 0.1
    save_file({"input_ids": ids, "logits": logits.contiguous()}, folder / "logits.safetensors")
    print(name, log["loss"][0], log["loss"][-1], max(log["grad_norm"]))


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    batches = json.loads((DATA / "training/batches.json").read_text())[:STEPS]
    run("dora", batches, use_dora=True)
    run("modules_to_save", batches, modules_to_save=["embed_tokens", "lm_head"])
    meta = {
        "made_by": "xtask/golden/methods.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "settings": {"lr": LR, "weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_NORM, "warmup": WARMUP, "r": 4,
                     "lora_alpha": 8},
        "tolerances": {"loss": 1e-4, "adapter": 1e-3, "logits": 1e-3},
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    for path in OUT.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
