"""Makes a version of a GGUF file in another quantisation, by llama.cpp's own call.

    quantise.py SOURCE TARGET TYPE      e.g. quantise.py model-q4_1.gguf model-q4_0.gguf Q4_0

From a quantised file the weights are unpacked and quantised again: good enough to measure speed with, not to judge
answers by. Must never leave a half-written file under the target's name.
"""

import os
import sys

import llama_cpp as lib


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    source, target, kind = sys.argv[1:]
    params = lib.llama_model_quantize_default_params()
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    part = f"{target}.part"
    status = lib.llama_model_quantize(source.encode(), part.encode(), params)
    if status != 0:
        sys.exit(f"llama.cpp can't make {kind} of {source}: {status}")
    os.replace(part, target)


if __name__ == "__main__":
    main()
