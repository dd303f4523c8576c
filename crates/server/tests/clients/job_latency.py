"""The time between tokens with and without a fine-tuning job, in turns, as `server bench serve` measures it.

    job_latency.py target/release/server [--model DIR] [--rounds 3] [--prompts 8] [--tokens 100] [--priority normal]
        [--device cpu] [-- FLAGS]

Needs the package openai. Prints a line for each round. A machine that does something else beside it measures that.
"""

import argparse
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from openai import OpenAI

DATA = pathlib.Path(__file__).parents[4] / "data/train.jsonl"
SETTINGS = {"max_steps": 100_000, "save_steps": 100_000}


class Trial:
    """A server, and a job that is paused."""

    def __init__(self, args, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.args = args
        model = ["--model", args.model, "--served-model-name", "m"] if args.model else []
        command = [args.server, "--port", str(self.port), "--device", args.device, "--enable-lora", "--enable-finetuning",
                   "--finetuning-dir", folder, "--finetuning-priority", args.priority, *model, *args.flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait(self.is_ready)
        self.client = OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", timeout=600)
        self.jobs = self.client.fine_tuning.jobs
        file = self.client.files.create(file=DATA.open("rb"), purpose="fine-tune")
        name = self.client.models.list().data[0].id
        self.job = self.jobs.create(model=name, training_file=file.id, hyperparameters=SETTINGS).id
        self.wait(self.trains)
        self.jobs.pause(self.job)

    def wait(self, is_so):
        while not is_so():
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.2)

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200
        except OSError:
            return False

    def trains(self):
        return self.jobs.retrieve(self.job).status == "running"

    def steps(self):
        return max((event.data.get("step") or 0 for event in self.jobs.list_events(self.job, limit=9).data), default=0)

    def bench(self):
        """Median and 99th percentile of the time between tokens in ms, and tokens per second."""
        command = [self.args.server, "bench", "serve", "--port", str(self.port), "--dataset-name", "random", "--input-len", "32",
                   "--output-len", str(self.args.tokens), "--num-prompts", str(self.args.prompts), "--max-concurrency", "2",
                   "--ignore-eos"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        number = lambda name: float(re.search(rf"{name}[^\n]*?([\d.]+)\n", text)[1])
        return number("Median ITL"), number("P99 ITL"), number("Output token throughput")

    def round(self):
        time.sleep(2)
        alone = self.bench()
        self.jobs.resume(self.job)
        self.wait(self.trains)
        time.sleep(2)
        start, before = time.monotonic(), self.steps()
        beside = self.bench()
        seconds, steps = time.monotonic() - start, self.steps() - before
        self.jobs.pause(self.job)
        return {"alone": alone, "beside a job": beside, "p99 ratio": beside[1] / alone[1], "steps": steps, "seconds": seconds,
                "load": os.getloadavg()[0]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--priority", default="normal")
    parser.add_argument("--device", default="cpu")
    own = sys.argv[1:]
    end = own.index("--") if "--" in own else len(own)
    args = parser.parse_args(own[:end], argparse.Namespace(flags=own[end + 1:]))
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(args, folder)
        try:
            trial.bench()
            for _ in range(args.rounds):
                print(json.dumps(trial.round()), flush=True)
        finally:
            trial.process.terminate()
            trial.process.wait()


if __name__ == "__main__":
    main()
