"""An adapter of random numbers for the bundled model."""

import json
import pathlib
import random
import struct

ROOT = pathlib.Path(__file__).parents[4]


def write_adapter(folder):
    """A PEFT folder for the bundled model: rank 4 on `q_proj`, large enough to change the text."""
    config = json.loads((ROOT / "data/model/config.json").read_text())
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
    queries = heads * config.get("head_dim", hidden // heads)
    numbers = random.Random(1)
    header, data = {}, bytearray()
    for layer in range(config["num_hidden_layers"]):
        for matrix, shape in (("A", [4, hidden]), ("B", [queries, 4])):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{matrix}.weight"
            size = shape[0] * shape[1]
            start = len(data)
            data += struct.pack(f"<{size}f", *(numbers.gauss(0, 0.25) for _ in range(size)))
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
         "target_modules": ["q_proj"], "base_model_name_or_path": "bundled"}))
