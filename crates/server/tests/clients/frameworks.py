#!/usr/bin/env python3
"""Frameworks that ask for typed answers and call tools, against a running server with a real model.

    python3 -m venv venv && venv/bin/pip install -r crates/server/tests/clients/run-requirements.txt
    server Qwen/Qwen2.5-Coder-0.5B-Instruct --port 8000
    venv/bin/python crates/server/tests/clients/frameworks.py http://127.0.0.1:8000/v1 instructor llama-index

    python3 -m venv other && other/bin/pip install -r crates/server/tests/clients/requirements.txt
    other/bin/python crates/server/tests/clients/frameworks.py http://127.0.0.1:8000/v1 pydantic-ai

Their versions of openai differ, hence two environments. Prints a line for each check, and ends with 1 if one of them failed.
"""

import asyncio
import enum
import json
import sys
import traceback
import urllib.request

from pydantic import BaseModel, Field

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
CHOSEN = sys.argv[2:]
with urllib.request.urlopen(f"{URL}/models") as answer:
    MODEL = json.load(answer)["data"][0]["id"]
CHECKS = []
SENTENCE = "Extract the person: Ann Lee is 42 years old and lives at 5 Main Street, Paris. She likes tea and chess."


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Address(BaseModel):
    street: str
    city: str


class Person(BaseModel):
    """A person of a text."""

    name: str
    age: int = Field(ge=0, le=130)
    address: Address
    likes: list[str] = Field(max_length=4)
    mood: Mood | None = None


def check(client):
    def add(function):
        CHECKS.append((client, function))
        return function

    return add


def is_ann(person):
    assert isinstance(person, Person) and "Ann" in person.name and person.age == 42, person


def instructed(mode):
    import instructor
    from openai import OpenAI

    return instructor.from_openai(OpenAI(base_url=URL, api_key="none", timeout=600), mode=mode)


def extract(mode, **more):
    messages = [{"role": "user", "content": SENTENCE}]
    settings = dict(model=MODEL, messages=messages, temperature=0, max_tokens=300, max_retries=1)
    return instructed(mode).chat.completions.create(response_model=more.pop("kind", Person), **settings, **more)


@check("instructor")
def instructor_json_schema():
    import instructor

    is_ann(extract(instructor.Mode.JSON_SCHEMA))


@check("instructor")
def instructor_json():
    import instructor

    is_ann(extract(instructor.Mode.JSON))


@check("instructor")
def instructor_tools():
    import instructor

    is_ann(extract(instructor.Mode.TOOLS))


@check("instructor")
def instructor_tools_strict():
    import instructor

    is_ann(extract(instructor.Mode.TOOLS_STRICT))


@check("instructor")
def instructor_partial_stream():
    import instructor

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        parts = list(extract(mode, kind=instructor.Partial[Person], stream=True))
        assert len(parts) > 3 and "Ann" in parts[-1].name, (mode, parts[-1])


@check("instructor")
def instructor_iterable():
    import instructor
    from typing import Iterable

    people = list(extract(instructor.Mode.TOOLS, kind=Iterable[Address]))
    assert all(isinstance(person, Address) for person in people), people


@check("instructor")
def instructor_asyncio():
    import instructor
    from openai import AsyncOpenAI

    async def ask():
        client = instructor.from_openai(AsyncOpenAI(base_url=URL, api_key="none"), mode=instructor.Mode.JSON_SCHEMA)
        messages = [{"role": "user", "content": SENTENCE}]
        return await client.chat.completions.create(
            model=MODEL, messages=messages, response_model=Person, temperature=0, max_tokens=300
        )

    is_ann(asyncio.run(ask()))


def llama(**settings):
    from llama_index.llms.openai_like import OpenAILike

    settings = dict(model=MODEL, api_base=URL, api_key="none", temperature=0, max_tokens=300, context_window=4096) | settings
    return OpenAILike(is_chat_model=True, is_function_calling_model=True, timeout=600, **settings)


def get_weather(city: str) -> str:
    """Get the current weather of a city."""
    return f"17 degrees and rain in {city}"


@check("llama-index")
def llama_index_calls_a_tool():
    from llama_index.core.tools import FunctionTool

    tool = FunctionTool.from_defaults(fn=get_weather)
    answer = llama().chat_with_tools([tool], user_msg="What is the weather in Paris?")
    calls = llama().get_tool_calls_from_response(answer)
    assert calls[0].tool_name == "get_weather" and "paris" in calls[0].tool_kwargs["city"].lower(), calls
    forced = llama().chat_with_tools([tool], user_msg="Tell me a joke.", tool_required=True)
    assert llama().get_tool_calls_from_response(forced), forced


