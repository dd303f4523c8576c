"""Golden files for merged weights: data/golden/merge/, what PEFT makes of the model and the adapter in data/golden/peft/.

merged.safetensors   the weights of merge_and_unload, added in f32 and rounded to bf16 once
meta.json            versions and tolerance
"""

import json
import pathlib
import shutil

import peft
import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers import Qwen2ForCausalLM

DATA = pathlib.Path(__file__).resolve().parents[2] / "data/golden"
OUT = DATA / "merge"


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    base = Qwen2ForCausalLM.from_pretrained(DATA / "peft/model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, DATA / "peft/adapter").merge_and_unload()
    linears = {
        name: weight.to(torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        if name.endswith("_proj.weight")
    }
    save_file(linears, OUT / "merged.safetensors")
    meta = {
        "made_by": "xtask/golden/merge.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "tolerance": "one unit in the last place of bf16: sums of f32 in another order may fall on the other side of a tie",
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    (OUT / "merged.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
