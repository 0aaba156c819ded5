"""Unpacks tensors with the `gguf` package, for the test `gguf`: FOLDER/KIND.bytes, rows of K elements, to
FOLDER/KIND.f32. Must never share a line of arithmetic with the kernels."""

import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType, quants

folder, k = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for path in sorted(folder.glob("*.bytes")):
    kind = GGMLQuantizationType[path.stem]
    rows = np.fromfile(path, dtype=np.uint8)
    rows = rows.reshape(-1, quants.quant_shape_to_byte_shape((1, k), kind)[-1])
    numbers = quants.dequantize(rows, kind)
    assert numbers.dtype == np.float32 and numbers.shape == (rows.shape[0], k), (kind, numbers.shape)
    numbers.tofile(path.with_suffix(".f32"))
