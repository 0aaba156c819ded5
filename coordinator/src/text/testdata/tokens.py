#!/usr/bin/env python3
"""Writes what an outside tokenizer, llama.cpp's, makes of the tests' texts.

    benches/peers/setup          # builds llama.cpp and its Python package, once
    LLAMA_CPP_LIB_PATH=FOLDER/build/bin FOLDER/venv/bin/python \\
        coordinator/src/text/testdata/tokens.py [--check] NAME=FILE.gguf ...

For each NAME: `vocabularies/NAME`, a number for the texts by hand (`corpus.json`) and one for each hundred of
the drawn ones; and, where `NAME.jsonl` is there, its lines [text, special, tokens] again with the tokens that
come out. With --check nothing is written: what differs is told, and ends in status 1. FILE may hold a
vocabulary alone.
"""

import ctypes
import json
import pathlib
import sys

import llama_cpp.llama_cpp as llama

HERE = pathlib.Path(__file__).parent
MASK = (1 << 64) - 1


def mixed(counter):
    z = counter * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def drawn():
    pool = json.loads((HERE / "pool.json").read_text())
    for index in range(10_000):
        parts = 1 + mixed(index * 64) % 24
        yield "".join(pool[mixed(index * 64 + 1 + part) % len(pool)] for part in range(parts))


def digest(texts):
    number = 0xCBF29CE484222325
    for tokens in texts:
        for token in [*tokens, 0xFFFFFFFF]:
            for byte in token.to_bytes(4, "little"):
                number = (number ^ byte) * 0x100000001B3 & MASK
    return f"{number:016x}"


# A token that the file calls user-defined, so that texts may write it, and llama.cpp takes for a control token,
# because it ends the texts of other models; and whether it takes the white space behind it with it.
TAKEN_OTHERWISE = {"gemma3": ("</s>", False), "phi-3": ("</s>", True)}


class Vocabulary:
    def __init__(self, name, path):
        self.own, self.strips = TAKEN_OTHERWISE.get(name, (None, False))
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama.llama_model_load_from_file(path.encode(), parameters)
        assert self.model, f"{path} can't be loaded"
        self.vocab = llama.llama_model_get_vocab(self.model)

    def tokens(self, text, special):
        if special or self.own is None or self.own not in text:
            return self.plain(text, special)
        first, *parts = text.split(self.own)
        parts = [part.lstrip(" \t\n\v\f\r") if self.strips else part for part in parts]
        parts = [self.plain(part, False) for part in [first, *parts]]
        own = self.plain(self.own, True)
        return parts[0] + [token for part in parts[1:] for token in own + part]

    def plain(self, text, special):
        raw = text.encode()
        room = (llama.llama_token * (len(raw) + 16))()
        count = llama.llama_tokenize(self.vocab, raw, len(raw), room, len(room), False, special)
        assert count >= 0
        return list(room[:count])


def numbers(vocabulary):
    by_hand = json.loads((HERE / "corpus.json").read_text())
    lines = [digest([vocabulary.tokens(text, False) for text in by_hand])]
    tokens = [vocabulary.tokens(text, False) for text in drawn()]
    lines += [digest(tokens[start : start + 100]) for start in range(0, len(tokens), 100)]
    return lines


def told(vocabulary, path):
    for line in path.read_text().splitlines():
        text, special, tokens = json.loads(line)
        made = vocabulary.tokens(text, special)
        same = made == tokens
        yield line if same else json.dumps([text, special, made], ensure_ascii=False, separators=(",", ":"))


def put(path, lines, check):
    """Writes the lines, or says how many differ from those that are there."""
    if not check:
        path.write_text("\n".join(lines) + "\n")
        return 0
    old = path.read_text().splitlines() if path.exists() else []
    read = json.loads if path.suffix == ".jsonl" else str
    wrong = [new for new, was in zip(lines, old) if read(new) != read(was)]
    wrong += lines[len(old) :]
    print(f"{path.name}: {len(wrong)} of {len(lines)} differ")
    for line in wrong[:5]:
        print(" ", line[:300])
    return len(wrong)


def main():
    llama.llama_log_set(QUIET, ctypes.c_void_p(0))
    llama.llama_backend_init()
    check = "--check" in sys.argv
    wrong = 0
    for name, _, path in (argument.partition("=") for argument in sys.argv[1:] if argument != "--check"):
        vocabulary = Vocabulary(name, path)
        wrong += put(HERE / "vocabularies" / name, numbers(vocabulary), check)
        lines = HERE / f"{name}.jsonl"
        if lines.exists():
            wrong += put(lines, list(told(vocabulary, lines)), check)
    sys.exit(1 if wrong else 0)


@llama.llama_log_callback
def QUIET(level, text, data):
    pass


main()
