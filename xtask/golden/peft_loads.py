"""Checks by hand that PEFT loads what the trainer writes, in every form: plain, DoRA, modules_to_save, PiSSA, OLoRA, rsLoRA.

    cargo run -p trainer-sft --example written_adapters -- /tmp/adapters
    python xtask/golden/peft_loads.py /tmp/adapters

Each folder must load without a warning about keys, and the logits of the bundled model with it must equal those that this project
computes. The result is in docs/src/tested.md.
"""

import pathlib
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

MODEL = pathlib.Path(__file__).resolve().parents[2] / "data/model"
# Sums in another order, in f32.
TOLERANCE = 1e-3


def base():
    return Qwen2ForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()


def check(folder):
    expected = load_file(folder / "logits.safetensors")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base(), folder).eval()
    about_keys = [str(w.message) for w in caught if "keys" in str(w.message)]
    assert not about_keys, about_keys
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
        plain = base()(expected["input_ids"]).logits
    difference = (logits - expected["logits"]).abs().max().item()
    moved = (logits - plain).abs().max().item()
    print(f"{folder.name}: largest difference {difference:.1e}; the adapter changes logits by up to {moved:.2f}")
    assert difference < TOLERANCE < 0.1 < moved


def main():
    folders = sorted(path for path in pathlib.Path(sys.argv[1]).iterdir() if (path / "adapter_config.json").is_file())
    assert len(folders) == 6, folders
    for folder in folders:
        check(folder)
    print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
