"""Bundles of random weights that travel without them: a few kilobytes instead of gigabytes.

    python -m benchmarks.gpu.hollow pack BUNDLE HOLLOW    # here
    python -m benchmarks.gpu.hollow fill HOLLOW           # where it is measured

Of every tensor in a data file its place, type, mean and spread are kept; filling draws normal numbers with these. The
network is another one with the same layout, as good to time and to round as the first.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lssgen.bundle import read_bundle

LARGE = 1 << 20
"""Size in bytes from which on a data file stays behind."""

SUFFIX = ".hollow.json"


def pack(source: Path, target: Path) -> None:
    """Copy a bundle, large data files left out."""
    bundle = read_bundle(source)
    target.mkdir(parents=True)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        if path.suffix != ".data" or path.stat().st_size < LARGE:
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.relative_to(source))
    for graph in bundle.manifest.graphs.values():
        tensors = [value.const_value for value in ir.load(source / graph.file).graph.initializers.values()]
        for name in graph.data:
            if not (target / name).exists():
                told = [_told(one) for one in tensors if isinstance(one, ir.ExternalTensor) and one.location == name]
                (target / (name + SUFFIX)).write_text(json.dumps(told))


def _told(tensor: ir.ExternalTensor) -> dict[str, Any]:
    numbers = tensor.numpy().astype(np.float64)
    return {
        "offset": tensor.offset or 0,
        "count": numbers.size,
        "type": tensor.dtype.name,
        "mean": float(numbers.mean()),
        "spread": float(numbers.std()),
    }


def fill(folder: Path, seed: int = 0) -> None:
    """Write the data files that are missing, from the same seed the same."""
    rng = np.random.default_rng(seed)
    for path in sorted(folder.rglob("*" + SUFFIX)):
        with path.with_name(path.name.removesuffix(SUFFIX)).open("wb") as file:
            for told in json.loads(path.read_text()):
                file.seek(told["offset"])
                numbers = rng.standard_normal(told["count"], np.float32) * told["spread"] + told["mean"]
                file.write(numbers.astype(ir.DataType[told["type"]].numpy()).tobytes())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pack", bundle, hollow]:
            pack(Path(bundle), Path(hollow))
        case ["fill", hollow]:
            fill(Path(hollow))
        case _:
            sys.exit(__doc__)
