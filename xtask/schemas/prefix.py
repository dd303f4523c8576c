"""JSON that was cut: whether it can be the beginning of JSON, and the members of its object that are complete."""

import json
import re

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
NUMBER_PREFIX = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]*)?)?")
STRING = re.compile(r'"([^"\\\x00-\x1f]|\\(["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
STRING_PREFIX = re.compile(r'"([^"\\\x00-\x1f]|\\(["\\/bfnrt]|u[0-9a-fA-F]{4}))*(\\(u[0-9a-fA-F]{0,3})?)?')
SPACE = re.compile(r"[ \t\r\n]*")


class Cut(Exception):
    """The text ends here."""


class Reader:
    """Reads one value, and keeps the complete members of the outermost object."""

    def __init__(self, text):
        # A character whose bytes were cut is written as U+FFFD, which is a character of a string like any other.
        self.text, self.at, self.members = text, 0, {}

    def space(self):
        self.at = SPACE.match(self.text, self.at).end()
        if self.at == len(self.text):
            raise Cut

    def take(self, character):
        if self.text[self.at] != character:
            raise ValueError(f"expected {character!r} at {self.at}, found {self.text[self.at : self.at + 20]!r}")
        self.at += 1

    def token(self, whole, prefix):
        found = prefix.match(self.text, self.at)
        if found and found.end() == len(self.text):
            done = whole.match(self.text, self.at)
            if not (whole is STRING and done and done.end() == len(self.text)):
                raise Cut
        found = whole.match(self.text, self.at)
        if not found:
            raise ValueError(f"no value at {self.at}: {self.text[self.at : self.at + 20]!r}")
        self.at = found.end()

    def value(self, depth=0):
        self.space()
        first = self.text[self.at]
        if first == "{":
            self.several("}", lambda: self.member(depth))
        elif first == "[":
            self.several("]", lambda: self.value(depth + 1))
        elif first == '"':
            self.token(STRING, STRING_PREFIX)
        elif first in "tfn":
            word = {"t": "true", "f": "false", "n": "null"}[first]
            rest = self.text[self.at : self.at + len(word)]
            if rest != word and self.at + len(rest) == len(self.text) and word.startswith(rest):
                raise Cut
            if rest != word:
                raise ValueError(f"no value at {self.at}: {rest!r}")
            self.at += len(word)
        else:
            self.token(NUMBER, NUMBER_PREFIX)

    def member(self, depth):
        start = self.at
        self.token(STRING, STRING_PREFIX)
        name = self.text[start : self.at]
        self.space()
        self.take(":")
        self.space()
        start = self.at
        self.value(depth + 1)
        if depth == 0:
            self.members[json.loads(name)] = json.loads(self.text[start : self.at])

    def several(self, end, read):
        self.at += 1
        self.space()
        if self.text[self.at] == end:
            self.at += 1
            return
        while True:
            self.space()
            read()
            self.space()
            if self.text[self.at] == end:
                self.at += 1
                return
            self.take(",")


def members(text):
    """The complete members of a cut object (none for another value). Raises ValueError if no JSON begins like this."""
    reader = Reader(text)
    try:
        reader.value()
    except Cut:
        return reader.members if text.lstrip().startswith("{") else {}
    if text[reader.at :].strip():
        raise ValueError(f"text after the value, at {reader.at}")
    return {}
