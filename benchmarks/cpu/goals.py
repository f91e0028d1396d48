"""The CPU path against torch, in turn in one run: steps, whole runs, latents, and the demo model's score.

    python -m benchmarks.cpu.goals --work DIR [steps] [runs] [score] [--threads 0] [--rounds 5] [--models sd3-123m]

Same weights, prompts, guidance, schedule and seeds for all. Every round runs each contestant; ratios are medians over
rounds of two times of one round, so that a machine that is busy is busy for both. With one thread, the processor's time
is the work itself, and what else the machine does hardly changes it: it is recorded beside the clock's. With several,
only the clock says anything, and the machine must be quiet. Results go to benchmarks/results/cpu_goals.json; parts,
models and sizes that are not asked for stay as they were.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.cpu.contestants import TORCH, lssgen_run, lssgen_step, psnr, torch_run, torch_step
from benchmarks.cpu.models import SIZES, ZEROS, bundle_of, checkpoint_of
from benchmarks.cpu.turns import Times, clock_of, conditions, in_turn, times_as_fast
from benchmarks.saving import save
from lssgen.bench.cases import wordings
from lssgen.bundle import Bundle
from lssgen.demo import CHECKPOINT
from lssgen.engines.demand import token_axes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cpu_goals.json"

STEP_ENGINES = ("onnxruntime", "openvino fp32", "openvino")
STEP_GOALS = {"torch fp32": 4.5, "best of torch bf16": 1.6}
RUN_GOAL = 2.0
RUNS = {"demo": ((256, 20),), "sd3-123m": ((256, 8), (512, 8), (1024, 8))}
"""Size and steps of whole runs. Few steps for the larger model: its rounds take minutes."""

WAYS = {"one stage": 1.0, "staged": 0.75, "staged, sigma 0.5": 0.5}
"""Noise levels at which the last stage begins. 0.75 is the published one; with 0.5 the demo model paints as well
(`benchmarks/demo_quality.py`)."""

STAGES: Mapping[str, dict[str, Any]] = {
    "demo": {},
    "sd3-123m": {"scaling_space": "latent"},
}


def steps(args: argparse.Namespace) -> dict[str, Any]:
    """One step at every size."""
    found: dict[str, Any] = {}
    for model in args.models:
        bundle, checkpoint = bundle_of(model, args.work), checkpoint_of(model, args.work)
        tokens = max(extent.high for extent in token_axes(bundle.manifest).values())
        for size in args.sizes or SIZES[model]:
            if size not in SIZES[model]:
                continue
            print(f"step of {model} at {size} px, {tokens} text tokens", flush=True)
            works = {n: torch_step(n, checkpoint, bundle, size, tokens) for n in TORCH}
            works |= {n: lssgen_step(n, bundle, size, tokens, args.threads) for n in STEP_ENGINES}
            times = in_turn(works, args.rounds)
            found[f"{model} {size}"] = _against(times, "torch fp32") | {"tokens": tokens}
            found[f"{model} {size}"] |= {"conditions": conditions(args.threads)}
            save(RESULTS, "steps", {**_known("steps"), **found})
            print(found[f"{model} {size}"][clock_of(args.threads)]["times_as_fast"], flush=True)
    return found


def runs(args: argparse.Namespace) -> dict[str, Any]:
    """Whole runs: LSSGen in stages, against the single stage of every peer."""
    found: dict[str, Any] = {}
    for model in args.models:
        bundle, checkpoint = bundle_of(model, args.work), checkpoint_of(model, args.work)
        for size, count in RUNS[model]:
            if args.sizes and size not in args.sizes:
                continue
            print(f"run of {model} at {size} px, {count} steps", flush=True)
            painters = {
                name: make() for name, make in _painters(bundle, checkpoint, size, count, args.threads).items()
                if name in (args.only or (name,))
            }  # fmt: skip
            prompt = "a red star above a blue circle on a white background"
            works = {name: partial(_painted, paint, cycle(wordings(prompt, 100))) for name, paint in painters.items()}
            times = in_turn(works, args.rounds)
            reference = next(name for name in (*TORCH, *painters) if name in painters)
            found[f"{model} {size}"] = _against(times, reference) | {"steps": count, "reference": reference}
            found[f"{model} {size}"]["latents"] = _latents(painters, prompt)
            found[f"{model} {size}"] |= {"conditions": conditions(args.threads)}
            save(RESULTS, "runs", {**_known("runs"), **found})
            shown = found[f"{model} {size}"]
            print(shown[clock_of(args.threads)]["times_as_fast"], shown["latents"], flush=True)
    return found


def score(args: argparse.Namespace) -> dict[str, Any]:
    """The demo model's score on ONNX Runtime in fp32 and on "auto", same prompts and seeds."""
    from benchmarks.demo_quality import held_out_prompts, wilson

    sys.path.insert(0, str(ROOT / "examples" / "demo_model"))
    from score import score as judged

    bundle = bundle_of("demo", args.work)
    painters = {name: lssgen_run(name, bundle, args.threads) for name in ("onnxruntime", "auto")}
    right: dict[str, list[bool]] = {name: [] for name in painters}
    pictures: list[float] = []
    for seed, prompt in enumerate(held_out_prompts(args.prompts)):
        images = {name: np.asarray(paint(prompt, seed).images[0]) for name, paint in painters.items()}
        for name, image in images.items():
            right[name].append(bool(judged(image, prompt).right))
        pictures.append(psnr(images["auto"].astype(np.float64), images["onnxruntime"].astype(np.float64)))
    found: dict[str, Any] = {
        name: {"share": float(np.mean(values)), "interval": wilson(float(np.mean(values)), len(values))}
        for name, values in right.items()
    }
    found |= {"prompts": args.prompts, "median_psnr_db": median(pictures), "least_psnr_db": min(pictures)}
    found["conditions"] = conditions(args.threads)
    found["differ"] = sum(a != b for a, b in zip(right["onnxruntime"], right["auto"], strict=True))
    save(RESULTS, "score", found)
    print(found, flush=True)
    return found


