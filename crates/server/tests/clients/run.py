#!/usr/bin/env python3
"""Runs published clients of OpenAI's API against a running server, and prints a table of what worked.

    python3 -m venv venv && venv/bin/pip install -r crates/server/tests/clients/run-requirements.txt transformers
    (cd crates/server/tests/clients && npm install)
    target/debug/server --port 8000 &
    venv/bin/python crates/server/tests/clients/run.py http://127.0.0.1:8000

Each check is a function below; a check that raises has failed. Names after the address choose among the clients.
"""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback
import urllib.request

HERE = pathlib.Path(__file__).parent
ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
BASE = f"{ADDRESS}/v1"
KEY = os.environ.get("VLLM_API_KEY", "none")
CHAT = [{"role": "user", "content": "What is your name?"}]


def card():
    with urllib.request.urlopen(f"{ADDRESS}/v1/models") as answer:
        return json.load(answer)["data"][0]


CARD = card()
MODEL = CARD["id"]
CHECKS = []


def check(client, what):
    def add(function):
        CHECKS.append((client, what, function))
        return function

    return add


def openai_client():
    import openai

    return openai.OpenAI(base_url=BASE, api_key=KEY)


@check("openai", "models")
def _():
    assert MODEL in [model.id for model in openai_client().models.list()]


@check("openai", "chat")
def _():
    answer = openai_client().chat.completions.create(model=MODEL, messages=CHAT, max_tokens=16, temperature=0, seed=1)
    assert answer.choices[0].message.content and answer.usage.completion_tokens > 0
    # What the client was given goes back as it is, with the nulls of its fields.
    again = [*CHAT, answer.choices[0].message.model_dump(), {"role": "user", "content": "And mine?"}]
    assert openai_client().chat.completions.create(model=MODEL, messages=again, max_tokens=8).choices


@check("openai", "chat, streamed")
def _():
    stream = openai_client().chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=16, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    whole = openai_client().chat.completions.create(model=MODEL, messages=CHAT, max_tokens=16, temperature=0)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@check("openai", "chat, log-probabilities")
def _():
    answer = openai_client().chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0
    )
    content = answer.choices[0].logprobs.content
    assert content and all(len(token.top_logprobs) == 3 for token in content)


@check("openai", "completions, several prompts and choices")
def _():
    answer = openai_client().completions.create(model=MODEL, prompt=["Once upon", "The end"], n=2, max_tokens=8, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].logprobs.tokens


@check("openai", "an error has its type")
def _():
    import openai

    try:
        openai_client().chat.completions.create(model="no-such-model", messages=CHAT)
    except openai.NotFoundError as error:
        assert "no-such-model" in str(error)
    else:
        raise AssertionError("no error")


@check("openai", "asyncio")
def _():
    import asyncio

    import openai

    async def ask():
        async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY) as client:
            one = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=8)
            return await asyncio.gather(one, client.completions.create(model=MODEL, prompt="Once", max_tokens=8))

    assert all(answer.choices for answer in asyncio.run(ask()))


def npm(script):
    node = shutil.which("node")
    assert node, "node is not installed"
    done = subprocess.run([node, script, BASE, MODEL, KEY], cwd=HERE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


check("openai (npm)", "chat, chat streamed, completions, errors")(lambda: npm("openai.mjs"))
check("openai (npm)", "tools, parse with zod, responses")(lambda: npm("agents.mjs"))


def langchain(**settings):
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=BASE, api_key=KEY, model=MODEL, max_tokens=16, temperature=0, **settings)


@check("langchain-openai", "invoke, stream, batch")
def _():
    text = langchain().invoke("What is your name?").content
    assert text and "".join(chunk.content for chunk in langchain().stream("What is your name?")) == text
    assert len(langchain().batch(["One?", "Two?"])) == 2


@check("langchain-openai", "a conversation with system and assistant, usage")
def _():
    turns = [("system", "Be brief."), ("human", "Hi"), ("ai", "Hello."), ("human", "Who are you?")]
    answer = langchain().invoke(turns)
    assert answer.usage_metadata["output_tokens"] > 0
    chunks = list(langchain(stream_usage=True).stream(turns))
    assert any(chunk.usage_metadata for chunk in chunks)