@check("llama-index")
def llama_index_streams_a_call():
    from llama_index.core.tools import FunctionTool

    tool = FunctionTool.from_defaults(fn=get_weather)
    *_, last = llama().stream_chat_with_tools([tool], user_msg="What is the weather in Paris?")
    calls = llama().get_tool_calls_from_response(last)
    assert "paris" in calls[0].tool_kwargs["city"].lower(), calls


@check("llama-index")
def llama_index_predicts_and_calls():
    from llama_index.core.tools import FunctionTool

    tool = FunctionTool.from_defaults(fn=get_weather)
    answer = llama().predict_and_call([tool], user_msg="What is the weather in Paris?")
    assert "17 degrees" in str(answer), answer


@check("llama-index")
def llama_index_agent():
    from llama_index.core.agent.workflow import FunctionAgent

    calls = []

    def weather(city: str) -> str:
        """Get the current weather of a city."""
        calls.append(city)
        return get_weather(city)

    async def ask():
        agent = FunctionAgent(tools=[weather], llm=llama(), streaming=True)
        # A small model may call again and again.
        return await agent.run("What is the weather in Paris?", max_iterations=3, early_stopping_method="generate")

    answer = str(asyncio.run(ask()))
    assert answer and calls and "paris" in calls[0].lower(), (calls, answer)


@check("llama-index")
def llama_index_structured():
    from llama_index.core.prompts import PromptTemplate

    is_ann(llama().structured_predict(Person, PromptTemplate("{text}"), text=SENTENCE))
    structured = llama(should_use_structured_outputs=True)
    is_ann(structured.structured_predict(Person, PromptTemplate("{text}"), text=SENTENCE))


def agent(**settings):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))
    return Agent(model, model_settings={"temperature": 0, "max_tokens": 300, "timeout": 600}, retries=1, **settings)


@check("pydantic-ai")
def pydantic_ai_text():
    result = agent(system_prompt="Be brief.").run_sync("What is 1 + 1?")
    assert "2" in result.output and result.usage.output_tokens > 0, result
    again = agent().run_sync("And plus 1?", message_history=result.all_messages())
    assert again.output, again


@check("pydantic-ai")
def pydantic_ai_tool_output():
    is_ann(agent(output_type=Person).run_sync(SENTENCE).output)


@check("pydantic-ai")
def pydantic_ai_native_output():
    from pydantic_ai import NativeOutput

    is_ann(agent(output_type=NativeOutput(Person)).run_sync(SENTENCE).output)


@check("pydantic-ai")
def pydantic_ai_prompted_output():
    from pydantic_ai import PromptedOutput

    is_ann(agent(output_type=PromptedOutput(Person)).run_sync(SENTENCE).output)


@check("pydantic-ai")
def pydantic_ai_tools():
    calls = []

    def weather(city: str) -> str:
        """Get the current weather of a city."""
        calls.append(city)
        return get_weather(city)

    # What a small model makes of the result is its own affair.
    result = agent(tools=[weather]).run_sync("What is the weather in Paris?")
    assert result.output and calls and "paris" in calls[0].lower(), (calls, result.output)


@check("pydantic-ai")
def pydantic_ai_streams():
    async def ask():
        texts = []
        async with agent().run_stream("Count from 1 to 5.") as result:
            async for text in result.stream_text(delta=True):
                texts.append(text)
        async with agent(output_type=Person).run_stream(SENTENCE) as result:
            return texts, await result.get_output()

    texts, person = asyncio.run(ask())
    assert len(texts) > 1, texts
    is_ann(person)


@check("pydantic-ai")
def pydantic_ai_responses():
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))
    settings = {"temperature": 0, "max_tokens": 300, "timeout": 600}
    assert "2" in Agent(model, model_settings=settings).run_sync("What is 1 + 1?").output
    is_ann(Agent(model, model_settings=settings, output_type=Person, retries=1).run_sync(SENTENCE).output)


def main():
    failed = 0
    for client, function in CHECKS:
        if CHOSEN and client not in CHOSEN:
            continue
        try:
            function()
            print(f"passed: {function.__name__}", flush=True)
        except Exception:
            failed = 1
            print(f"FAILED: {function.__name__}", flush=True)
            traceback.print_exc(limit=-2)
    sys.exit(failed)


if __name__ == "__main__":
    main()
