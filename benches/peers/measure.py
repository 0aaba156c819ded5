"""Runs caravan and llama.cpp in turns and prints how they compare.

Every part runs both programs one after the other, several times, each time in the other order; nothing else of ours
runs beside them. A ratio is caravan's median over llama.cpp's (for times the other way round, so that more is always
better); behind it stand the least and the most of the ratios of single rounds.
Must never compare different files, threads or prompts, and never wait without a deadline.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

import text
from servers import CACHE, CARAVAN, Failed, caravan_up, lines, llama_rpc, llama_server, output, say, spinning

HERE = Path(__file__).resolve().parent
PARTS = ["setup", "limits", "engine", "http", "pipeline", "rpc", "contended", "text"]
MODEL = "smollm2-135m-instruct"
TEXT_MODEL = "gemma3-270m"
PROMPTS = HERE.parent.parent / "worker/tests/data/gemma.prompts.json"


class Log:
    """Every single figure, in a file of JSON lines; tables are made of what the file holds."""

    def __init__(self, path):
        self.path = Path(path) if path else CACHE / time.strftime("results-%Y%m%d-%H%M%S.jsonl")
        known = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.records = [json.loads(line) for line in known]

    def add(self, program, part, file, line):
        record = {"program": program, "part": part, "file": Path(file).name, "at": time.strftime("%H:%M:%S")} | line
        self.records.append(record)
        with open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")

    def of(self, part, file):
        return [one for one in self.records if (one["part"], one["file"]) == (part, Path(file).name)]


class Table:
    """Figures of both programs by row, and their ratios."""

    def __init__(self):
        self.rows = {}

    def add(self, row, program, value, more_is_better=True):
        """One round's figure; `None` (nothing was measured) shows as a dash."""
        entry = self.rows.setdefault(row, {"better": more_is_better, "figures": {}})
        entry["figures"].setdefault(program, []).append(value)

    def markdown(self, ours, theirs):
        text = [f"| | {ours} | {theirs} | ratio | least–most |", "| --- | --- | --- | --- | --- |"]
        for row, entry in self.rows.items():
            a, b = (entry["figures"].get(name, []) for name in (ours, theirs))
            if not a and not b:
                continue
            ratio, spread = "–", "–"
            if a and b and None not in a + b:
                pairs = [x / y if entry["better"] else y / x for x, y in zip(a, b)]
                middle = statistics.median(a) / statistics.median(b)
                ratio = f"{middle if entry['better'] else 1 / middle:.2f}"
                spread = f"{min(pairs):.2f}–{max(pairs):.2f}"
            text.append(f"| {row} | {shown(a)} | {shown(b)} | {ratio} | {spread} |")
        return "\n".join(text)


def shown(figures):
    """`median (least–most)`."""
    if not figures or None in figures:
        return "–"
    number = lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"
    return f"{number(statistics.median(figures))} ({number(min(figures))}–{number(max(figures))})"


def in_turns(programs, rounds):
    """(name, call) of every run; each round in the other order."""
    for number in range(rounds):
        yield from list(programs.items())[:: 1 if number % 2 == 0 else -1]


# Parts: each measures into the log, and makes a table of what the log has of the file.


def limits(args, _file):
    if not args.table:
        for threads in sorted({1, args.threads}):
            for line in lines([CACHE / "limits", threads]):
                args.log.add("limits", "limits", "", line)
    text = ["| threads | instructions | read, GB/s | int8 | int16 | f32 (G multiply-adds a second) |"]
    text.append("| --- | --- | --- | --- | --- | --- |")
    for line in args.log.of("limits", ""):
        keys = ["threads", "isa", "read_gb_per_s", "int8_gmac_per_s", "int16_gmac_per_s", "f32_gmac_per_s"]
        text.append("| " + " | ".join(str(line[key]) for key in keys) + " |")
    return "\n".join(text)


