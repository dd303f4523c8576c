"""Tools and reasoning through OpenAI's and LangChain's clients, against a running server with a real model.

    python -m venv venv && venv/bin/pip install -r crates/server/tests/clients/requirements.txt
    server Qwen/Qwen2.5-Coder-1.5B-Instruct --port 8000
    venv/bin/python crates/server/tests/clients/tools.py http://127.0.0.1:8000/v1

Prints a line for each check, and ends with 1 if one of them failed.
"""

import json
import sys
import traceback

from openai import BadRequestError, OpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=URL, api_key="none", timeout=600)
MODEL = client.models.list().data[0].id


def function(name, description, properties, **more):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters, **more}}


WEATHER = {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}
TOOLS = [
    function("get_weather", "Get the current weather of a city", WEATHER),
    function("add", "Add two numbers", {"a": {"type": "number"}, "b": {"type": "number"}}),
]
ASK = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]


def chat(messages=ASK, **more):
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=200, **more)


def is_weather(call):
    arguments = json.loads(call.function.arguments)
    assert call.type == "function" and call.id.startswith("call_"), call
    assert call.function.name == "get_weather" and "paris" in arguments["city"].lower(), call


def auto():
    choice = chat(tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    is_weather(choice.message.tool_calls[0])


def auto_streamed():
    calls, text, finish = {}, "", None
    for chunk in chat(tools=TOOLS, stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        for delta in choice.delta.tool_calls or []:
            if delta.id:
                assert delta.function.arguments == ""
                calls[delta.index] = delta
            else:
                calls[delta.index].function.arguments += delta.function.arguments
        finish = choice.finish_reason or finish
    assert (text, finish) == ("", "tool_calls"), (text, finish)
    is_weather(calls[0])


def streamed_by_the_client():
    with client.chat.completions.stream(model=MODEL, messages=ASK, temperature=0, max_tokens=200, tools=[
        function("get_weather", "Get the current weather of a city", WEATHER, strict=True)
    ]) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert done and done[0].parsed_arguments["city"], done


def required():
    choice = chat([{"role": "user", "content": "Tell me a joke."}], tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls" and len(choice.message.tool_calls) == 1, choice
    call = choice.message.tool_calls[0].function
    parameters = next(tool["function"]["parameters"] for tool in TOOLS if tool["function"]["name"] == call.name)
    assert json.loads(call.arguments).keys() == parameters["properties"].keys(), call


def named():
    choice = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "add"}}).choices[0]
    assert choice.finish_reason == "stop" and choice.message.content is None, choice
    arguments = json.loads(choice.message.tool_calls[0].function.arguments)
    assert {type(value) for value in arguments.values()} <= {int, float} and arguments.keys() == {"a", "b"}, choice


def named_streamed():
    stream = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}}, stream=True)
    deltas = [delta for chunk in stream for delta in chunk.choices[0].delta.tool_calls or []]
    arguments = json.loads("".join(delta.function.arguments for delta in deltas))
    assert deltas[0].function.name == "get_weather" and arguments["unit"] in ("celsius", "fahrenheit"), arguments


def none():
    choice = chat(tools=TOOLS, tool_choice="none").choices[0]
    assert choice.message.tool_calls is None and choice.message.content, choice


def results_go_back():
    answer = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}}).choices[0].message
    result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": json.dumps({"temperature": 17, "sky": "rainy"})}
    text = chat([*ASK, answer, result], tools=TOOLS, tool_choice="none").choices[0].message.content
    assert "17" in text or "rain" in text.lower(), text


def wrong_choices():
    for choice in ["sometimes", {"type": "function", "function": {"name": "unknown"}}]:
        try:
            chat(tools=TOOLS, tool_choice=choice)
        except BadRequestError as error:
            assert "tool_choice" in error.body["param"], error
        else:
            raise AssertionError(choice)


def langchain():
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def get_weather(city: str) -> str:
        """Get the current weather of a city."""
        return f"17 degrees and rain in {city}"

    model = ChatOpenAI(model=MODEL, base_url=URL, api_key="none", temperature=0, max_tokens=200, timeout=600)
    bound = model.bind_tools([get_weather])
    ask = [HumanMessage("What is the weather in Paris?")]
    answer = bound.invoke(ask)
    assert answer.tool_calls and "paris" in answer.tool_calls[0]["args"]["city"].lower(), answer
    results = [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls]
    text = model.invoke([*ask, answer, *results]).content
    assert "17" in text or "rain" in text.lower(), text
    chunks = list(bound.stream(ask))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.tool_calls[0]["name"] == "get_weather", whole
    forced = model.bind_tools([get_weather], tool_choice="any").invoke([HumanMessage("Tell me a joke.")])
    assert forced.tool_calls, forced


def langchain_structured():
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    model = ChatOpenAI(model=MODEL, base_url=URL, api_key="none", temperature=0, max_tokens=200, timeout=600)
    ask = "Ann is 31 years old. Who is she, and how old? Answer in JSON with the keys name and age."
    for method in ["json_schema", "function_calling", "json_mode"]:
        found = model.with_structured_output(Person, method=method).invoke(ask)
        assert (found.name, found.age) == ("Ann", 31), (method, found)
    whole = model.with_structured_output(Person, include_raw=True).invoke(ask)
    assert whole["parsed"].age == 31 and whole["parsing_error"] is None, whole
    parts = list(model.with_structured_output(Person.model_json_schema(), method="json_schema").stream(ask))
    assert parts[-1] == {"name": "Ann", "age": 31}, parts


CHECKS = [
    auto, auto_streamed, streamed_by_the_client, required, named, named_streamed, none, results_go_back, wrong_choices, langchain,
    langchain_structured,
]
failed = 0
for check in CHECKS:
    try:
        check()
        print(f"passed: {check.__name__}", flush=True)
    except Exception:
        failed = 1
        print(f"FAILED: {check.__name__}", flush=True)
        traceback.print_exc(limit=-1)
sys.exit(failed)
