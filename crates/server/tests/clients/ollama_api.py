"""Asks a running server through Ollama's client, and stops at the first answer that is wrong.

    python -m venv venv && venv/bin/pip install -r crates/server/tests/clients/requirements.txt
    venv/bin/python crates/server/tests/clients/ollama_api.py http://127.0.0.1:8000 MODEL

MODEL is a served name; it should be an instruct model that calls tools, such as Qwen2.5-Coder-0.5B-Instruct.
"""

import sys

import ollama

URL, MODEL = sys.argv[1:3]
client = ollama.Client(host=URL)
OPTIONS = {"temperature": 0, "num_predict": 48, "num_ctx": 1024, "seed": 1}
HELLO = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Say hello."}]


def get_weather(city: str) -> str:
    """Get the weather of a city.

    Args:
      city: Name of the city.
    """
    return f"Sunny in {city}, 21 degrees."


# What there is.
names = [model.model for model in client.list().models]
assert MODEL in names, names
shown = client.show(MODEL)
print("show:", shown.details, shown.capabilities, shown.modelinfo)
assert "completion" in shown.capabilities and shown.modelinfo["general.architecture"], shown
running = client.ps().models[0]
assert running.model in names and running.context_length, running

# Text, whole and streamed.
whole = client.chat(MODEL, HELLO, options=OPTIONS)
assert whole.done and whole.done_reason in ("stop", "length") and whole.eval_count > 0, whole
print("chat:", whole.message.content, whole.eval_count, whole.total_duration, whole.eval_duration)
parts = list(client.chat(f"{MODEL}:latest", HELLO, options=OPTIONS, stream=True))
assert "".join(part.message.content for part in parts) == whole.message.content, parts
assert parts[-1].done and parts[-1].eval_count == whole.eval_count, parts[-1]

# Prompts.
generated = client.generate(MODEL, "Say hello.", system="You are brief.", options=OPTIONS)
assert generated.response == whole.message.content, generated
raw = client.generate(MODEL, "def add(a, b):\n", raw=True, options=OPTIONS)
print("raw:", repr(raw.response))
if "insert" in shown.capabilities:
    gap = client.generate(MODEL, "def add(a, b):\n", suffix="\n    return c\n", options=OPTIONS)
    print("suffix:", repr(gap.response))
assert client.generate(MODEL).done_reason == "load"

# Tools, and their results.
turns = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
called = client.chat(MODEL, turns, tools=[get_weather], options=OPTIONS)
print("tools:", called.message)
for call in called.message.tool_calls or []:
    turns += [called.message, {"role": "tool", "tool_name": call.function.name, "content": get_weather(**call.function.arguments)}]
    print("result:", client.chat(MODEL, turns, tools=[get_weather], options=OPTIONS).message.content)
streamed = list(client.chat(MODEL, turns[:1], tools=[get_weather], options=OPTIONS, stream=True))
calls = [call for part in streamed for call in part.message.tool_calls or []]
assert [call.function for call in calls] == [call.function for call in called.message.tool_calls or []], streamed

# Errors.
for status, wrong in [
    (404, lambda: client.chat("llama3", HELLO)),
    (400, lambda: client.chat(MODEL, HELLO, options={"mirostat": 1})),
    (400, lambda: client.chat(MODEL, HELLO, options={"num_ctx": 10**9})),
    (501, lambda: client.pull("llama3")),
    (400, lambda: client.embed(MODEL, "x")),
]:
    try:
        wrong()
        raise SystemExit("no error")
    except ollama.ResponseError as error:
        assert error.status_code == status, error
        print("error:", error)
print("ok")
