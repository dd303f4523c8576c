"""The rotary frequencies of every RoPE type that transformers knows, and what the bundled model says with some of them.

Writes data/golden/rope/frequencies.json: for each case the fields of config.json that differ, the inverse frequencies and the
factor of cosines and sines; data/golden/rope/scores.json: the summed log-probabilities of a text; and meta.json.
"""
import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "data/golden") / "rope"
MODEL = pathlib.Path("data/model")
SHAPE = {"model_type": "qwen2", "hidden_size": 192, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 4096, "rope_theta": 1e6}
RAMP = [1.0 + i / 16 for i in range(48)]
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
CASES = {
    "plain": {},
    "theta inside": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "theta missing": {"rope_theta": None, "remove": ["rope_theta"]},
    "rope_scaling beside default parameters": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": {"type": "yarn", **YARN}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "linear in parameters": {"rope_parameters": {"rope_type": "linear", "factor": 8, "rope_theta": 1e4}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
    "yarn": {"rope_scaling": {"type": "yarn", **YARN}},
    "yarn without original": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "yarn with original outside": {"original_max_position_embeddings": 2048, "rope_scaling": {"rope_type": "yarn", **YARN}},
    "yarn without factor": {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512}},
    "yarn betas": {"rope_scaling": {"rope_type": "yarn", **YARN, "beta_fast": 16, "beta_slow": 2.0}},
    "yarn attention_factor": {"rope_scaling": {"rope_type": "yarn", **YARN, "attention_factor": 0.75}},
    "yarn mscale": {"rope_scaling": {"rope_type": "yarn", **YARN, "mscale": 1.5, "mscale_all_dim": 0.5}},
    "yarn mscale alone": {"rope_scaling": {"rope_type": "yarn", **YARN, "mscale": 1.5}},
    "yarn without truncation": {"rope_scaling": {"rope_type": "yarn", **YARN, "truncate": False}},
    "longrope": {"rope_scaling": {"type": "longrope", "short_factor": RAMP, "long_factor": [2 * r for r in RAMP],
                                  "original_max_position_embeddings": 1024}},
    "longrope factor": {"rope_scaling": {"rope_type": "longrope", "short_factor": RAMP, "long_factor": RAMP, "factor": 8.0,
                                         "original_max_position_embeddings": 2048}},
    "longrope attention_factor": {"rope_scaling": {"rope_type": "longrope", "short_factor": RAMP, "long_factor": RAMP,
                                                   "attention_factor": 1.25, "original_max_position_embeddings": 2048}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 1024}},
    "llama3 without original": {"rope_parameters": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                                                    "high_freq_factor": 4.0, "rope_theta": 5e5}},
    "proportional": {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    "proportional factor": {"partial_rotary_factor": 0.6, "rope_scaling": {"rope_type": "proportional", "factor": 2.0}},
    "head_dim 64": {"head_dim": 64, "rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}},
}
TEXT = "In a small harbour lived an old fisherman who mended nets and told the gulls about the weather of the day. " * 6
SCORES = {
    "plain": {},
    "card": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
    "extended": {"max_position_embeddings": 4096,
                 "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
    "attention 1": {"max_position_embeddings": 4096, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "attention_factor": 1.0}},
    "both places": {"remove": ["rope_theta"], "max_position_embeddings": 4096,
                    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
                    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
    "theta inside": {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 256}},
}


def edited(config, edit):
    config = {**config, **{k: v for k, v in edit.items() if k != "remove"}}
    for key in edit.get("remove", []):
        config.pop(key, None)
    return config


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    frequencies = []
    for name, edit in CASES.items():
        rotary = Qwen2RotaryEmbedding(Qwen2Config.from_dict(json.loads(json.dumps(edited(SHAPE, edit)))))
        frequencies.append({"name": name, "config": edited(SHAPE, edit), "inv_freq": rotary.inv_freq.tolist(),
                            "scale": float(rotary.attention_scaling)})
    (OUT / "frequencies.json").write_text(json.dumps(frequencies, indent=None, separators=(",", ":")).replace("},{", "},\n{") + "\n")

    tokens = AutoTokenizer.from_pretrained(MODEL)(TEXT, return_tensors="pt").input_ids
    plain = json.loads((MODEL / "config.json").read_text())
    scores = []
    for name, edit in SCORES.items():
        config = Qwen2Config.from_dict(edited(plain, edit))
        model = Qwen2ForCausalLM.from_pretrained(MODEL, config=config, dtype=torch.float64, attn_implementation="eager").eval()
        with torch.inference_mode():
            logprobs = model(tokens).logits[0].log_softmax(-1)
        sum_ = logprobs[:-1].gather(1, tokens[0, 1:, None]).sum().item()
        scores.append({"name": name, "edit": edit, "logprobs": sum_})
    (OUT / "scores.json").write_text(json.dumps({"text": TEXT, "num_tokens": tokens.shape[1], "cases": scores}, indent=1) + "\n")
    meta = {"torch": torch.__version__, "transformers": transformers.__version__,
            "tolerance": "frequencies: 1e-6, relative; scores: 0.01"}
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


main()
