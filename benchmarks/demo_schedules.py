"""Which schedules are worth having? Cached steps and a search, on the demo model, where a program can score pictures.

    python benchmarks/demo_schedules.py caching --bundle out/demo --prompts 500
    python benchmarks/demo_schedules.py searched --bundle out/demo --tries 80 --prompts 500

`caching` compares masks of cached steps with what takes as many evaluations otherwise: fewer steps, and a multistep
solver. `searched` lets `lssgen calibrate schedule` look for schedules on prompts of its own, judged by the score, and
paints the held-out prompts with those that it found, beside the published ones. In both, every prompt is painted by
every variant before the next one comes, so that all meet the same machine; rows are appended to a JSONL file, and a run
that was stopped goes on where it was. `caching` is small with --prompts 20, `searched` with --tries 10 as well.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import lssgen  # noqa: E402
from benchmarks.demo_quality import (  # noqa: E402  (a folder of scripts, not a package that is installed)
    ONE_STAGE,
    Variant,
    conditions,
    held_out_prompts,
    markdown,
    measure,
    score,
    summarise,
)
from lssgen.bundle import Bundle, read_bundle  # noqa: E402
from lssgen.calibration.judges import Judge  # noqa: E402
from lssgen.calibration.schedules import Found, SearchJob, best_of, search_schedules, write_plot  # noqa: E402
from lssgen.commands.bench import main as bench  # noqa: E402
from lssgen.engines.base import Backend  # noqa: E402
from lssgen.engines.registry import open_backend  # noqa: E402
from lssgen.measured import place_of, read_measured  # noqa: E402
from lssgen.plan.caching import MASKS  # noqa: E402

STEPS = 20
SPELT = {"every second": "ff" + "cf" * 9, "three early": "fffcfcfc" + "f" * 12, "four late": "f" * 11 + "cfcfcfcff"}
"""Masks for 20 steps."""


def caching_variants() -> dict[str, Variant]:
    """Masks of both orders, in one stage and in two, and their rivals of as many evaluations."""
    alone: Variant = {"start_sigma": 1.0}
    staged: Variant = {"start_sigma": 0.75, "shorten": True}
    table: dict[str, Variant] = {ONE_STAGE: alone}
    for order in (1, 0):
        for name, mask in {**{name: name for name in MASKS}, **SPELT}.items():
            table[f"one stage, {name}, order {order}"] = {**alone, "cached_steps": mask, "cache_order": order}
    for steps in (17, 16, 14, 11, 10, 8, 5):
        table[f"one stage, {steps} steps"] = {**alone, "num_inference_steps": steps}
    for steps in (14, 11, 8):
        table[f"one stage, {steps} steps, dpm++2m"] = {**alone, "num_inference_steps": steps, "solver": "dpm++2m"}
    table["two stages"] = staged
    for order in (1, 0):
        for mask in ("slow", "medium"):
            table[f"two stages, {mask}, order {order}"] = {**staged, "cached_steps": mask, "cache_order": order}
    for steps in (16, 14, 12):
        table[f"two stages, {steps} steps"] = {**staged, "num_inference_steps": steps}
    return table


def parts_right(prompt: str, picture: Image.Image) -> float:
    """Share of what the prompt says that the picture shows: background, count, colours, shapes, sizes, relation."""
    verdict = score(np.asarray(picture), prompt)
    return float(np.mean([getattr(verdict, field.name) for field in fields(verdict)]))


JUDGE = Judge(name="share of the prompt that is right", judge=lambda prompt, picture, _: parts_right(prompt, picture))


def searched(args: argparse.Namespace, bundle: Bundle, backend: Backend) -> list[Found]:
    """The search, on prompts that the comparison does not see."""
    prompts = held_out_prompts(args.prompts + args.search_prompts)[args.prompts :]
    return search_schedules(
        SearchJob(
            bundle=bundle,
            backend=backend,
            prompts=tuple(prompts),
            judge=JUDGE,
            output=args.outdir / "demo_search.jsonl",
            seed=100_000,
            tries=args.tries,
            options={"num_inference_steps": STEPS} if args.fixed_steps else {},
        )
    )


def searched_variants(found: Sequence[Found]) -> dict[str, Variant]:
    """The schedules that are worth having, and the published ones."""
    table: dict[str, Variant] = {
        ONE_STAGE: {"start_sigma": 1.0},
        "published, sigma 0.75": {"start_sigma": 0.75, "shorten": True},
        "sigma 0.5": {"start_sigma": 0.5, "shorten": True},
    }
    for number, one in enumerate(best_of(found), start=1):
        table[f"found {number}: {_said(one.tried.words)}"] = one.tried.words
    return table


def _said(words: Mapping[str, Any]) -> str:
    known = {"start_sigma": "sigma", "scaling_space": "by", "hand_off": "left at", "cached_steps": "cached"}
    one_stage = len(words["stage_steps"]) == 1
    shown = [f"{known[word]} {words[word]}" for word in known if word in words and not one_stage]
    if words["cached_steps"] != "off":
        shown.append(f"order {words['cache_order']}")
    return ", ".join(["one stage"] * one_stage + shown)


def measured_costs(folder: Path, backend: Backend, threads: int) -> None:
    """See that the bundle has step times of this machine."""
    bundle = read_bundle(folder)
    known = read_measured(bundle, place_of(backend.name, backend.describe()))
    if known is None or known.costs is None:
        bench(["guarantee", str(folder), "--engine", backend.name, "--threads", str(threads), "--pairs", "6"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("caching", "searched"))
    parser.add_argument("--bundle", type=Path, required=True, help="the exported demo model")
    parser.add_argument("--prompts", type=int, default=200, help="how many held-out prompts")
    parser.add_argument("--search-prompts", type=int, default=24, help="how many others the search paints")
    parser.add_argument("--tries", type=int, default=80, help="schedules that the search tries")
    parser.add_argument("--fixed-steps", action="store_true", help="search at 20 steps only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--outdir", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    args.outdir.mkdir(parents=True, exist_ok=True)
    backend = open_backend("onnxruntime", threads=args.threads)
    if args.part == "caching":
        variants = caching_variants()
    else:
        measured_costs(args.bundle, backend, args.threads)
        found = searched(args, read_bundle(args.bundle), backend)
        write_plot(found, JUDGE.name, args.outdir / "demo_search.png")
        variants = searched_variants(found)
        # For `benchmarks/transitions.py --schedules`, which puts them beside every transition.
        (args.outdir / "demo_found.json").write_text(json.dumps(variants, indent=1) + "\n")
    name = f"demo_{args.part}"
    with lssgen.load(args.bundle, engine="onnxruntime", threads=args.threads) as pipeline:
        rows = list(measure(pipeline, held_out_prompts(args.prompts), args.outdir / f"{name}.jsonl", variants))
        step = pipeline.bundle.manifest.graphs["step"]
    summary = summarise(rows, variants)
    result = {"conditions": conditions(args.threads, step), "variants": summary}
    (args.outdir / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.outdir / f"{name}.md").write_text(markdown(summary) + "\n")
    print(markdown(summary))


if __name__ == "__main__":
    main()
