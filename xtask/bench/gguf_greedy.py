"""Exported GGUF files in llama.cpp beside the same weights in our server: greedy answers, token by token.

usage: gguf_greedy.py [--trainer PROGRAM] [--server PROGRAM] [--node FOLDER] [--types f16,...] [--tokens N] [-- EXPORT FLAGS]

`trainer-sft export EXPORT FLAGS --format gguf --type TYPE` writes each file. gguf-py unpacks its tensors into a model folder in
f32, which is what our server reads: both sides have the same weights. The server computes in f32; llama.cpp rounds what it
multiplies with a matrix to f16, to bf16 or to 8 bits, as the type of the matrix is. Where a token differs, both gaps between the two largest
logits are printed there: both are small where rounding alone decides.

Needs numpy and gguf (0.19), and a folder in which `npm i --ignore-scripts node-llama-cpp@3.22.1` was run. The exit code is 1
where fewer than three of the four answers have the same tokens.
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

import gguf
import numpy as np

PROMPTS = ["Who are you?", "Write a Python function that adds two numbers.", "What do cats eat?", "请用一句话介绍北京。"]
NEEDED = 3
HERE = pathlib.Path(__file__).resolve().parent


def names_of(weights):
    """The names of the tensors in a file of safetensors."""
    with open(weights, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return [name for name in json.loads(file.read(length)) if name != "__metadata__"]


def unpack(file, folder):
    """Puts the tensors of FILE, in f32, in the place of the weights in FOLDER."""
    reader = gguf.GGUFReader(file)
    arch = reader.fields["general.architecture"].contents()
    kind = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[arch]
    known = gguf.get_tensor_name_map(kind, reader.fields[f"{arch}.block_count"].contents())
    own = {}
    for weights in folder.glob("*.safetensors*"):
        if weights.suffix == ".safetensors":
            own |= {known.get_name(name, try_suffixes=(".weight", ".bias")): name for name in names_of(weights)}
        weights.unlink()
    header, start, tensors = {"__metadata__": {"format": "pt"}}, 0, []
    for tensor in reader.tensors:
        end = start + 4 * int(np.prod(tensor.shape))
        shape = [int(n) for n in reversed(tensor.shape)]
        header[own[tensor.name]] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        tensors.append(tensor)
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for tensor in tensors:
            out.write(gguf.dequantize(tensor.data, tensor.tensor_type).astype("<f4").tobytes())


class Server:
    """Our server on a model folder."""

    def __init__(self, program, folder, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        flags = ["--device", "cpu", "--compute-dtype", "float32", "--kv-cache-dtype", "float32", "--max-model-len", "512"]
        command = [program, "--model", str(folder), "--port", str(port), *flags]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.address}/health").close()
                return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"the server ended:\n{pathlib.Path(log.name).read_text()}")
                time.sleep(0.2)
        self.stop()
        sys.exit("the server does not answer")

    def post(self, path, body):
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.address}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def answer(self, prompt, max_tokens):
        """Tokens of prompt and answer, and how far the two largest logits of each token lie apart."""
        fields = {"temperature": 0, "repetition_penalty": 1, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
        messages = [{"role": "user", "content": prompt}]
        answer = self.post("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens, **fields})
        choice = answer["choices"][0]
        top = [[other["logprob"] for other in token["top_logprobs"]] for token in choice["logprobs"]["content"]]
        text = self.post("/detokenize", {"tokens": answer["prompt_token_ids"]})["prompt"]
        return {
            "prompt": answer["prompt_token_ids"],
            "text": text,
            "tokens": choice["token_ids"],
            "gaps": [max(pair) - min(pair) for pair in top],
            "ended": choice["finish_reason"] == "stop",
        }

    def stop(self):
        self.process.terminate()
        self.process.wait()


def first_difference(ours, theirs, stop):
    """The place of the first token that differs; an answer that ends has its end token there."""
    ours = [token for token in ours["tokens"] if token not in stop] + [None] * ours["ended"]
    theirs = [None if token in stop else token for token in theirs["tokens"]]
    places = range(max(len(ours), len(theirs)))
    at = lambda tokens, i: tokens[i] if i < len(tokens) else "nothing"
    return next((i for i in places if at(ours, i) != at(theirs, i)), None)


def export(args, kind, work):
    """A file of this type, a folder with its weights in f32, and the tokens that end an answer."""
    file, folder = work / f"{kind}.gguf", work / kind
    command = [args.trainer, "export", *args.flags]
    subprocess.run([*command, "--format", "gguf", "--type", kind, "--output", str(file)], check=True)
    # Configuration, tokenizer and template are those of the model.
    subprocess.run([*command, "--format", "hf", "--type", "f32", "--output", str(folder)], check=True)
    unpack(file, folder)
    stop = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return file, folder, stop if isinstance(stop, list) else [stop]


def llama(args, file, request):
    """What llama.cpp answers."""
    # A module finds its packages beside itself.
    script = pathlib.Path(args.node, f"llama_greedy-{os.getpid()}.mjs")
    shutil.copy(HERE / "llama_greedy.mjs", script)
    try:
        command = ["node", str(script), str(file), "2"]
        return json.loads(subprocess.run(command, input=json.dumps(request).encode(), stdout=subprocess.PIPE, check=True).stdout)
    finally:
        script.unlink()


def compare(kind, args, work):
    """How many answers have the same tokens."""
    file, folder, stop = export(args, kind, work)
    with open(work / f"{kind}.log", "w") as log:
        server = Server(args.server, folder, log)
        try:
            ours = [server.answer(prompt, args.tokens) for prompt in PROMPTS]
        finally:
            server.stop()
    shutil.rmtree(folder)
    request = {"prompts": [o["prompt"] for o in ours], "texts": [o["text"] for o in ours], "max_tokens": args.tokens, "stop": stop}
    theirs = llama(args, file, request)
    equal = 0
    for number, (prompt, our, their) in enumerate(zip(PROMPTS, ours, theirs)):
        if not their["same_prompt"]:
            print(f"{kind}: llama.cpp reads other tokens in: {prompt}")
            continue
        place = first_difference(our, their, stop)
        equal += place is None
        if place is not None:
            gap = lambda side: f"{side['gaps'][place]:.4f}" if place < len(side["gaps"]) else "none"
            print(f"{kind}: prompt {number + 1}, token {place + 1} differs; gap here {gap(our)}, in llama.cpp {gap(their)}")
    lengths = ", ".join(str(len(our["tokens"])) for our in ours)
    print(f"{kind}: {equal} of {len(PROMPTS)} answers have the same tokens ({lengths} tokens)", flush=True)
    return equal


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="target/debug/trainer-sft")
    parser.add_argument("--server", default="target/debug/server")
    parser.add_argument("--node", default=".", help="folder with node_modules")
    parser.add_argument("--types", default="f16,bf16,q8_0,q4_0")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("flags", nargs="*", help="of trainer-sft export: --adapter FOLDER, --model FOLDER")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        equal = [compare(kind, args, pathlib.Path(work)) for kind in args.types.split(",")]
    sys.exit(min(equal) < NEEDED)


if __name__ == "__main__":
    main()
