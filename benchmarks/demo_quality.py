"""Does LSSGen keep the quality and save the time? Measured on the demo model, where a program can look at the pictures.

    python benchmarks/demo_quality.py --bundle out/demo --prompts 200

Every held-out prompt is painted by every variant before the next prompt comes, so that all variants meet the same
machine. Each picture is scored by examples/demo_model/score.py: wholly right means that every colour, shape, size, the
relation and the background are what the prompt says. Times are of whole runs (text, all stages, decode) of one picture
at a time; the speed-up is the median over prompts of (one-stage time / variant time). Rows are appended to a JSONL
file, and a run that was stopped goes on where it was.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import lssgen
from lssgen.manifest import Graph
from lssgen.runtime import Pipeline

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "demo_model"))

from scenes import all_captions, is_held_out  # noqa: E402  (the demo model's scripts are not a package)
from score import score  # noqa: E402

Variant = Mapping[str, Any]

SIGMAS = (0.3, 0.5, 0.75, 0.9)
ONE_STAGE = "one stage"


def variants() -> dict[str, Variant]:
    """What is compared: options of a run, by name."""
    table: dict[str, Variant] = {ONE_STAGE: {"start_sigma": 1.0}}
    for space in ("resnet", "latent", "pixel"):
        for sigma in SIGMAS:
            table[f"{space}, sigma {sigma:g}"] = {"scaling_space": space, "start_sigma": sigma, "shorten": True}
    for sigma in (0.5, 0.75):
        table[f"resnet, sigma {sigma:g}, regular"] = {"scaling_space": "resnet", "start_sigma": sigma, "shorten": False}
    return table


def held_out_prompts(count: int) -> list[str]:
    """So many captions the model has never seen, the same ones every time, both kinds of sentence among them."""
    held_out = [text for text in all_captions() if is_held_out(text)]
    lone = [text for text in held_out if " large " in f" {text}" or " small " in f" {text}"]
    pairs = [text for text in held_out if text not in set(lone)]
    rng = np.random.default_rng(0)
    few = min(len(lone), count // 10)
    chosen = [*rng.permutation(lone)[:few], *rng.permutation(pairs)[: count - few]]
    return [str(text) for text in rng.permutation(chosen)]


def paint_and_score(pipeline: Pipeline, prompt: str, seed: int, variant: Variant) -> dict[str, Any]:
    """One picture: what is right about it, and the seconds it took."""
    result = pipeline(prompt, seed=seed, **variant)
    verdict = score(np.asarray(result.pictures[0].image), prompt)
    (times,) = result.times
    return {
        "right": bool(verdict.right),
        "seconds": times.total,
        "stages": [stage.total for stage in times.stages],
        "decode": times.decode,
        "steps": [len(stage.steps) for stage in times.stages],
    }


def measure(
    pipeline: Pipeline, prompts: list[str], log: Path, variants: Mapping[str, Variant]
) -> Iterator[dict[str, Any]]:
    """A row per prompt and variant; rows already in `log` are not measured again."""
    done: dict[tuple[int, str], dict[str, Any]] = {}
    if log.exists():
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        done = {(row["prompt"], row["variant"]): row for row in rows}
    table = list(variants.items())
    for options in (dict(variant) for _, variant in table):  # first calls allocate; they are not what is measured
        pipeline(prompts[0], seed=0, **options)
    for index, prompt in enumerate(prompts):
        turn = index % len(table)
        for name, variant in (*table[turn:], *table[:turn]):
            row = done.get((index, name))
            if row is None:
                row = {"prompt": index, "variant": name} | paint_and_score(pipeline, prompt, index, variant)
                with log.open("a") as file:
                    print(json.dumps(row), file=file)
            yield row
        print(f"\r{index + 1} of {len(prompts)} prompts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def summarise(rows: list[dict[str, Any]], variants: Mapping[str, Variant]) -> list[dict[str, Any]]:
    """Per variant: share wholly right with its 95 % interval (Wilson), steps, seconds, speed-up over one stage."""
    whole = {row["prompt"]: row["seconds"] for row in rows if row["variant"] == ONE_STAGE}
    summary: list[dict[str, Any]] = []
    for name in variants:
        mine = [row for row in rows if row["variant"] == name]
        share, count = float(np.mean([row["right"] for row in mine])), len(mine)
        low, high = wilson(share, count)
        summary.append(
            {
                "variant": name,
                "right": share,
                "low": low,
                "high": high,
                "steps": mine[0]["steps"],
                "median_seconds": median(row["seconds"] for row in mine),
                "speedup": median(whole[row["prompt"]] / row["seconds"] for row in mine),
                "prompts": count,
            }
        )
    return summary


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share of `count` trials. Source: Wilson 1927."""
    middle = share + z * z / (2 * count)
    reach = z * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    return (middle - reach) / (1 + z * z / count), (middle + reach) / (1 + z * z / count)


