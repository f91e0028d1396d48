"""How fast the step's products are in few bits where the hardware has them: torch's own kernels, fp16 against the rest.

    python -m benchmarks.gpu.products BUNDLE --output FILE

An engine with products of codes can be no faster than these, and every format's share of a step is bounded by them.
Every distinct matrix product that the family's record lets into few bits is timed at the tokens of every resolution,
two guidance branches, with events on the device, formats in turn: fp16, fp8 (`torch._scaled_mm`), int8
(`torch._int_mm`).
Quantising what goes in is not among them.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import onnx_ir as ir

from lssgen.bundle import MANIFEST, Bundle
from lssgen.calibration.products import products_of
from lssgen.jsons import read_json
from lssgen.manifest import Manifest
from lssgen.models.quantisation import sensitivity_of

ROUNDS, CALLS = 7, 20
TEXT_WORDS = ("add_", "ff_context", "to_add_out")
"""Parts of names of products of text tokens, of which there are as many at every resolution."""

TEXT_TOKENS = 333
"""77 of CLIP and 256 of T5."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    # Not by `read_bundle`: a bundle of benchmarks.full_size_quantise holds a step alone.
    found = measured(Bundle(args.bundle, read_json(args.bundle / MANIFEST, Manifest)))
    args.output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


def shapes_of(bundle: Bundle, size: tuple[int, int]) -> Counter[tuple[int, int, int]]:
    """(rows, inner, columns) of the products at a resolution in pixels, with how many there are of each."""
    step, facts = bundle.manifest.graphs["step"], bundle.manifest.facts
    side = facts.cell_px * facts.patch
    tokens = (size[0] // side) * (size[1] // side)
    found = Counter[tuple[int, int, int]]()
    for product in products_of(ir.load(bundle.path(step.file)), sensitivity_of(bundle.manifest.family)):
        if product.is_convolution:
            continue  # torch has none of codes
        rows = TEXT_TOKENS if any(word in product.name for word in TEXT_WORDS) else tokens
        found[2 * rows, product.rows, product.columns] += 1
    return found


def measured(bundle: Bundle) -> dict[str, Any]:
    """Milliseconds of all products of a step by format, and ratios to fp16, by resolution."""
    import torch

    found: dict[str, Any] = {"model": bundle.manifest.facts.name, "torch": torch.__version__, "sizes": {}}
    for size in bundle.manifest.resolutions:
        total: dict[str, float] = {}
        for (rows, inner, columns), count in shapes_of(bundle, size).items():
            for name, ms in _timed(_calls(rows, inner, columns)).items():
                total[name] = total.get(name, 0.0) + count * ms
        ratios = {name: round(total["fp16"] / ms, 3) for name, ms in total.items()}
        found["sizes"][f"{size[1]}x{size[0]}"] = {"ms": total, "times fp16": ratios}
    return found


def _calls(rows: int, inner: int, columns: int) -> dict[str, Callable[[], object]]:
    """The product in each format; rows are filled up to a multiple of 16, which few bits ask for."""
    import torch

    rows = -(-rows // 16) * 16
    x, weight = (torch.randn(shape, device="cuda", dtype=torch.float16) for shape in ((rows, inner), (columns, inner)))
    one = torch.ones((), device="cuda")
    x8, weight8 = (value.to(torch.float8_e4m3fn) for value in (x, weight))
    xi, weighti = ((16 * value).round().clamp(-127, 127).to(torch.int8) for value in (x, weight))
    return {
        "fp16": lambda: x @ weight.T,
        "fp8": lambda: torch._scaled_mm(x8, weight8.T, scale_a=one, scale_b=one, out_dtype=torch.float16),
        "int8": lambda: torch._int_mm(xi, weighti.T),
    }


def _timed(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of a call; formats that this torch or GPU lacks are left out."""
    import torch

    times: dict[str, list[float]] = {}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                begin.record()
                for _ in range(CALLS):
                    call()
                end.record()
            except RuntimeError:
                continue
            end.synchronize()
            if number:
                times.setdefault(name, []).append(begin.elapsed_time(end) / CALLS)
    return {name: median(each) for name, each in times.items()}


if __name__ == "__main__":
    sys.exit(main())
