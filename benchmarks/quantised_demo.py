"""Does a quantised demo model still paint what it is told? Held-out prompts, scored by a program, every format in turn.

    python -m benchmarks.quantised_demo --work DIR --prompts 200

Ranges come from captions that the model was trained on; pictures are painted from captions that it never saw, each by
every bundle with the same seed. A picture counts when it is wholly right (`examples/demo_model/score.py`). int8 and
int8-large run as they are meant to; fp8, int8-s8s8 and nvfp4 are made for TensorRT, and ONNX Runtime computes them
here, with the same rounding. The goal is a score within one point of the bundle in fp32.

Kill it and run it again: it goes on behind the last picture. With `--seconds`, no prompt begins after so many, and the
score is that of the prompts before. On a GPU: `--engine onnxruntime-cuda`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from benchmarks.demo_quality import held_out_prompts, paint_and_score, wilson
from lssgen.bench.environment import machine_facts
from lssgen.bundle import Bundle, read_bundle
from lssgen.calibration.gates import Gate
from lssgen.calibration.quality import Bound, Runs
from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.calibration.ranges import RangesJob, measure_ranges
from lssgen.calibration.rehearsal import rehearsed
from lssgen.demo import write_demo_bundle
from lssgen.engines.registry import open_backend
from lssgen.ort import ort
from lssgen.runtime import Pipeline

RESULTS = Path(__file__).parent / "results" / "quantised_demo.json"
VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {"format": "int8", "engine": "onnxruntime"},
    "int8-large": {"format": "int8", "engine": "onnxruntime", "from_px": 256},
    "int8-s8s8": {"format": "int8", "engine": "tensorrt-rtx"},
    "fp8": {"format": "fp8", "engine": "tensorrt-rtx"},
    "nvfp4": {"format": "nvfp4", "engine": "tensorrt-rtx"},
}
CALIBRATED = 16


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and rows, kept between runs")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--engine", default="onnxruntime", choices=("onnxruntime", "onnxruntime-cuda"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no prompt after so many")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    ends = monotonic() + args.seconds
    backend = open_backend(args.engine, threads=args.threads)
    bundles = bundles_of(args.work, backend, args.variants)
    rows: dict[str, list[bool]] = {name: [] for name in bundles}
    log = args.work / "rows.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["prompt"], row["variant"]): row["right"] for row in known}
    with ExitStack() as stack:
        open_ones = {
            name: stack.enter_context(Pipeline(stack.enter_context(rehearsed(bundle, backend)), backend))
            for name, bundle in bundles.items()
        }
        for index, prompt in enumerate(held_out_prompts(args.prompts)):
            if monotonic() > ends:
                break
            for name, pipeline in open_ones.items():
                if (index, name) not in done:
                    done[index, name] = paint_and_score(pipeline, prompt, index, {})["right"]
                    with log.open("a") as file:
                        print(json.dumps({"prompt": index, "variant": name, "right": done[index, name]}), file=file)
                rows[name].append(done[index, name])
            print(f"\r{index + 1} of {args.prompts} prompts", end="", file=sys.stderr, flush=True)
    record(bundles, rows, args)
    return 0


def bundles_of(work: Path, backend: Any, names: Sequence[str]) -> dict[str, Bundle]:
    plain = work / "fp32"
    if not plain.exists():
        write_demo_bundle(plain)
    bundle = read_bundle(plain)
    prompts = calibration_prompts()
    statistics = measure_ranges(
        RangesJob(bundle=bundle, backend=backend, prompts=prompts, output=work / "ranges.safetensors")
    )
    found = {"fp32": bundle}
    for name in names:
        if not (work / name / "manifest.json").exists():
            gate = Gate(runs=Runs(prompts=prompts[:4]), backend=backend, bound=Bound(25, 0.97))
            quantise(QuantiseJob(bundle=bundle, output=work / name, statistics=statistics, gate=gate, **VARIANTS[name]))
        found[name] = read_bundle(work / name)
    return found


def calibration_prompts() -> tuple[str, ...]:
    """Captions that the model was trained on, the same ones every time."""
    from scenes import all_captions, is_held_out  # benchmarks.demo_quality has put their folder on the path

    seen = [text for text in all_captions() if not is_held_out(text)]
    return tuple(str(text) for text in np.random.default_rng(1).permutation(seen)[:CALIBRATED])


def record(bundles: dict[str, Bundle], rows: dict[str, list[bool]], args: argparse.Namespace) -> None:
    found: list[dict[str, Any]] = []
    for name, right in rows.items():
        share, about = float(np.mean(right)), bundles[name].manifest.graphs["step"].quantisation
        measured = about.measured if about else None
        found.append(
            {
                "variant": name,
                "right": share,
                "interval": wilson(share, len(right)),
                "differs": float(np.mean([a != b for a, b in zip(right, rows["fp32"], strict=True)])),
                "psnr_db": measured.psnr_db if measured else [],
                "cosine": measured.cosine if measured else [],
                "kept": len(about.kept) if about else 0,
                "mb": round(sum(bundles[name].stored_bytes(g) for g in bundles[name].manifest.graphs) / 1e6, 1),
            }
        )
    conditions = {
        "date": datetime.now(UTC).date().isoformat(),
        "prompts": len(rows["fp32"]),
        "calibrated": CALIBRATED,
        "engine": args.engine,
        "threads": args.threads,
        "onnxruntime": ort.__version__,
        **machine_facts(),
    }
    args.output.write_text(json.dumps({"conditions": conditions, "variants": found}, indent=2) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())
