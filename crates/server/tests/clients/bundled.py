"""Runs the clients that are small to install against a server of the bundled model, which it starts. CI runs it.

    python -m venv venv && venv/bin/pip install -r crates/server/tests/clients/bundled-requirements.txt
    venv/bin/python crates/server/tests/clients/bundled.py target/debug/server

The bundled model is too small to choose tools: calls are forced, and schemas are short. Prints a line for each
check, and ends with 1 if one of them failed.
"""

import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import Literal

import kv_events
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field

HERE = pathlib.Path(__file__).parent
# A debug build on a busy machine starts within this many seconds.
START = 120
# The model likes white space, of which a grammar lets some through between any two parts.
MAX_TOKENS = 500
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


class Weather(BaseModel):
    """Get the weather of a city."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)


SCHEMA = {**Weather.model_json_schema(), "additionalProperties": False}
FUNCTION = {"name": "get_weather", "description": "Get the weather of a city", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def server(program, *flags):
    """The address of a server, until the block ends."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [program, "--device", "cpu", "--port", str(port), *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(address, process)
            yield address
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for(address, process):
    """Waits until a server answers."""
    for _ in range(10 * START):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("the server does not answer")


def client(address):
    return OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300, max_retries=0)


def chat(address, **fields):
    openai = client(address)
    model = openai.models.list().data[0].id
    return openai.chat.completions.create(model=model, messages=ASK, max_tokens=MAX_TOKENS, seed=1, **fields)


def is_weather(function):
    assert function.name == "get_weather", function
    Weather.model_validate_json(function.arguments)


def tools(address):
    for choice in ("required", NAMED):
        answer = chat(address, tools=TOOLS, tool_choice=choice).choices[0]
        calls = answer.message.tool_calls
        assert calls and all(call.id and call.type == "function" for call in calls), answer
        for call in calls:
            is_weather(call.function)


def tools_streamed(address):
    chunks = chat(address, tools=TOOLS, tool_choice=NAMED, stream=True)
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].id and deltas[0].function.name == "get_weather", deltas
    Weather.model_validate_json("".join(delta.function.arguments or "" for delta in deltas))


def wrong_tools(address):
    try:
        chat(address, tool_choice=NAMED)
    except BadRequestError as error:
        assert error.body["param"], error.body
    else:
        raise AssertionError("no error")


def parse(address):
    openai = client(address)
    model = openai.models.list().data[0].id
    fields = {"model": model, "messages": ASK, "max_tokens": MAX_TOKENS, "seed": 2}
    answer = openai.chat.completions.parse(**fields, response_format=Weather)
    assert isinstance(answer.choices[0].message.parsed, Weather), answer
    with openai.chat.completions.stream(**fields, response_format=Weather) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == answer.choices[0].message.parsed, streamed


def responses(address):
    openai = client(address)
    model = openai.models.list().data[0].id
    fields = {"model": model, "temperature": 0, "max_output_tokens": 12}
    first = openai.responses.create(**fields, input="Who are you?")
    assert first.output_text and 0 < first.usage.output_tokens <= 12, first
    second = openai.responses.create(**fields, input="Why?", previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens, second
    events = list(openai.responses.create(**fields, input="Who are you?", stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == first.output_text, text
    fields = {"model": model, "max_output_tokens": MAX_TOKENS}
    parsed = openai.responses.parse(**fields, input="The weather?", text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather), parsed
    tool = {"type": "function", "strict": False, **FUNCTION}
    called = openai.responses.create(**fields, input="The weather?", tools=[tool], tool_choice="required")
    calls = [item for item in called.output if item.type == "function_call"]
    assert calls, called
    for call in calls:
        is_weather(call)


def embeddings(address):
    openai = client(address)
    model = openai.models.list().data[0].id
    texts = ["Paris is a city.", "The sun shines."]
    # The client asks for base64 by itself.
    answer = openai.embeddings.create(model=model, input=texts)
    numbers = openai.embeddings.create(model=model, input=texts, encoding_format="float")
    for one, other in zip(answer.data, numbers.data, strict=True):
        assert len(one.embedding) == len(other.embedding) > 8, answer
        assert all(abs(a - b) < 1e-6 for a, b in zip(one.embedding, other.embedding)), answer
        assert abs(sum(value * value for value in one.embedding) - 1) < 1e-3, answer
    short = openai.embeddings.create(model=model, input="Paris", dimensions=8)
    assert len(short.data[0].embedding) == 8, short


def script(name):
    """A script beside this one, which stops at the first answer that is wrong."""

    def run(address):
        model = json.load(urllib.request.urlopen(f"{address}/v1/models"))["data"][0]["id"]
        command = [sys.executable, str(HERE / name), address, model]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


EVENTS, REPLAY = free_port(), free_port()
KV_EVENTS = {
    "enable_kv_cache_events": True,
    "endpoint": f"tcp://0.0.0.0:{EVENTS}",
    "replay_endpoint": f"tcp://127.0.0.1:{REPLAY}",
    "topic": "kv-events",
}


def cache_events(address):
    kv_events.check(address, EVENTS, REPLAY, "Once upon a time there was a duck who lived near the lake. " * 12)


CHECKS = {
    (): [
        ("openai: tools", tools),
        ("openai: tools, streamed", tools_streamed),
        ("openai: a wrong choice of tools", wrong_tools),
        ("openai: parse", parse),
        ("openai: responses", responses),
        ("anthropic", script("anthropic_messages.py")),
        ("ollama", script("ollama_api.py")),
    ],
    ("--convert", "embed"): [("openai: embeddings", embeddings)],
    ("--kv-events-config", json.dumps(KV_EVENTS)): [("pyzmq and msgspec: events of the KV cache", cache_events)],
    ("--enable-lora", "--enable-finetuning", "--finetuning-dir", "{folder}"): [("openai: fine-tuning", script("finetuning.py"))],
}


def main():
    num_failed = 0
    for flags, checks in CHECKS.items():
        folder = tempfile.TemporaryDirectory()
        flags = [flag.replace("{folder}", folder.name) for flag in flags]
        with folder, server(sys.argv[1], *flags) as address:
            for name, check in checks:
                start = time.monotonic()
                try:
                    check(address)
                    print(f"ok      {name} ({time.monotonic() - start:.1f} s)", flush=True)
                except Exception:
                    num_failed += 1
                    print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
    sys.exit(1 if num_failed else 0)


if __name__ == "__main__":
    main()
