#!/usr/bin/env python3
"""Times starts of a server on a card that is not there: no_card.c takes the place of the driver, NVRTC and the host are real.

    python3 -m venv cuda && cuda/bin/pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl
    cargo build -p server --features cuda
    python3 xtask/bench/starts.py cuda/lib/python3.*/site-packages/nvidia/cu13 target/debug/server

The first start finds no kernel on disk, the later ones find those of the first. What follows the program's path goes to each start, such as
the folder of a model. It prints seconds until a server is ready, what its warm-up took, and its slowest kernels.
"""

import argparse
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

# Seconds that a start may take.
PATIENCE = 300
KERNELS = 5
COMPILED = re.compile(r"compiled (\S+) in (\d+) ms, (\d+) of them to CUDA C\+\+")
WARMED_UP = re.compile(r"warmed up.*seconds=([0-9.]+)")
NO_CARD = re.compile(r"no card: .*[1-9]\d* launches.*")


def toolkit(folder, toolkit_folder):
    """A folder that looks like an installed toolkit, with a driver."""
    here = pathlib.Path(__file__).parent
    (folder / "include").symlink_to((toolkit_folder / "include").resolve())
    libraries = list((toolkit_folder / "lib").glob("libnvrtc*.so*"))
    if not libraries:
        raise SystemExit(f"{toolkit_folder}/lib: expected libnvrtc.so of NVIDIA's packages")
    for library in libraries:
        (folder / library.name).symlink_to(library.resolve())
        if library.name.startswith("libnvrtc.so"):
            (folder / "libnvrtc.so").symlink_to(library.resolve())
    driver = folder / "libcuda.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", str(driver), str(here / "no_card.c")], check=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def start(arguments, folder, log):
    """Seconds until a server is ready."""
    port = free_port()
    environment = {
        **os.environ,
        "CUDA_PATH": str(folder),
        "LD_LIBRARY_PATH": str(folder),
        "XDG_CACHE_HOME": str(folder / "caches"),
        "RUST_LOG": "info,cubecl_llvm=debug",
    }
    begin = time.monotonic()
    command = [*arguments, "--device", "cuda", "--port", str(port)]
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        while not is_ready(port):
            if server.poll() is not None or time.monotonic() - begin > PATIENCE:
                server.kill()
                raise SystemExit(f"no server after {time.monotonic() - begin:.0f} s:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        seconds = time.monotonic() - begin
        server.send_signal(signal.SIGTERM)
        server.wait()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("toolkit", type=pathlib.Path, help="folder with include and lib of NVIDIA's packages")
    parser.add_argument("server", nargs=argparse.REMAINDER, help="program and arguments")
    parser.add_argument("--starts", type=int, default=3, help="starts, the first one without kernels on disk (default 3)")
    args = parser.parse_args()
    if not args.server:
        parser.error("expected the program of a server")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        toolkit(folder, args.toolkit)
        for number in range(args.starts):
            log = folder / "log"
            seconds = start(args.server, folder, log)
            said = log.read_text()
            warm_up = WARMED_UP.search(said)
            without = "without kernels on disk" if number == 0 else "with them"
            print(f"ready after {seconds:.2f} s {without}, warm-up {warm_up and warm_up[1]} s; {NO_CARD.findall(said)[-1]}")
            compiled = sorted(((int(ms), int(printed), name) for name, ms, printed in COMPILED.findall(said)), reverse=True)
            if compiled:
                total = sum(ms for ms, _, _ in compiled)
                print(f"  the queue waited for {len(compiled)} kernels, {total} ms")
            for ms, printed, name in compiled[:KERNELS]:
                print(f"  {ms:6} ms, {printed} of them to CUDA C++: {name}")


if __name__ == "__main__":
    main()