@check("langchain-openai", "OpenAI, completions")
def _():
    from langchain_openai import OpenAI

    assert OpenAI(base_url=BASE, api_key=KEY, model=MODEL, max_tokens=8).invoke("Once upon a time")


@check("litellm", "hosted_vllm, openai, text-completion-openai, streamed")
def _():
    import litellm

    for provider in ("hosted_vllm", "openai"):
        settings = dict(model=f"{provider}/{MODEL}", api_base=BASE, api_key=KEY, messages=CHAT, max_tokens=8, temperature=0)
        text = litellm.completion(**settings).choices[0].message.content
        chunks = litellm.completion(**settings, stream=True)
        assert text and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    done = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", api_base=BASE, api_key=KEY, prompt="Once upon", max_tokens=8
    )
    assert done.choices[0].text


@check("litellm", "an error has its type")
def _():
    import litellm

    try:
        litellm.completion(model="hosted_vllm/no-such-model", api_base=BASE, api_key=KEY, messages=CHAT)
    except litellm.exceptions.NotFoundError:
        pass
    else:
        raise AssertionError("no error")


@check("llama-index-llms-openai-like", "complete, chat, stream_chat")
def _():
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    settings = dict(model=MODEL, api_base=BASE, api_key=KEY, max_tokens=8, temperature=0, context_window=1024)
    assert OpenAILike(**settings).complete("Once upon a time").text
    llm = OpenAILike(**settings, is_chat_model=True)
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hi")]
    text = llm.chat(messages).message.content
    assert text and [*llm.stream_chat(messages)][-1].message.content == text


def lm_eval(model, arguments, task):
    """Runs a task over local documents; gives its results."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments, "--tasks", task]
            + ["--include_path", str(HERE / "tasks"), "--output_path", folder]
            + (["--apply_chat_template"] if "chat" in model else []),
            cwd=HERE / "tasks",
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, "OPENAI_API_KEY": KEY, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"},
        )
        results = [*pathlib.Path(folder).rglob("results_*.json")]
        assert done.returncode == 0 and results, (done.stdout + done.stderr)[-3000:]
        return json.loads(results[0].read_text())["results"][task]


TOKENIZER = os.environ.get("TOKENIZER", CARD["root"])


@check("lm-eval", "local-completions, log-likelihoods, HF tokenizer")
def _():
    arguments = f"model={MODEL},base_url={BASE}/completions,tokenizer={TOKENIZER},max_length=1024,num_concurrent=2"
    result = lm_eval("local-completions", arguments, "local_choice")
    assert 0 <= result["acc,none"] <= 1


@check("lm-eval", "local-completions, log-likelihoods, prompts as text")
def _():
    arguments = f"model={MODEL},base_url={BASE}/completions,tokenizer={TOKENIZER},tokenized_requests=False,max_length=1024"
    result = lm_eval("local-completions", arguments, "local_choice")
    assert 0 <= result["acc,none"] <= 1


@check("lm-eval", "local-completions, generation, remote tokenizer")
def _():
    arguments = f"model={MODEL},base_url={BASE}/completions,tokenizer_backend=remote,max_length=1024"
    assert "exact_match,none" in lm_eval("local-completions", arguments, "local_answer")


@check("lm-eval", "local-chat-completions, generation")
def _():
    arguments = f"model={MODEL},base_url={BASE}/chat/completions,num_concurrent=2"
    assert "exact_match,none" in lm_eval("local-chat-completions", arguments, "local_answer")


def version(client):
    package = client.split(" ")[0]
    if "npm" in client:
        installed = HERE / "node_modules" / package / "package.json"
        return json.loads(installed.read_text())["version"] if installed.exists() else "?"
    return importlib.metadata.version(package)


def main():
    chosen = sys.argv[2:]
    failed = 0
    print("| client | version | what | result |\n|---|---|---|---|")
    for client, what, function in CHECKS:
        if chosen and client.split(" ")[0] not in chosen:
            continue
        try:
            function()
            result = "works"
        except Exception as error:
            failed += 1
            traceback.print_exc()
            result = f"fails: {type(error).__name__}"
        print(f"| {client} | {version(client)} | {what} | {result} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
