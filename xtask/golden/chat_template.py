"""Writes data/golden/chat_template: chat templates and what transformers renders with them.

    python xtask/golden/chat_template.py --qwen2_5 FOLDER

Needs transformers and trl (trl only for the template files it ships; both Apache-2.0). FOLDER is a
Qwen2.5 checkpoint, whose tokenizer_config.json has the Qwen2.5 template. Each case is rendered by
transformers' own render_jinja_template; the Rust tests must give the same strings (no tolerance).
"""

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "data" / "golden" / "chat_template"

QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
DEEPSEEK_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜end▁of▁sentence｜>",
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city: <temperature> & 'sky'",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "e.g. \"Zürich\" or 北京"},
                "days": {"type": "array", "items": {"type": "integer"}, "default": [1, 2]},
                "scale": {"type": "number", "minimum": 1e-07, "maximum": 1e16, "default": 0.5},
                "exact": {"type": "boolean", "default": False, "nullable": None},
            },
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}

SYSTEM = {"role": "system", "content": "You are terse.\nAnswer in one line."}
USER = {"role": "user", "content": "What is 2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
UNICODE = {"role": "user", "content": "  你好，世界 🌍👩‍👩‍👧 naïve \u202e <b>&amp;</b> \"q\" 'a' \\n\ttab "}
THINKING = {"role": "assistant", "content": "<think>\n2 and 2 make 4.\n</think>\n\nThe answer is 4."}


def call(arguments, name="get_weather", content=None, second=None):
    calls = [{"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}]
    if second is not None:
        calls.append({"id": "call_2", "type": "function", "function": {"name": "now", "arguments": second}})
    return {"role": "assistant", "content": content, "tool_calls": calls}


ARGUMENTS = {"city": "北京", "days": [1, 2.0, 1e-05], "exact": True, "nothing": None, "quote": "a\"b\\c\n<&>'"}


def result(text, call_id="call_1"):
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def cases(deepseek):
    """Conversations by name: (messages, options)."""
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False) if deepseek else ARGUMENTS
    empty = "{}" if deepseek else {}
    tools = {"tools": [WEATHER, TIME]}
    prompt = {"add_generation_prompt": True}
    return {
        "user": ([USER], prompt),
        "user, no generation prompt": ([USER], {}),
        "system": ([SYSTEM, USER], prompt),
        "multi-turn": ([SYSTEM, USER, ANSWER, {"role": "user", "content": "And 3 + 3?"}], prompt),
        "finished": ([USER, ANSWER], {}),
        "unicode": ([UNICODE, ANSWER, UNICODE], prompt),
        "empty texts": ([{"role": "system", "content": ""}, {"role": "user", "content": ""}], prompt),
        "thinking": ([USER, THINKING, {"role": "user", "content": "Sure?"}], prompt),
        "thinking, finished": ([USER, THINKING], {}),
        "reasoning_content": ([USER, {**ANSWER, "reasoning_content": "\nEasy.\n"}], {}),
        "late system": ([USER, ANSWER, SYSTEM, USER], prompt),
        "tools": ([USER], {**tools, **prompt}),
        "tools and system": ([SYSTEM, USER], {**tools, **prompt}),
        "tool call": ([USER, call(arguments)], tools),
        "tool call and text": ([USER, call(arguments, content="Let me look.")], tools),
        "tool response": ([USER, call(arguments), result('{"sky": "晴"}')], {**tools, **prompt}),
        "two calls": (
            [USER, call(arguments, second=empty), result("12 °C"), result("noon", "call_2")],
            {**tools, **prompt},
        ),
        "after tools": (
            [USER, call(arguments), result("12 °C"), {"role": "assistant", "content": "12 °C."}, USER],
            {**tools, **prompt},
        ),
        "continue": ([USER, {"role": "assistant", "content": "The answer"}], {"continue_final_message": True}),
        "continue, spaces": (
            [USER, {"role": "assistant", "content": "The answer is "}],
            {"continue_final_message": True},
        ),
        "thinking off": ([USER], {**prompt, "enable_thinking": False}),
        "thinking on": ([USER], {**prompt, "enable_thinking": True}),
    }


# Exercises what templates use beyond the models above.
FEATURES = """\
{# comment #}
{%- for m in messages %}
    {%- if m.role == 'skip' %}{% continue %}{% endif %}
    {%- if m.role == 'stop' %}{% break %}{% endif %}
{{ loop.index }}:{{ m['content'] | trim | upper }}
    {% if not loop.last %}
  indented
    {% endif %}
{%- endfor %}

{{ true }} {{ none }} {{ 1.0 }} {{ 10 / 4 }} {{ [1, 'a', none] }} {{ {'k': true} }} {{ undefined_name }}|
{{ tools | tojson }}
{{ tools | tojson(indent=2) }}
{{ {'b': 1, 'a': '北'} | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}
{{ 'a,b,c'.split(',')[-1] }} {{ '  x '.strip() }} {{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('x') }}
{{ 'a-b'.replace('-', '+') }} {{ 'Title case'.title() }} {{ 'xxayy'.lstrip('x').rstrip('y') }} {{ 'abcabc'.find('c') }}
{%- set ns = namespace(count=0) %}
{%- for key, value in extra_map.items() %}{% set ns.count = ns.count + 1 %} {{ key }}={{ value }}{% endfor %}
{{ ns.count }} {{ extra_map.get('missing', 'default') }} {{ extra_map.items is defined }}
{%- macro shout(text, mark='!') -%}{{ text | upper }}{{ mark }}{%- endmacro %}
{{ shout('hey') }} {{ shout('hey', mark='?') }}
{% generation %}
generated {{ bos_token }}
{% endgeneration %}
{{ messages[0].content[1:3] }} {{ messages | length }} {{ (messages | map(attribute='role') | list)[0] }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'x' ~ 1 ~ 'y' }} {{ 'a' if false else 'b' }}
{{ messages[0].content is string }} {{ tools is iterable }} {{ extra_map is mapping }} {{ 3 is odd }} {{ [3, 1, 2] | sort | join(' < ') }}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qwen2_5", type=pathlib.Path, required=True, help="a Qwen2.5 checkpoint folder")
    args = parser.parse_args()

    trl = pathlib.Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
    qwen2_5 = json.loads((args.qwen2_5 / "tokenizer_config.json").read_text())["chat_template"]
    think = (trl / "deepseek_r1_distill.jinja").read_text()
    # The first published version of the DeepSeek template left <think> to the model.
    first = think.replace("'<｜Assistant｜><think>\\n'}}{% endif %}", "'<｜Assistant｜>'}}{% endif %}")
    assert first != think
    templates = {
        "qwen2_5": (qwen2_5, QWEN_TOKENS),
        "qwen2_5_training": ((trl / "qwen2_5_training.jinja").read_text(), QWEN_TOKENS),
        "qwen3": ((trl / "qwen3.jinja").read_text(), QWEN_TOKENS),
        "deepseek_r1_distill_qwen": (think, DEEPSEEK_TOKENS),
        "deepseek_r1_distill_qwen_first": (first, DEEPSEEK_TOKENS),
    }

    OUT.mkdir(parents=True, exist_ok=True)
    for name, (template, tokens) in templates.items():
        rendered = []
        for case, (messages, options) in cases("deepseek" in name).items():
            rendered.append(render(template, tokens, case, messages, options))
        write(name, template, tokens, rendered)

    messages = [
        {"role": "user", "content": " first "},
        {"role": "skip", "content": "no"},
        {"role": "user", "content": "second"},
        {"role": "stop", "content": "no"},
        {"role": "user", "content": "never"},
    ]
    options = {"tools": [WEATHER], "extra_map": {"items": 1, "keys": "k", "float": 2.50}}
    write("features", FEATURES, DEEPSEEK_TOKENS, [render(FEATURES, DEEPSEEK_TOKENS, "all", messages, options)])

    meta = {
        "transformers": transformers.__version__,
        "jinja2": jinja2.__version__,
        "trl": importlib.metadata.version("trl"),
        "tolerance": "none: strings are equal",
        "templates": {
            "qwen2_5": "tokenizer_config.json of Qwen/Qwen2.5-Coder-0.5B-Instruct (Apache-2.0)",
            "qwen2_5_training": "trl/chat_templates/qwen2_5_training.jinja (Apache-2.0)",
            "qwen3": "trl/chat_templates/qwen3.jinja (Apache-2.0)",
            "deepseek_r1_distill_qwen": "trl/chat_templates/deepseek_r1_distill.jinja (model: MIT)",
            "deepseek_r1_distill_qwen_first": "the same without <think> in the generation prompt",
            "features": "written for this test",
        },
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def render(template, tokens, case, messages, options):
    """One case with what transformers renders, or the kind of error it raises."""
    options = dict(options)
    extra = {k: v for k, v in options.items() if k in ("enable_thinking", "extra_map")}
    entry = {
        "name": case,
        "messages": messages,
        "tools": options.get("tools"),
        "add_generation_prompt": options.get("add_generation_prompt", False),
        "continue_final_message": options.get("continue_final_message", False),
        "extra": extra,
    }
    try:
        (entry["expected"],), _ = render_jinja_template(
            [messages],
            tools=entry["tools"],
            chat_template=template,
            add_generation_prompt=entry["add_generation_prompt"],
            continue_final_message=entry["continue_final_message"],
            **tokens,
            **extra,
        )
    except (TypeError, ValueError, jinja2.exceptions.TemplateError) as error:
        entry["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return entry


def write(name, template, tokens, rendered):
    golden = {"template": template, "special_tokens": tokens, "cases": rendered}
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
    print(path.name, len(rendered), "cases", [c["name"] + ": " + c["error"] for c in rendered if "error" in c])


if __name__ == "__main__":
    main()