def engine(args, file):
    shape = ["--model", file, "--threads", args.threads, "--generate", 64, "--repeat", args.repeat]
    prompt = ["--prompt", 512]
    jobs = [[*prompt, "--batch", "1"], ["--prompt", 0, "--batch", "8,16"], [*prompt, "--depth", 1024]]
    jobs = jobs if args.depth else jobs[:2]
    ours = [CARAVAN, "--config", "", "bench", "engine", "--json"]
    theirs = [sys.executable, HERE / "llama_engine.py"]
    run = lambda program: [line for job in jobs for line in lines(program + shape + job)]
    programs = {"caravan": lambda: run(ours), "llama.cpp": lambda: run(theirs)}
    for name, call in in_turns(programs, args.rounds):
        for line in call():
            args.log.add(name, "engine", file, line)
    table = Table()
    for line in args.log.of("engine", file):
        depth = f" at depth {line['depth']}" if line["depth"] else ""
        row = f"{line['test']} {line['tokens']}, batch {line['batch']}{depth}, tokens/s"
        table.add(row, line["program"], line["tokens_per_s"]["median"])
    return table.markdown("caravan", "llama.cpp")


def load(door, clients, requests, prompt, tokens):
    """What `caravan bench http` says of a server."""
    url, model = door
    words = [CARAVAN, "--config", "", "bench", "http", "--url", url, "--model", model, "--api", "completions"]
    words += ["--clients", clients, "--requests", requests, "--warm-up", 2, "--prompt-tokens", prompt]
    words += ["--max-tokens", tokens, "--ignore-eos", "--stall", 60, "--timeout", 120, "--json"]
    (line,) = lines(words)
    if line["errors"]:
        say(f"  errors: {line['errors']}")
    return line


def served(args, file, part, doors, loads):
    """Loads on servers, in turns."""
    for name, door in in_turns(doors, args.rounds):
        with door() as open_door:
            for label, (clients, requests, *shape) in loads.items():
                requests = args.requests if clients > 1 else requests
                line = load(open_door, clients, requests, *shape)
                args.log.add(name, part, file, line | {"load": label, "asked_tokens": shape[1]})


def served_table(args, file, part, names):
    table = Table()
    for line in args.log.of(part, file):
        label, name = line["load"], line["program"]
        if line["asked_tokens"] > 1:
            table.add(f"{label}: output tokens/s", name, line["output_tokens_per_s"] or None)
            table.add(f"{label}: gap p50, ms", name, line["gap_ms"]["p50"], False)
        table.add(f"{label}: TTFT p50, ms", name, line["ttft_ms"]["p50"], False)
    return table.markdown(*names)


EIGHT = {"8 clients, 100 + 64": (8, 32, 100, 64)}
ONE_LONG = {"1 client, prompt of 512": (1, 4, 512, 1)}
ONE_SHORT = {"1 client, 100 + 32": (1, 3, 100, 32)}


def http(args, file):
    doors = {
        "caravan": lambda: caravan_up(file, 1, args.threads),
        "llama-server": lambda: llama_server(file, args.threads, 8),
    }
    served(args, file, "http", doors, EIGHT)
    return served_table(args, file, "http", doors)


def pipeline(args, file):
    two = {"2 workers of 1 thread": lambda: caravan_up(file, 2, 1)}
    doors = two | {"1 worker of 2 threads": lambda: caravan_up(file, 1, 2)}
    served(args, file, "pipeline", doors, EIGHT)
    first = served_table(args, file, "pipeline", doors)
    doors = two | {"1 worker of 1 thread": lambda: caravan_up(file, 1, 1)}
    served(args, file, "pipeline, long", doors, ONE_LONG)
    return first + "\n\n" + served_table(args, file, "pipeline, long", doors)


def rpc(args, file):
    doors = {
        "caravan, 2 workers of 1 thread": lambda: caravan_up(file, 2, 1),
        "llama-server, 2 RPC servers of 1 thread": lambda: llama_rpc(file, 2, 8),
    }
    served(args, file, "rpc", doors, EIGHT | ONE_LONG)
    return served_table(args, file, "rpc", doors)


def contended(args, file):
    """Both programs quiet, and with one core taken; the ratio is what is left of the quiet figure."""
    text = []
    servers = {
        "caravan": lambda: caravan_up(file, 1, args.threads),
        "llama-server": lambda: llama_server(file, args.threads, 8),
    }
    for name, server in servers.items():

        @contextlib.contextmanager
        def beside(server=server):
            # Taken when the server is ready, so that only answers are measured.
            with server() as door, spinning():
                yield door

        doors = {f"{name}, contended": beside, f"{name}, quiet": server}
        loads = ONE_SHORT if name != "caravan" else ONE_SHORT | EIGHT
        served(args, file, "contended", doors, loads)
        text.append(served_table(args, file, "contended", doors))
    return "\n\n".join(text)


