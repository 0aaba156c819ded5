"""Measures llama.cpp's engine as `caravan bench engine` measures ours, through its C API.

One JSON object a line, with the same fields. The same tokens at the same positions; steps of the same rows; logits of
the last token of a prompt, or of every token of a decode step, are read. The first run is not counted.
Must never time the making of batches or the tokens that are in the cache before.
"""

import argparse
import json
import statistics
import sys
import time

import llama_cpp as lib

MASK = (1 << 64) - 1


def mix(number):
    """The finaliser of SplitMix64, as in worker/src/bench.rs."""
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class Engine:
    """A model with a context for `batch` sequences of up to `length` tokens."""

    def __init__(self, path, threads, batch, length, chunk):
        self.chunk = chunk
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp can't load {path}")
        params = lib.llama_context_default_params()
        # The cache is cut into equal parts of a multiple of 256 tokens, one a sequence.
        params.n_ctx = batch * (-(-length // 256) * 256)
        params.n_batch = params.n_ubatch = chunk
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp can't make a context")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def close(self):
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)

    def make(self, rows):
        """A batch of (sequence, position, wants logits)."""
        batch = lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (sequence, position, logits) in enumerate(rows):
            batch.token[i] = mix(sequence << 32 | position) % self.vocab
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        return batch, [i for i, row in enumerate(rows) if row[2]]

    def compute(self, steps):
        """Runs batches and says how many seconds they took."""
        begun = time.perf_counter()
        for batch, outputs in steps:
            if lib.llama_decode(self.context, batch) != 0:
                sys.exit("llama_decode failed")
            lib.llama_synchronize(self.context)
            for i in outputs:
                # The last one of a row is proof enough that it was computed.
                lib.llama_get_logits_ith(self.context, i)[0]
        return time.perf_counter() - begun

    def prefill(self, batch, start, tokens):
        rows = [(s, start + i, i == tokens - 1) for s in range(batch) for i in range(tokens)]
        return [self.make(rows[at : at + self.chunk]) for at in range(0, len(rows), self.chunk)]

    def decode(self, batch, start, tokens):
        return [self.make([(s, start + i, True) for s in range(batch)]) for i in range(tokens)]

    def measure(self, test, batch, depth, tokens, repeat):
        steps = (self.prefill if test == "prefill" else self.decode)(batch, depth, tokens)
        before = self.prefill(batch, 0, depth) if depth else []
        memory = lib.llama_get_memory(self.context)
        rates = []
        for run in range(repeat + 1):
            lib.llama_memory_clear(memory, True)
            self.compute(before)
            seconds = self.compute(steps)
            if run:
                rates.append(batch * tokens / seconds)
        for batch_made, _ in steps + before:
            lib.llama_batch_free(batch_made)
        return rates


def numbers(text):
    return [int(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--batch", type=numbers, default=[1])
    parser.add_argument("--depth", type=numbers, default=[0])
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    lib.llama_backend_init()
    for test, tokens in (("prefill", args.prompt), ("decode", args.generate)):
        for depth in args.depth if tokens else []:
            for batch in args.batch:
                engine = Engine(args.model, args.threads, batch, depth + tokens, args.chunk)
                rates = engine.measure(test, batch, depth, tokens, args.repeat)
                engine.close()
                spread = {"min": min(rates), "median": statistics.median(rates), "max": max(rates)}
                line = {"test": test, "batch": batch, "tokens": tokens, "tokens_per_s": spread, "depth": depth}
                print(json.dumps(line | {"threads": args.threads, "runs": len(rates)}), flush=True)


if __name__ == "__main__":
    main()
