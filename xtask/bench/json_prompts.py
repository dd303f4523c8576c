"""Prompts of the form of docs/benchmarks/2026-11-29-grpo.md: 20 things, each asked for as JSON in three ways. The first one is the
run's; the run's file was not kept.

Run: python xtask/bench/json_prompts.py > prompts.jsonl
"""

import json

THINGS = {
    "a city": ("name", "country", "population"),
    "a person": ("name", "age", "job"),
    "a book": ("title", "author", "year"),
    "a film": ("title", "director", "length in minutes"),
    "a dog": ("name", "breed", "age"),
    "a car": ("maker", "model", "price"),
    "a recipe": ("name", "ingredients", "minutes"),
    "a planet": ("name", "diameter", "number of moons"),
    "a river": ("name", "length", "countries"),
    "a mountain": ("name", "height", "country"),
    "a song": ("title", "singer", "year"),
    "a company": ("name", "founder", "number of employees"),
    "a school": ("name", "town", "number of pupils"),
    "a ship": ("name", "length", "captain"),
    "a plant": ("name", "color", "height"),
    "a meal": ("name", "price", "calories"),
    "a phone": ("brand", "model", "weight"),
    "a game": ("name", "number of players", "rules"),
    "a museum": ("name", "town", "opening hours"),
    "a train": ("number", "start", "destination"),
}
WAYS = (
    "Describe {thing} with {fields} as JSON.",
    "Give me {thing} as a JSON object with the keys {fields}.",
    "I need {thing} in JSON: {fields}.",
)


def main():
    for thing, (*first, last) in THINGS.items():
        fields = f"{', '.join(first)} and {last}"
        for way in WAYS:
            print(json.dumps({"prompt": way.format(thing=thing, fields=fields)}))


if __name__ == "__main__":
    main()
