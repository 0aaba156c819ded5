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
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ["CARAVAN_PEERS"])
CARAVAN = os.environ.get("CARAVAN_BIN", "caravan")
PARTS = ["setup", "limits", "engine", "http", "pipeline", "rpc", "contended"]
MODEL = "smollm2-135m-instruct"
# Of one run of one program, in seconds.
PATIENCE = 900
READY = 120


def say(text):
    print(text, file=sys.stderr, flush=True)


def clean_environment():
    """Nothing of this machine's own settings of caravan."""
    keep = ("CARAVAN_ISA",)
    return {k: v for k, v in os.environ.items() if not k.startswith("CARAVAN_") or k in keep}


def output(words, patience=PATIENCE):
    """Standard output of a program that must succeed."""
    say("  " + " ".join(str(word) for word in words))
    done = subprocess.run(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=patience,
        env=clean_environment(),
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{words[0]} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def lines(words):
    return [json.loads(line) for line in output(words).splitlines() if line.startswith("{")]


class Log:
    """Every single figure, in a file of JSON lines."""

    def __init__(self):
        self.path = CACHE / time.strftime("results-%Y%m%d-%H%M%S.jsonl")

    def add(self, program, part, file, round_number, line):
        with open(self.path, "a", encoding="utf-8") as out:
            head = {"program": program, "part": part, "file": file, "round": round_number}
            out.write(json.dumps(head | line) + "\n")


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
    """(round, name, call) of every run; each round in the other order."""
    for number in range(rounds):
        for name, call in list(programs.items())[:: 1 if number % 2 == 0 else -1]:
            yield number, name, call


# Processes


@contextlib.contextmanager
def process(words, log):
    """A program that is ended at the end, by its handle."""
    say("  " + " ".join(str(word) for word in words))
    with open(log, "w", encoding="utf-8") as out:
        child = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(20)


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def wait_until(what, child, log, ready):
    deadline = time.monotonic() + READY
    while not ready():
        if child.poll() is not None or time.monotonic() > deadline:
            tail = Path(log).read_text(encoding="utf-8", errors="replace")[-3000:]
            sys.exit(f"{what} did not get ready within {READY} s:\n{tail}")
        time.sleep(0.05)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def listens(port):
    with socket.socket() as door:
        door.settimeout(1)
        return door.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def caravan_up(file, workers, threads):
    """A cluster; gives its API's address and its model's name."""
    folder = tempfile.mkdtemp(prefix="caravan-peers-")
    log, port = Path(folder) / "up.log", free_port()
    words = [CARAVAN, "--config", "", "up", "--model", file, "--workers", workers, "--threads", threads]
    words += ["--http", f"127.0.0.1:{port}", "--data", folder]
    try:
        with process(words, log) as child:
            wait_until("caravan up", child, log, lambda: answers(f"http://127.0.0.1:{port}/readyz"))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as said:
                yield f"http://127.0.0.1:{port}/v1", json.load(said)["data"][0]["id"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def llama_server(file, threads, slots, rpc=()):
    """llama.cpp's server with room for 1,024 tokens in each slot. With `rpc` all layers are on those servers."""
    log, port = CACHE / "llama-server.log", free_port()
    words = [CACHE / "build/bin/llama-server", "--model", file, "--host", "127.0.0.1", "--port", port]
    words += ["--threads", threads, "--threads-batch", threads, "--parallel", slots, "--ctx-size", 1024 * slots]
    # It would otherwise copy finished prompts aside, which costs it time and serves nobody here.
    words += ["--cache-ram", 0, "--no-webui"]
    if rpc:
        words += ["--rpc", ",".join(rpc), "--gpu-layers", 999]
    with process(words, log) as child:
        wait_until("llama-server", child, log, lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}/v1", Path(file).name


@contextlib.contextmanager
def llama_rpc(file, stages, slots):
    """llama.cpp's server over RPC servers of one thread each."""
    with contextlib.ExitStack() as stack:
        doors = []
        for stage in range(stages):
            log, port = CACHE / f"rpc-{stage}.log", free_port()
            words = [CACHE / "build/bin/ggml-rpc-server", "--host", "127.0.0.1", "--port", port, "--threads", 1]
            child = stack.enter_context(process(words, log))
            wait_until("ggml-rpc-server", child, log, lambda port=port: listens(port))
            doors.append(f"127.0.0.1:{port}")
        yield stack.enter_context(llama_server(file, 1, slots, doors))


@contextlib.contextmanager
def spinning():
    """A program that takes all of the last core that this process may use."""
    core = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
    with process([sys.executable, "-c", code], os.devnull):
        yield


def load(door, clients, requests, prompt, tokens):
    """What `caravan bench http` says of a server."""
    url, model = door
    words = [CARAVAN, "--config", "", "bench", "http", "--url", url, "--model", model, "--api", "completions"]
    words += ["--clients", clients, "--requests", requests, "--warm-up", 2, "--prompt-tokens", prompt]
    words += ["--max-tokens", tokens, "--ignore-eos", "--stall", 300, "--timeout", 600, "--json"]
    (line,) = lines(words)
    if line["errors"]:
        say(f"  errors: {line['errors']}")
    return line


# Parts


def limits(args, _file):
    both = lines([CACHE / "limits", 1]) + lines([CACHE / "limits", args.threads])
    text = ["| threads | instructions | read, GB/s | int8 | int16 | f32 (G multiply-adds a second) |"]
    text.append("| --- | --- | --- | --- | --- | --- |")
    for line in both:
        args.log.add("limits", "limits", "", 0, line)
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
    table = Table()
    programs = {"caravan": lambda: run(ours), "llama.cpp": lambda: run(theirs)}
    for number, name, call in in_turns(programs, args.rounds):
        for line in call():
            args.log.add(name, "engine", str(file), number, line)
            depth = f" at depth {line['depth']}" if line["depth"] else ""
            row = f"{line['test']} {line['tokens']}, batch {line['batch']}{depth}, tokens/s"
            table.add(row, name, line["tokens_per_s"]["median"])
    return table.markdown("caravan", "llama.cpp")


def served(args, file, part, doors, loads, names):
    """Loads on servers, in turns."""
    table = Table()
    for number, name, door in in_turns(doors, args.rounds):
        with door() as open_door:
            for label, shape in loads.items():
                line = load(open_door, *shape)
                args.log.add(name, part, str(file), number, line | {"load": label})
                if shape[3] > 1:
                    table.add(f"{label}: output tokens/s", name, line["output_tokens_per_s"] or None)
                    table.add(f"{label}: gap p50, ms", name, line["gap_ms"]["p50"], False)
                table.add(f"{label}: TTFT p50, ms", name, line["ttft_ms"]["p50"], False)
    return table.markdown(*names)


EIGHT = {"8 clients, 100 + 64": (8, 32, 100, 64)}
ONE_LONG = {"1 client, prompt of 512": (1, 4, 512, 1)}


def http(args, file):
    doors = {
        "caravan": lambda: caravan_up(file, 1, args.threads),
        "llama-server": lambda: llama_server(file, args.threads, 8),
    }
    return served(args, file, "http", doors, EIGHT, ("caravan", "llama-server"))


def pipeline(args, file):
    doors = {
        "2 workers of 1 thread": lambda: caravan_up(file, 2, 1),
        "1 worker of 2 threads": lambda: caravan_up(file, 1, 2),
    }
    first = served(args, file, "pipeline", doors, EIGHT, tuple(doors))
    doors = {"2 workers of 1 thread": lambda: caravan_up(file, 2, 1), "1 worker of 1 thread": lambda: caravan_up(file, 1, 1)}
    return first + "\n\n" + served(args, file, "pipeline", doors, ONE_LONG, tuple(doors))


def rpc(args, file):
    doors = {
        "caravan, 2 workers of 1 thread": lambda: caravan_up(file, 2, 1),
        "llama-server, 2 RPC servers of 1 thread": lambda: llama_rpc(file, 2, 8),
    }
    return served(args, file, "rpc", doors, EIGHT | ONE_LONG, tuple(doors))


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
            with spinning(), server() as door:
                yield door

        doors = {f"{name}, contended": beside, f"{name}, quiet": server}
        loads = {"1 client, 100 + 32": (1, 3, 100, 32)}
        text.append(served(args, file, "contended", doors, loads, tuple(doors)))
    return "\n\n".join(text)


def machine():
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    stamp = (CACHE / "stamp").read_text(encoding="utf-8").strip()
    return f"{time.strftime('%Y-%m-%d')}, {model}, {len(os.sched_getaffinity(0))} cores. Peer: {stamp}."


def model_files(args):
    """The model, its Q4_0 version, and the files that were named."""
    found = args.model
    if not Path(found).is_file():
        found = output([CARAVAN, "--config", "", "model", "pull", found, "--data", CACHE / "data"]).strip()
    files = [Path(found)]
    if not args.no_q4_0:
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
    parser.add_argument("--depth", action="store_true", help="engine: also with 1,024 tokens in the cache")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    args.parts = args.parts or PARTS
    return args


def main():
    args = arguments()
    args.log = Log()
    print(machine(), flush=True)
    work = {"engine": engine, "http": http, "pipeline": pipeline, "rpc": rpc, "contended": contended}
    if "limits" in args.parts:
        print(f"\n## limits of the machine\n\n{limits(args, None)}", flush=True)
    wanted = [part for part in args.parts if part in work]
    files = model_files(args) if wanted or "setup" in args.parts else []
    for file, part in itertools.product(files, wanted):
        say(f"{part}, {file}")
        print(f"\n## {part}: {file.name}\n\n{work[part](args, file)}", flush=True)
    say(f"every single figure: {args.log.path}")


if __name__ == "__main__":
    main()
