#!/usr/bin/env python3
"""GuideLLM against a running server: no request fails, and each has as many tokens as were asked for.

    python3 -m venv venv && venv/bin/pip install guidellm==0.8.1
    target/debug/server --port 8000 &
    venv/bin/python crates/server/tests/clients/guidellm.py http://127.0.0.1:8000

GuideLLM brings PyTorch. Its tokenizer is the folder that the server names as its model's, or that TOKENIZER names. Ends with 1
if something failed.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
with urllib.request.urlopen(f"{ADDRESS}/v1/models") as answer:
    TOKENIZER = os.environ.get("TOKENIZER", json.load(answer)["data"][0]["root"])
PROFILES = ["kind=concurrent,streams=2", "kind=constant,rate=2"]
FORMATS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
REQUESTS, TOKENS = 6, 24


def run(form, profile):
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        command = [pathlib.Path(sys.executable).with_name("guidellm"), "run", "--disable-progress"]
        command += ["--backend", f"kind=openai_http,target={ADDRESS},request_format={form}"]
        command += ["--tokenizer", f"kind=hf_auto,model={TOKENIZER}", "--profile", profile]
        command += ["--constraint", f"kind=max_requests,count={REQUESTS}"]
        command += ["--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={TOKENS}"]
        command += ["--output", f"kind=json,path={report}"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0 and report.exists(), (done.stdout + done.stderr)[-3000:]
        return json.loads(report.read_text())


failed = 0
for form in FORMATS:
    for profile in PROFILES:
        requests = run(form, profile)["benchmarks"][0]["requests"]
        numbers = {kind: len(requests[kind] or []) for kind in ("successful", "errored")}
        tokens = [request["output_metrics"]["text_tokens"] for request in requests["successful"]]
        works = numbers == {"successful": REQUESTS, "errored": 0} and tokens == [TOKENS] * REQUESTS
        failed |= not works
        print(f"{'passed' if works else 'FAILED'}: {form}, {profile}: {numbers}, tokens {tokens}", flush=True)
sys.exit(failed)
