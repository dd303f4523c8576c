"""Checks by hand that PEFT loads the adapters this project writes.

    cargo run -p lora-4bit --example rewrite_adapter -- data/golden/peft/adapter /tmp/adapter
    python xtask/golden/peft_roundtrip.py /tmp/adapter

The adapter at the path must be data/golden/peft/adapter, read and written again. The logits of the base model with it
must equal those recorded for the original. The result goes to data/golden/peft/meta.json under `roundtrip`.
"""

import json
import pathlib
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "data/golden/peft"


def main():
    ours = pathlib.Path(sys.argv[1])
    expected = load_file(GOLDEN / "outputs.safetensors")
    base = Qwen2ForCausalLM.from_pretrained(GOLDEN / "model", dtype=torch.float32, attn_implementation="eager").eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, ours).eval()
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    a, b = LoraConfig.from_pretrained(GOLDEN / "adapter"), LoraConfig.from_pretrained(ours)
    differing = sorted(k for k, v in a.to_dict().items() if b.to_dict()[k] != v)
    original, written = (load_file(path / "adapter_model.safetensors") for path in (GOLDEN / "adapter", ours))
    assert original.keys() == written.keys()
    assert all(torch.equal(original[k], written[k]) for k in original)
    result = {
        "max_logit_difference": float((logits - expected["logits_adapter"]).abs().max()),
        "config_fields_that_differ": differing,
        "warnings_about_keys": [str(w.message) for w in caught if "keys" in str(w.message)],
    }
    print(result)
    assert result["max_logit_difference"] == 0.0 and not differing and not result["warnings_about_keys"]
    meta = json.loads((GOLDEN / "meta.json").read_text()) | {"roundtrip": result}
    (GOLDEN / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


if __name__ == "__main__":
    main()
