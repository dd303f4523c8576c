#!/usr/bin/env python3
"""Whether a folder has all that kernels are compiled with: NVRTC and the headers of CUDA. It needs neither a card nor a driver.

    python3 xtask/release/nvrtc.py /usr/local/cuda
    python3 xtask/release/nvrtc.py venv/lib/python3.12/site-packages/nvidia/cu13

A kernel with the headers that CubeCL's kernels include is compiled for cards from Ampere to Hopper, by the options of CubeCL.
"""

import ctypes
import pathlib
import sys

LIBRARIES = ("lib64/libnvrtc.so*", "lib/libnvrtc.so*")
HEADERS = ("cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "mma.h", "cooperative_groups.h", "cuComplex.h", "cuda/barrier")
CARDS = ("80", "86", "89", "90")
SOURCE = "".join(f"#include <{header}>\n" for header in HEADERS) + """
extern "C" __global__ void kernel(__half* halves, __nv_bfloat16* numbers) {
    namespace wmma = nvcuda::wmma;
    int i = cooperative_groups::this_grid().thread_rank();
    halves[i] = __hadd(halves[i], halves[i]);
    numbers[i] = numbers[i] * numbers[i];
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> tile;
    wmma::fill_fragment(tile, 0.0f);
}
"""


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    found = [path for pattern in LIBRARIES for path in sorted(folder.glob(pattern))]
    if not found:
        raise SystemExit(f"{folder}: expected one of {', '.join(LIBRARIES)}")
    # It looks for the other one by its name alone.
    for builtins in found[0].parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(found[0]))
    includes = [path for path in (folder / "include", folder / "include/cccl") if path.is_dir()]
    for card in CARDS:
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.encode(), b"kernel.cu", 0, None, None)
        if status != 0:
            raise SystemExit(f"sm_{card}: nvrtcCreateProgram answers {status}")
        options = [f"--gpu-architecture=sm_{card}", "-lineinfo", *(f"--include-path={path}" for path in includes)]
        texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), texts) != 0:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise SystemExit(f"sm_{card}: {log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        print(f"sm_{card}: {size.value} bytes of code")
    files = [found[0], *found[0].parent.glob("libnvrtc-builtins.so*")]
    parts = {path.name: path.stat().st_size for path in files}
    parts["headers"] = sum(path.stat().st_size for path in (folder / "include").rglob("*") if path.is_file())
    print(", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in parts.items()))


if __name__ == "__main__":
    main()
