"""Checks by hand that transformers and bitsandbytes load what the `quantize` example writes.

    cargo build -p examples --bin quantize
    python xtask/golden/bnb_load.py target/debug/quantize [MODEL_DIR]

Without MODEL_DIR a tiny random Qwen2 checkpoint is used. For single and double quantization the logits of our
checkpoint are compared with those of bitsandbytes' own `load_in_4bit` of the original, and the packed weights bit by
bit. The result is recorded in data/golden/bnb_load/meta.json.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import bitsandbytes
import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "data/golden/bnb_load"


def tiny_checkpoint(path, num_shards):
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.08,
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(path, max_shard_size="400KB" if num_shards > 1 else "1GB")


def compare(binary, model_dir, double_quant, work):
    ours_dir = work / f"nf4-{model_dir.name}-{int(double_quant)}"
    subprocess.run([binary, model_dir, ours_dir] + ["--double-quant"] * double_quant, check=True)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    load = dict(device_map="cpu", dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(model_dir, quantization_config=quantization, **load).eval()
    ours = AutoModelForCausalLM.from_pretrained(ours_dir, **load).eval()
    weights, different_bytes, different_values = 0, 0, 0
    for (name, theirs_weight), (_, ours_weight) in zip(theirs.named_parameters(), ours.named_parameters()):
        if not hasattr(theirs_weight, "quant_state"):
            assert torch.equal(theirs_weight, ours_weight), name
            continue
        weights += 1
        different_bytes += int((theirs_weight.data != ours_weight.data).sum())
        dequantize = bitsandbytes.functional.dequantize_4bit
        a, b = (dequantize(w.data, w.quant_state) for w in (theirs_weight, ours_weight))
        different_values += int((a != b).sum())
    ids = torch.arange(2, 26).reshape(2, 12)
    with torch.no_grad():
        a, b = theirs(ids).logits.float(), ours(ids).logits.float()
    return {
        "model": model_dir.name,
        "double_quant": double_quant,
        "quantized_weights": weights,
        "different_packed_bytes": different_bytes,
        "different_dequantized_values": different_values,
        "max_logit_difference": float((a - b).abs().max()),
        "max_logit": float(a.abs().max()),
    }


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    results = []
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        models = [pathlib.Path(path).resolve() for path in sys.argv[2:]]
        if not models:
            models = [work / "tiny-single", work / "tiny-sharded"]
            tiny_checkpoint(models[0], 1)
            tiny_checkpoint(models[1], 2)
        for model in models:
            for double_quant in (False, True):
                results.append(compare(binary, model, double_quant, work))
                print(results[-1])
    if sys.argv[2:]:
        return
    OUT.mkdir(parents=True, exist_ok=True)
    meta = {
        "made_by": "xtask/golden/bnb_load.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bitsandbytes": bitsandbytes.__version__,
        "tolerance": "packed bytes equal; with double quantization the mean of the scales may differ in its last bit",
        "results": results,
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    for result in results:
        assert result["different_packed_bytes"] == 0 and result["quantized_weights"] > 0, result
        assert result["max_logit_difference"] <= 0.02 * result["max_logit"], result


if __name__ == "__main__":
    main()
