"""Starts programs and servers, waits for them, and ends them.

Must never leave a process behind, end one that it did not start, or wait without a deadline.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

CACHE = Path(os.environ["CARAVAN_PEERS"])
CARAVAN = os.environ.get("CARAVAN_BIN", "caravan")
# Of one run of one program, in seconds.
PATIENCE = 900
READY = 120


class Failed(Exception):
    """A program that did not do what it should; says what it said last."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def clean_environment():
    """Nothing of this machine's own settings of caravan."""
    keep = ("CARAVAN_ISA",)
    return {k: v for k, v in os.environ.items() if not k.startswith("CARAVAN_") or k in keep}


def output(words, patience=PATIENCE, stdin=""):
    """Standard output of a program that must succeed."""
    say("  " + " ".join(str(word) for word in words))
    try:
        done = subprocess.run(
            [str(word) for word in words],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=patience,
            env=clean_environment(),
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{words[0]} took more than {patience} s") from error
    if done.returncode != 0:
        raise Failed(f"{words[0]} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def lines(words, stdin=""):
    return [json.loads(line) for line in output(words, stdin=stdin).splitlines() if line.startswith("{")]


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
            raise Failed(f"{what} did not get ready within {READY} s:\n{tail}")
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