def texts(args, _files):
    """Greedy text of both programs on the same file, and where they part."""
    (file,) = model_files(args, TEXT_MODEL)[:1]
    if not args.table:
        prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))[: args.prompts]
        words = [sys.executable, HERE / "llama_text.py", "--model", file, "--threads", args.threads]
        theirs = lines([*words, "--tokens", args.tokens], stdin=json.dumps(prompts))
        with caravan_up(file, 1, args.threads) as door:
            partings = text.compare(door, theirs)
        line = {"partings": partings, "positions": sum(len(one["tokens"]) for one in theirs)}
        args.log.add("both", "text", file, line)
    last = args.log.of("text", file)[-1:]
    return "\n".join(text.markdown(line["partings"], line["positions"], "llama.cpp") for line in last)


def machine():
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    stamp = (CACHE / "stamp").read_text(encoding="utf-8").strip()
    return f"{time.strftime('%Y-%m-%d')}, {model}, {len(os.sched_getaffinity(0))} cores. Peer: {stamp}."


def model_files(args, model):
    """The model, its Q4_0 version, and the files that were named."""
    found = model
    if not Path(found).is_file():
        found = output([CARAVAN, "--config", "", "model", "pull", found, "--data", CACHE / "data"]).strip()
    files = [Path(found)]
    if not args.no_q4_0 and model != TEXT_MODEL:
        other = CACHE / f"{Path(found).stem.split('.')[0]}.q4_0.gguf"
        if not other.exists():
            output([sys.executable, HERE / "quantise.py", found, other, "Q4_0"])
        files.append(other)
    return files + [Path(file) for file in args.also]


def arguments():
    parser = argparse.ArgumentParser(prog="benches/peers/run", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS) + " [default: all]")
    parser.add_argument("--model", default=MODEL, help="name of the catalogue or GGUF file [%(default)s]")
    parser.add_argument("--also", action="append", default=[], metavar="FILE", help="a further GGUF file; repeatable")
    parser.add_argument("--no-q4-0", action="store_true", help="without the Q4_0 version of the model")
    parser.add_argument("--threads", type=int, default=2, help="of each engine [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="times that each program is measured [%(default)s]")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each engine measurement in a round [%(default)s]")
    parser.add_argument("--requests", type=int, default=32, help="of each load of several clients [%(default)s]")
    parser.add_argument("--depth", action="store_true", help="engine: also with 1,024 tokens in the cache")
    parser.add_argument("--prompts", type=int, default=10, help="text: how many [%(default)s]")
    parser.add_argument("--tokens", type=int, default=200, help="text: length of each answer [%(default)s]")
    parser.add_argument("--results", metavar="FILE", help="add the figures to this file; tables show all that it holds")
    parser.add_argument("--table", action="store_true", help="measure nothing, only print the tables of --results")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    if args.table and not args.results:
        parser.error("--table needs --results FILE")
    args.parts = args.parts or PARTS
    args.rounds = 0 if args.table else args.rounds
    return args


def main():
    # So that what was started ends with this program.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = arguments()
    args.log = Log(args.results)
    print(machine(), flush=True)
    work = {"engine": engine, "http": http, "pipeline": pipeline, "rpc": rpc, "contended": contended}
    jobs = [("limits", limits, None)] if "limits" in args.parts else []
    wanted = [part for part in args.parts if part in work]
    files = model_files(args, args.model) if wanted or "setup" in args.parts else []
    jobs += [(part, work[part], file) for file, part in itertools.product(files, wanted)]
    jobs += [("text", texts, None)] if "text" in args.parts else []
    failed = []
    for part, job, file in jobs:
        title = f"{part}: {file.name}" if file else part
        say(title)
        try:
            print(f"\n## {title}\n\n{job(args, file)}", flush=True)
        except (Failed, RuntimeError, OSError) as error:
            # The other parts say something all the same.
            failed.append(title)
            print(f"\n## {title}\n\nfailed: {error}", flush=True)
    say(f"every single figure: {args.log.path}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
