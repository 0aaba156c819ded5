#!/usr/bin/env python3
"""Renders the templates beside this file, and those of GGUF files, with the real Jinja2.

    pip install jinja2==3.1.6
    coordinator/src/text/testdata/templates/render.py [NAME=FILE.gguf ...]

Writes conversations.json, rendered.jsonl and, for each GGUF file given, rendered-NAME.jsonl: lines of
[template, conversation, add_generation_prompt, text, or null where the template refuses]. The templates of
GGUF files are not kept. The environment is the one that models' authors write for: lines of blocks leave
nothing behind, loop controls are on, `tojson` is plain JSON, and there is no clock.
"""

import json
import pathlib
import struct
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

from conversations import CONVERSATIONS

HERE = pathlib.Path(__file__).parent


class Refused(Exception):
    pass


def raise_exception(message):
    raise Refused(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    return made


def render(template, conversation, generate, bos, eos):
    values = {"tools": None, "documents": None, "bos_token": bos, "eos_token": eos, **conversation}
    try:
        return template.render(add_generation_prompt=generate, **values)
    except (Refused, jinja2.TemplateError, TypeError, AttributeError):
        return None


def lines(name, source, bos, eos):
    template = environment().from_string(source)
    for index, conversation in enumerate(CONVERSATIONS):
        for generate in (True, False):
            text = render(template, conversation, generate, bos, eos)
            yield json.dumps([name, index, generate, text], ensure_ascii=False) + "\n"


def metadata(path):
    """The keys of a GGUF file (version 3), strings and numbers as they are."""
    file = open(path, "rb")
    take = lambda form: struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]
    text = lambda: file.read(take("Q")).decode()
    forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = take("I"), take("Q")
            return [value(inner) for _ in range(count)]
        return take(forms[kind])

    assert file.read(4) == b"GGUF" and take("I") == 3
    _, entries = take("Q"), take("Q")
    return {text(): value(take("I")) for _ in range(entries)}


def main():
    with open(HERE / "conversations.json", "w") as out:
        json.dump(CONVERSATIONS, out, ensure_ascii=False, indent=1)
        out.write("\n")
    with open(HERE / "rendered.jsonl", "w") as out:
        for path in sorted(HERE.glob("*.jinja")):
            out.writelines(lines(path.stem, path.read_text(), "<|endoftext|>", "<|im_end|>"))
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        keys = metadata(path)
        tokens = keys["tokenizer.ggml.tokens"]
        bos, eos = (tokens[keys[f"tokenizer.ggml.{end}_token_id"]] for end in ("bos", "eos"))
        with open(HERE / f"rendered-{name}.jsonl", "w") as out:
            out.writelines(lines(name, keys["tokenizer.chat_template"], bos, eos))


main()
