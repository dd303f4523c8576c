"""JSON Schemas drawn from a seed: every keyword that the server's documentation names, in every place, and some that it refuses."""

import random

PATTERNS = ["^[a-z]{2,6}$", r"^\d{3}-\d{4}$", "^(foo|ba[rz])+$", "[0-9]+$", "^x", r"^[^\s]{1,9}$", r"^\w+@\w+\.(com|org)$"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "uri", "duration", "int64"]
NAMES = ["id", "name", "a b", "ü", "x-y", "$ref", "type", "items"]
UNSUPPORTED = [
    {"not": {"type": "string"}},
    {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"type": "array", "contains": {"const": 1}},
]


class Draw:
    """One document for each seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.definitions = []

    def one_in(self, number):
        return self.random.randrange(number) == 0

    def document(self):
        self.definitions = [f"d{i}" for i in range(self.random.randrange(4))]
        schema = self.value(3) if self.one_in(4) else self.object(3)
        if self.definitions:
            schema["$defs"] = {name: self.definition(name) for name in self.definitions}
        return schema

    def definition(self, name):
        """Sometimes of itself: by a list, by an optional property, or by a choice."""
        again = {"$ref": f"#/$defs/{name}"}
        kind = self.random.randrange(5)
        if kind == 0:
            next_ones = {"type": "array", "items": again, "maxItems": 2}
            return {"type": "object", "properties": {"v": {"type": "integer"}, "next": next_ones}, "required": ["v"]}
        if kind == 1:
            properties = {"v": self.scalar(), "left": again, "right": {"anyOf": [again, {"type": "null"}]}}
            return {"type": "object", "properties": properties, "required": ["v", "right"], "additionalProperties": False}
        return self.scalar() if kind == 2 else self.object(1)

    def value(self, depth):
        if depth == 0:
            return self.scalar()
        kind = self.random.randrange(14)
        if kind < 4:
            return self.scalar()
        if kind < 7:
            return self.object(depth - 1)
        if kind < 9:
            return self.array(depth - 1)
        if kind < 11:
            return self.combined(depth - 1)
        if kind == 11 and self.definitions:
            return {"$ref": f"#/$defs/{self.random.choice(self.definitions)}"}
        if kind == 12 and self.one_in(4):
            return dict(self.random.choice(UNSUPPORTED))
        return self.random.choice(
            [{}, {"type": ["string", "null"], "maxLength": 8}, {"type": ["integer", "boolean"]}, self.scalar()]
        )

    def scalar(self):
        kind = self.random.randrange(10)
        if kind < 2:
            return {"type": ["boolean", "null"][kind]}
        if kind == 2:
            values = ["red", "green", 7, None, True, {"a": 1}, 'é\n"q"', [1, 2], -0.5]
            return {"enum": self.random.sample(values, self.random.randrange(1, 6))}
        if kind == 3:
            return {"const": self.random.choice(["x y", 5, -1.5, False, "\\", {"k": [None]}, []])}
        if kind < 6:
            return self.number(["integer", "number"][kind - 4])
        if kind == 6:
            least = self.random.randrange(4)
            return {"type": "string", "minLength": least, "maxLength": least + self.random.randrange(12)}
        if kind == 7:
            return {"type": "string", "pattern": self.random.choice(PATTERNS)}
        if kind == 8:
            return {"type": "string", "format": self.random.choice(FORMATS)}
        return {"type": "string"}

    def number(self, name):
        schema = {"type": name}
        start = self.random.randrange(-100, 100) if self.one_in(2) else round(self.random.uniform(-2, 2), 3)
        if name == "integer":
            start = int(start)
        if self.one_in(2):
            schema[self.random.choice(["minimum", "exclusiveMinimum"])] = start
        if self.one_in(2):
            schema[self.random.choice(["maximum", "exclusiveMaximum"])] = start + self.random.randrange(2, 1000)
        if self.one_in(6):
            schema["multipleOf"] = self.random.choice([2, 5, 10] if name == "integer" else [2, 0.5, 0.01])
        return schema

    def object(self, depth):
        names = self.random.sample(NAMES, self.random.randrange(6))
        schema = {"type": "object", "properties": {name: self.value(depth) for name in names}}
        schema["required"] = [name for name in names if self.random.randrange(3)]
        kind = self.random.randrange(20)
        if kind == 0:
            schema["patternProperties"] = {"^p_": self.scalar()}
        elif kind == 1:
            return {"type": "object", "propertyNames": {"pattern": "^[a-z]{1,5}$"}, "additionalProperties": self.scalar()}
        elif kind == 2:
            return {"type": "object", "additionalProperties": self.value(depth), "minProperties": 1, "maxProperties": 3}
        elif kind == 3:
            schema["additionalProperties"] = self.scalar()
        elif kind > 5:
            schema["additionalProperties"] = False
        return schema

    def array(self, depth):
        schema = {"type": "array"}
        if not self.one_in(8):
            schema["items"] = self.value(depth)
        if self.one_in(4):
            schema["prefixItems"] = [self.scalar() for _ in range(self.random.randrange(1, 4))]
            if self.one_in(3):
                schema["items"] = False
        if self.one_in(2):
            least = self.random.randrange(3)
            schema["minItems"] = least
            schema["maxItems"] = least + self.random.randrange(4)
        return schema

    def combined(self, depth):
        kind = self.random.randrange(7)
        if kind < 2:
            return {"anyOf": [self.value(depth), self.value(depth), self.scalar()]}
        if kind == 2:
            one = {"type": "object", "properties": {"kind": {"const": "a"}, "v": self.value(depth)}, "required": ["kind", "v"]}
            other = {"type": "object", "properties": {"kind": {"const": "b"}}, "required": ["kind"]}
            return {"oneOf": [one, other]}
        if kind == 3:
            return {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 5}, {"type": "array", "items": self.scalar()}]}
        if kind == 4:
            return {"allOf": [self.object(depth), {"properties": {"id": True}}]}
        if kind == 5:
            part = {"type": "object", "properties": {"z": {"type": "integer"}}, "required": ["z"]}
            return {"allOf": [part, {"type": "object", "properties": {"y": self.scalar()}, "required": ["y"]}]}
        return {"type": "integer", "minimum": 0, "allOf": [{"minimum": 3}, {"maximum": 40}]}