def markdown(summary: list[dict[str, Any]]) -> str:
    """The table as the docs show it."""
    lines = ["| variant | steps | wholly right | 95 % interval | seconds | speed-up |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['variant']} | {' + '.join(map(str, row['steps']))} | {row['right']:.1%} | "
        f"{row['low']:.1%} to {row['high']:.1%} | {row['median_seconds']:.2f} | {row['speedup']:.2f} |"
        for row in summary
    ]
    return "\n".join(lines)


def plot(summary: list[dict[str, Any]], path: Path) -> None:
    """Share wholly right against speed-up; one line a transition, one point a start_sigma."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    whole = next(row for row in summary if row["variant"] == ONE_STAGE)
    axes.axhline(100 * whole["right"], color="0.6", linestyle=":", label=f"one stage ({sum(whole['steps'])} steps)")
    looks = {"resnet": ("C0", "o", 0.0), "latent": ("C1", "s", 0.004), "pixel": ("C2", "^", -0.004)}
    for space, (colour, marker, shift) in looks.items():
        names = [f"{space}, sigma {sigma:g}" for sigma in SIGMAS]
        rows = [next(row for row in summary if row["variant"] == name) for name in names]
        right = [100 * row["right"] for row in rows]
        spread = [[100 * (r["right"] - r["low"]) for r in rows], [100 * (r["high"] - r["right"]) for r in rows]]
        x = [row["speedup"] * (1 + shift) for row in rows]
        label = {"resnet": "latent upsampler", "latent": "bicubic latent", "pixel": "pixel space"}[space]
        axes.errorbar(x, right, spread, color=colour, marker=marker, label=label, capsize=2, linewidth=1)
        for sigma, at, share in zip(SIGMAS, x, right, strict=True):
            axes.annotate(
                f"{sigma:g}", (at, share), textcoords="offset points", xytext=(4, 4), fontsize=7, color=colour
            )
    axes.set(
        xlabel="speed-up over one stage", ylabel="wholly right, %", title="Demo model, 128 to 256 px, by start_sigma"
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def conditions(threads: int, step: Graph) -> dict[str, Any]:
    """What the numbers of a table hold for."""
    return {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": threads,
        "precision": step.precision,
        "engine": f"onnxruntime {version('onnxruntime')}, CPU",
        "graph": step.key,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="the exported demo model")
    parser.add_argument("--prompts", type=int, default=200, help="how many held-out prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--outdir", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    args.outdir.mkdir(parents=True, exist_ok=True)
    with lssgen.load(args.bundle, engine="onnxruntime", threads=args.threads) as pipeline:
        rows = list(measure(pipeline, held_out_prompts(args.prompts), args.outdir / "demo_quality.jsonl", variants()))
        step = pipeline.bundle.manifest.graphs["step"]
    summary = summarise(rows, variants())
    result = {"conditions": conditions(args.threads, step), "variants": summary}
    (args.outdir / "demo_quality.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.outdir / "demo_quality.md").write_text(markdown(summary) + "\n")
    plot(summary, args.outdir / "demo_quality.png")
    print(markdown(summary))


if __name__ == "__main__":
    main()
