"""Questions of the Berkeley Function Calling Leaderboard as a chat has them, and its own checker of the answers.

The dependencies of bfcl-eval are those of its own model handlers, PyTorch among them; its data and its checker need none, so the
list of handlers is left out.
"""

import collections
import json
import pathlib
import re
import sys
import types

# The checker asks this module only whether the model's function names have `_` for `.`, as OpenAI's API wants.
HANDLERS = types.ModuleType("bfcl_eval.constants.model_config")
HANDLERS.MODEL_CONFIG_MAPPING = collections.defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=True))
sys.modules[HANDLERS.__name__] = HANDLERS

import bfcl_eval  # noqa: E402
from bfcl_eval.constants.enums import Language  # noqa: E402
from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402

CATEGORIES = ["simple_python", "multiple", "parallel", "parallel_multiple"]
MAX_TOKENS = 400
DATA = pathlib.Path(bfcl_eval.__path__[0]) / "data"


def questions(category, number):
    """The first questions of a category with their right answers; all of them where `number` is None."""
    name = f"BFCL_v4_{category}.json"
    asked = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    right = [json.loads(line) for line in (DATA / "possible_answer" / name).read_text().splitlines()]
    right = {answer["id"]: answer["ground_truth"] for answer in right}
    return [(question, right[question["id"]]) for question in asked[:number]]


def schema(described):
    """JSON Schema of a description, whose types are Python's."""
    made = {key: value for key, value in described.items() if key in ("description", "enum", "required")}
    made["type"] = GORILLA_TO_OPENAPI[described["type"]]
    if "properties" in described:
        made["properties"] = {name: schema(inside) for name, inside in described["properties"].items()}
    if made["type"] == "array":
        made["items"] = schema(described["items"]) if "items" in described else {}
    return made


def tool(function):
    name = re.sub(r"\.", "_", function["name"])
    parameters = schema(function["parameters"])
    return {"type": "function", "function": {"name": name, "description": function["description"], "parameters": parameters}}


def is_right(category, question, calls, right):
    """Whether calls, as `{name: values}`, are what the question asks for. The checker fails on calls of some shapes."""
    return ast_checker(question["function"], calls, right, Language.PYTHON, category, "any")["valid"]