def _painters(bundle: Bundle, checkpoint: Path, size: int, count: int, threads: int) -> dict[str, Any]:
    """What makes each contestant of a whole run, by its name."""
    model = "demo" if checkpoint == CHECKPOINT else "sd3-123m"
    # Half the picture's side first, whatever the size, as the demo model does it.
    shared = {"height": size, "width": size, "num_inference_steps": count, **STAGES[model]}
    if model != "demo":
        shared |= {"min_resolution": size // 2, "base_height": size, "base_width": size}
    made: dict[str, Any] = {name: partial(torch_run, name, checkpoint, size, count, ZEROS[model]) for name in TORCH}
    for name in ("onnxruntime", "auto"):
        for way, sigma in WAYS.items():
            made[f"lssgen {name}, {way}"] = partial(
                lssgen_run, name, bundle, threads, **shared, start_sigma=sigma
            )  # fmt: skip
    return made


def _painted(paint: Any, prompts: Iterator[str]) -> None:
    """A picture of a prompt that was not painted before: lssgen would remember its text."""
    paint(next(prompts), 1)


def _latents(painters: Mapping[str, Any], prompt: str) -> dict[str, float]:
    """PSNR in dB of "auto"'s final latents against ONNX Runtime's in float32: one stage, and staged."""
    found: dict[str, float] = {}
    for way in WAYS:
        if not {f"lssgen {name}, {way}" for name in ("onnxruntime", "auto")} <= set(painters):
            continue
        got, wanted = (painters[f"lssgen {name}, {way}"](prompt, 1).latents for name in ("auto", "onnxruntime"))
        found[way] = psnr(got, wanted)
    return found


def _against(times: Mapping[str, Times], reference: str) -> dict[str, Any]:
    """Medians in milliseconds, and how many times as fast as the reference and as the best of torch's bf16."""
    found: dict[str, Any] = {"rounds": len(times[reference].wall)}
    for clock in ("cpu", "wall"):
        medians = {name: 1e3 * median(getattr(values, clock)) for name, values in times.items()}
        best = min((name for name in TORCH[1:] if name in times), key=medians.__getitem__, default=reference)
        found[clock] = {
            "median_ms": medians,
            "times_as_fast": {name: times_as_fast(times, name, reference, clock) for name in times},
            "times_as_fast_as_best_bf16": {name: times_as_fast(times, name, best, clock) for name in times},
            "best_bf16": best,
            "all_ms": {name: [1e3 * value for value in getattr(values, clock)] for name, values in times.items()},
        }
    return found


def _known(part: str) -> dict[str, Any]:
    import json

    return json.loads(RESULTS.read_text()).get(part, {}) if RESULTS.exists() else {}


PARTS = {"steps": steps, "runs": runs, "score": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and bundles")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--models", nargs="*", default=list(SIZES))
    parser.add_argument("--only", nargs="*", default=[], help="contestants of whole runs; default: all")
    parser.add_argument("--sizes", nargs="*", type=int, default=[])
    args = parser.parse_args()
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
