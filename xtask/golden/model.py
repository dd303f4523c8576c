"""Tiny random Qwen2/Qwen3 checkpoints and the logits that Hugging Face transformers computes for them.

Writes data/golden/model/CASE/{config.json,model.safetensors,expected.safetensors} and meta.json.
"""
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "data/golden") / "model"
SHAPE = dict(
    vocab_size=200, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-6,
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6}
CASES = {
    "qwen2-tied": Qwen2Config(**SHAPE, tie_word_embeddings=True, rope_theta=1e6),
    "qwen2-untied": Qwen2Config(**SHAPE, tie_word_embeddings=False, rope_theta=1e4),
    "qwen2-yarn": Qwen2Config(**SHAPE, tie_word_embeddings=True, rope_parameters=YARN),
    "qwen3": Qwen3Config(**{**SHAPE, "head_dim": 16}, tie_word_embeddings=True, rope_theta=1e6),
}


def randomize(model, generator):
    """Every parameter away from its trivial initial value, biases and norms too."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)


def main():
    for seed, (name, config) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        randomize(model, generator)
        tokens = torch.randint(0, config.vocab_size, (1, 150), generator=generator)
        with torch.inference_mode():
            logits = model(tokens).logits[0]
            # An explicit mask: generate would take tokens equal to pad_token_id for padding.
            mask = torch.ones(1, 20, dtype=torch.long)
            greedy = model.generate(tokens[:, :20], attention_mask=mask, max_new_tokens=24, min_new_tokens=24, do_sample=False,
                                    pad_token_id=0, eos_token_id=None)[0, 20:]
        folder = OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        save_file({"tokens": tokens[0].to(torch.int32), "logits": logits[::7].contiguous(),
                   "greedy": greedy.to(torch.int32)}, folder / "expected.safetensors")
    meta = {"torch": torch.__version__, "transformers": transformers.__version__, "logits": "rows 0, 7, 14, ...",
            "tolerance": "1e-4 relative to the largest logit, f32", "greedy": "24 tokens after the first 20"}
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


main()
