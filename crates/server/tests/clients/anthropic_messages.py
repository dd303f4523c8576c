"""Asks a running server through Anthropic's client, and stops at the first answer that is wrong.

    python -m venv venv && venv/bin/pip install -r crates/server/tests/clients/requirements.txt
    venv/bin/python crates/server/tests/clients/anthropic_messages.py http://127.0.0.1:8000 MODEL [KEY]

MODEL is a served name; it should be an instruct model that calls tools, such as Qwen2.5-Coder-0.5B-Instruct.
"""

import sys

import anthropic

URL, MODEL = sys.argv[1:3]
KEY = sys.argv[3] if len(sys.argv) > 3 else "none"
client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)

TOOLS = [
    {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
]


def ask(text, **fields):
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "max_tokens": 64, "messages": messages, **fields}


# Text.
message = client.messages.create(**ask("Say hello.", system="You are brief.", extra_body={"temperature": 0}))
assert message.content[0].type == "text" and message.content[0].text, message
assert message.stop_reason in ("end_turn", "max_tokens"), message
assert message.usage.output_tokens > 0 and message._request_id, message
print("text:", message.content[0].text)

# Streaming gives the same.
with client.messages.stream(**ask("Say hello.", system="You are brief.", extra_body={"temperature": 0})) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == message.content[0].text, (text, message)
assert final.stop_reason == message.stop_reason, final
assert final.usage.output_tokens == message.usage.output_tokens, (final.usage, message.usage)
print("events:", [event.type for event in client.messages.create(stream=True, **ask("Hi", max_tokens=2))])

# Ends.
counting = ask("Count: 1 2 3 4 5 6 7 8", extra_body={"temperature": 0}, stop_sequences=["3"])
stopped = client.messages.create(**counting)
print("stop:", stopped.stop_reason, repr(stopped.stop_sequence), stopped.content)
assert client.messages.create(**ask("Tell a story.", max_tokens=3)).stop_reason == "max_tokens"

# Counts.
counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Say hello."}], system="You are brief.")
usage = message.usage
assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens, (counted, usage)

# Tools, and their results.
question = "What is the weather in Paris? Use the tool."
fields = ask(question, tools=TOOLS, extra_body={"temperature": 0})
called = client.messages.create(**fields)
print("tools:", called.stop_reason, called.content)
with client.messages.stream(**fields) as stream:
    streamed = stream.get_final_message()
assert [b.type for b in streamed.content] == [b.type for b in called.content], streamed
calls = [block for block in called.content if block.type == "tool_use"]
if calls:
    assert called.stop_reason == "tool_use" and calls[0].input, called
    assert streamed.content[-1].input == calls[-1].input, streamed
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 21 degrees."} for call in calls]
    turns = [
        *fields["messages"],
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": results},
    ]
    answer = client.messages.create(**{**fields, "messages": turns})
    print("result:", answer.content)
else:
    print("tools: the model called none")

# The tool runner asks for a thread first, and goes on without one.


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"Sunny in {city}, 21 degrees."


runner = client.beta.messages.tool_runner(
    model=MODEL,
    max_tokens=64,
    max_iterations=3,
    messages=[{"role": "user", "content": question}],
    tools=[get_weather],
    extra_body={"temperature": 0},
)
print("tool runner:", runner.until_done().content)

# Errors.
for fields, error in [
    (ask("x", model="claude-none"), anthropic.NotFoundError),
    (ask("x", tools=[{"type": "web_search_20250305", "name": "web_search"}]), anthropic.BadRequestError),
    (ask("x", extra_body={"no_such_field": 1}), anthropic.BadRequestError),
]:
    try:
        client.messages.create(**fields)
        raise SystemExit(f"no error: {fields}")
    except error as found:
        print("error:", found.status_code, found.body["error"])
print("ok")
