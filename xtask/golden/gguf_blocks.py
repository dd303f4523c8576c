"""Golden files for the tensor types of GGUF: data/golden/gguf/, what gguf-py (bit for bit as ggml) makes of a few rows.

blocks.safetensors   values [16, 64] in f32; q8_0 [16, 68] and q4_0 [16, 36], their bytes
meta.json            version

Needs the package `gguf`. `python gguf_blocks.py FILE.gguf FOLDER` compares an exported file with its model folder instead.
"""

import importlib.metadata
import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "data/golden/gguf"
TYPES = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}


def main():
    random = np.random.default_rng(5)
    values = random.standard_normal((16, 64)).astype(np.float32) * 0.05
    values[0] = 0.0
    # Halves, ties between magnitudes, and a block whose scale is no normal number of f16.
    values[1] = np.arange(64, dtype=np.float32) / 2 - 16
    values[2, :32] = np.tile(np.array([8, -8], np.float32), 16)
    values[3] *= 1e-6
    values[4] *= 1e4
    tensors = {"values": values} | {name: quantize(values, kind) for name, kind in TYPES.items()}
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    save_file(tensors, OUT / "blocks.safetensors")
    meta = {"made_by": "xtask/golden/gguf_blocks.py", "gguf": importlib.metadata.version("gguf"), "tolerance": "equal bytes"}
    (OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    (OUT / "blocks.safetensors").chmod(0o644)


def compare(file, folder):
    """The tensors of FILE are those of the model in FOLDER, quantized as gguf-py does it."""
    from safetensors import safe_open

    reader = gguf.GGUFReader(file)
    arch = reader.fields["general.architecture"].contents()
    kind = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[arch]
    layers = reader.fields[f"{arch}.block_count"].contents()
    names = gguf.get_tensor_name_map(kind, layers)
    tied = json.loads((pathlib.Path(folder) / "config.json").read_text()).get("tie_word_embeddings", False)
    stored, wrong = {tensor.name: tensor for tensor in reader.tensors}, 0
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():
                if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
                    continue
                tensor = stored.pop(names.get_name(name, try_suffixes=(".weight", ".bias")))
                values = weights.get_tensor(name).float().numpy()
                expected = quantize(values, tensor.tensor_type)
                found = tensor.data.view(np.uint8).reshape(-1)
                equal = np.array_equal(found, np.ascontiguousarray(expected).view(np.uint8).reshape(-1))
                wrong += not equal
                if not equal:
                    error = np.abs(dequantize(tensor.data, tensor.tensor_type) - values).max()
                    print(f"{tensor.name}: {tensor.tensor_type.name} differs, largest error {error}")
    print(f"{len(reader.tensors)} tensors, {wrong} differ, {len(stored)} without a counterpart")
    for key in ["general.name", "general.file_type", f"{arch}.context_length", "tokenizer.ggml.pre", "tokenizer.ggml.eos_token_id"]:
        print(key, "=", reader.fields[key].contents())
    sys.exit(wrong + len(stored) > 0)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        compare(*sys.argv[1:])
    main()
