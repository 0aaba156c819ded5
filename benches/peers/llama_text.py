"""llama.cpp's greedy answers to given tokens, through its C API, with the likeliest candidates of every position.

One JSON object a prompt: `prompt` and `tokens`, and for each of these `top`: the likeliest candidates as
[token, text, log-probability], the likeliest first. One sequence at a time, one token a step after the prompt.
Must never sample: of equal logits the lowest token is taken.
"""

import argparse
import ctypes
import json
import sys

import numpy as np

import llama_cpp as lib

TOP = 20


class Model:
    """A model with a context of `length` tokens."""

    def __init__(self, path, threads, length):
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp can't load {path}")
        params = lib.llama_context_default_params()
        params.n_ctx = length
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp can't make a context")
        self.vocabulary = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocabulary)

    def tokens(self, text):
        """Tokens of a text, with the one that begins every text if the model has one."""
        raw = text.encode()
        room = (lib.llama_token * (len(raw) + 8))()
        count = lib.llama_tokenize(self.vocabulary, raw, len(raw), room, len(room), True, False)
        if count < 0:
            sys.exit("llama.cpp can't tokenise a prompt")
        return list(room[:count])

    def text(self, token):
        room = ctypes.create_string_buffer(256)
        count = lib.llama_token_to_piece(self.vocabulary, token, room, len(room), 0, True)
        return room.raw[: max(count, 0)].decode(errors="replace")

    def forget(self):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def compute(self, tokens, position):
        """Log-probabilities behind the last of `tokens`, which begin at `position`."""
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == len(tokens) - 1
        if lib.llama_decode(self.context, batch) != 0:
            sys.exit("llama_decode failed")
        raw = lib.llama_get_logits_ith(self.context, len(tokens) - 1)
        logits = np.ctypeslib.as_array(raw, shape=(self.size,)).astype(np.float64)
        lib.llama_batch_free(batch)
        logits -= logits.max()
        return logits - np.log(np.exp(logits).sum())

    def likeliest(self, logprobs):
        best = np.argpartition(-logprobs, TOP)[:TOP]
        best = sorted(best.tolist(), key=lambda token: (-logprobs[token], token))
        return [[token, self.text(token), float(logprobs[token])] for token in best]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=200, help="length of each answer [%(default)s]")
    parser.add_argument("--cut", type=int, help="only print the first N tokens of each line of text on standard input")
    args = parser.parse_args()
    lib.llama_backend_init()
    model = Model(args.model, args.threads, 1024)
    if args.cut:
        print(json.dumps([model.tokens(line.strip())[: args.cut] for line in sys.stdin if line.strip()]))
        return
    for prompt in json.load(sys.stdin):
        model.forget()
        answer, top, step, position = [], [], prompt, 0
        for _ in range(args.tokens):
            best = model.likeliest(model.compute(step, position))
            position += len(step)
            step = [best[0][0]]
            answer += step
            top.append(best)
        print(json.dumps({"prompt": prompt, "tokens": answer, "top": top}), flush=True)


if __name__ == "__main__":
    main()
