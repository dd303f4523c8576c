"""Golden files of training methods: the tiny model of data/golden/training trained by PEFT.

Writes to data/golden/methods/, for each method NAME (dora, modules_to_save, pissa, olora):
  NAME.json              loss and gradient norm of each step
  NAME/start/            the adapter that both trainers start from, as PEFT saves it
  NAME/end/              the adapter after the last step; of pissa and olora the plain one that PEFT converts it to
  NAME/logits.safetensors  input_ids [1, 12], and the logits of the base with the adapter of the last step
  adamw_8bit.safetensors the dynamic maps of bitsandbytes, and three steps of its 8-bit AdamW on one vector
  meta.json              versions, settings and tolerances

The batches are the first ones of data/golden/training/batches.json. Run data/golden/training's script first.

Run: python xtask/golden/methods.py   (torch, transformers, peft, bitsandbytes; CPU)
"""

import json
import os
import pathlib
import shutil

# bitsandbytes compiles its reference otherwise.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes
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


def save(model, path, **arguments):
    model.save_pretrained(path, **arguments)
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
    conversion = {}
    if "init_lora_weights" in fields:
        conversion["path_initial_model_for_weight_conversion"] = str(folder / "start")
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(folder / "start")
        model.peft_config["default"].init_lora_weights = fields["init_lora_weights"]
    else:
        disturb(model)
        save(model, folder / "start")
    log = train(model, [p for p in model.parameters() if p.requires_grad], batches, LR, (0.9, 0.999))
    save(model, folder / "end", **conversion)
    if conversion:
        # The start is computed by both programs.
        shutil.rmtree(folder / "start")
    (OUT / f"{name}.json").write_text(json.dumps(log) + "\n")
    model.eval()
    torch.manual_seed(9)
    ids = torch.randint(2, 256, (1, 12))
    if conversion:
        model = peft.PeftModel.from_pretrained(base(), folder / "end").eval()
    with torch.no_grad():
        logits = model(ids).logits
    plain = base()(ids).logits
    assert (logits - plain).abs().max() > 0.1
    save_file({"input_ids": ids, "logits": logits.contiguous()}, folder / "logits.safetensors")
    print(name, log["loss"][0], log["loss"][-1], max(log["grad_norm"]))


def adamw_8bit():
    from bitsandbytes.backends.triton.kernels_optim import optimizer_update_8bit_blockwise_pytorch as update
    from bitsandbytes.functional import create_dynamic_map
    torch.manual_seed(4)
    # Sixteen blocks and a part of one.
    values = torch.randn(16 * 256 + 7)
    signed, unsigned = create_dynamic_map(signed=True), create_dynamic_map(signed=False)
    blocks = -(-len(values) // 256)
    mean, variance = (torch.zeros(len(values), dtype=torch.uint8) for _ in range(2))
    mean_absmax, variance_absmax = torch.zeros(blocks), torch.zeros(blocks)
    out = {"signed": signed, "unsigned": unsigned, "start": values.clone()}
    for step in (1, 2, 3):
        gradient = torch.randn(len(values)) * 10 ** (torch.rand(len(values)) * 4 - 3)
        gradient[256:512] = 0
        update(values, gradient, mean, variance, 0.9, 0.999, 0.0, 0.0, 1e-8, step, 1e-2, signed, unsigned, mean_absmax,
               variance_absmax, 0.1, 0.5, False, optimizer_name="adam")
        out |= {f"gradient_{step}": gradient, f"values_{step}": values.clone()}
    out |= {"mean": mean, "variance": variance, "mean_absmax": mean_absmax, "variance_absmax": variance_absmax}
    save_file(out, OUT / "adamw_8bit.safetensors")


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    batches = json.loads((DATA / "training/batches.json").read_text())[:STEPS]
    run("dora", batches, use_dora=True)
    run("modules_to_save", batches, modules_to_save=["embed_tokens", "lm_head"])
    run("pissa", batches, init_lora_weights="pissa")
    run("olora", batches, init_lora_weights="olora")
    adamw_8bit()
    meta = {
        "made_by": "xtask/golden/methods.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "bitsandbytes": bitsandbytes.__version__,
        "settings": {"lr": LR, "weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_NORM, "warmup": WARMUP, "r": 4,
                     "lora_alpha": 8},
        "tolerances": {"loss": 1e-4, "adapter": 2e-5, "logits": 1e-3},
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    for path in OUT.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
