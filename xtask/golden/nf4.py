"""Golden file for NF4: data/golden/nf4/cases.safetensors, made by bitsandbytes on the CPU.

Each case `N` holds the weight, what `quantize_4bit` made of it (packed codes, scales; with double quantization the
8-bit codes, maps, second-level scales and offset) and the dequantized f32 values.
"""

import json
import math
import pathlib

import bitsandbytes
import bitsandbytes.functional as F
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "data/golden/nf4"


def dequantize(packed, state):
    # The AVX-512 kernel of bitsandbytes 0.50 reads the wrong scales when the number of columns is not a multiple of
    # the block size; the reference implementation next to it works by flat blocks, as the CUDA kernels do.
    absmax = state.absmax
    if state.nested:
        absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return _dequantize_4bit_compute(packed.reshape(-1), absmax.float(), state.code, 64, state.shape, torch.float32)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    code = F.get_4bit_type("nf4", device="cpu")
    midpoints = (code[1:] + code[:-1]) / 2
    ties = torch.zeros(2, 64)
    ties[:, 0] = 1.0
    ties[0, 1:16] = midpoints
    ties[0, 16:31] = torch.nextafter(midpoints, torch.tensor(2.0))
    ties[1, 1:16] = torch.nextafter(midpoints, torch.tensor(-2.0))
    ties[1, 16:32] = code
    zeros = torch.randn(4, 64)
    zeros[1] = 0.0
    wide = torch.randn(64, 320) * torch.exp(torch.randn(64, 320))
    cases = {
        "random_f32": torch.randn(16, 128),
        "random_bf16": (torch.randn(48, 192) * 0.02).to(torch.bfloat16),
        "random_f16": (torch.randn(16, 128) * 0.1).to(torch.float16),
        "blocks_cross_rows": torch.randn(6, 96),
        "partial_last_block": torch.randn(3, 50),
        "odd_length": torch.randn(3, 33),
        "shorter_than_a_block": torch.randn(1, 5),
        "ties": ties,
        "zero_block": zeros,
        "all_zero": torch.zeros(2, 64),
        "zero_partial_block": torch.cat([torch.randn(64), torch.zeros(8)]).reshape(4, 18),
        "nested_blocks": wide,
    }
    tensors, offsets = {"dynamic_map": F.create_dynamic_map()}, {}
    for name, weight in cases.items():
        tensors[f"{name}.weight"] = weight
        packed, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
        tensors[f"{name}.packed"] = packed.reshape(-1)
        tensors[f"{name}.absmax"] = state.absmax
        tensors[f"{name}.dequantized"] = dequantize(packed, state)
        packed2, nested = F.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
        assert torch.equal(packed, packed2)
        tensors[f"{name}.nested_codes"] = nested.absmax
        tensors[f"{name}.nested_absmax"] = nested.state2.absmax
        tensors[f"{name}.nested_offset"] = nested.offset.reshape(1)
        tensors[f"{name}.nested_dequantized"] = dequantize(packed, nested)
        if weight.shape[1] % 64 == 0:
            fast = F.dequantize_4bit(packed, nested, quant_type="nf4").float()
            assert torch.equal(fast, tensors[f"{name}.nested_dequantized"].to(weight.dtype).float()), name
    # The 8-bit quantization alone, on values over many decades.
    values = torch.randn(2000) * torch.exp(4 * torch.randn(2000))
    codes, state = F.quantize_blockwise(values, blocksize=256)
    tensors |= {"blockwise.values": values, "blockwise.codes": codes, "blockwise.absmax": state.absmax}
    for name in list(tensors):
        tensors[name] = tensors[name].contiguous()
        assert not tensors[name].is_floating_point() or not math.isnan(tensors[name].float().sum())
    save_file(tensors, OUT / "cases.safetensors")
    (OUT / "cases.safetensors").chmod(0o644)
    meta = {
        "made_by": "xtask/golden/nf4.py",
        "torch": torch.__version__,
        "bitsandbytes": bitsandbytes.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cases": list(cases),
        "tolerance": "none: all bytes and all f32 bits are equal; nested_offset within 1e-6 relative, and "
        "nested codes are compared at the recorded offset",
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


if __name__ == "__main__":
    main()
