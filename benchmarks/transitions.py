"""Ways from stage to stage, noise levels and early hand-off, measured on the demo model: score and time of each.

    python benchmarks/transitions.py --bundle out/demo --prompts 500
    python benchmarks/transitions.py --bundle out/demo --prompts 20 --only "resnet,dct" --sigmas 0.5,0.75

Every held-out prompt is painted by every variant before the next prompt comes, as in `benchmarks/demo_quality.py`, of
which the score and the prompts are. Rows are appended to a JSONL file, and a run that was stopped goes on where it was.
Variants: one stage; every transition that the bundle has at every noise level, with the small stage painted to its end
and left where the next one's noise covers the rest (hand-off auto); the level that `lssgen calibrate sigma` put into
the bundle; and, with --schedules, further options of runs from a file, {"name": {"start_sigma": 0.5, ...}, ...}.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import lssgen
from lssgen.calibration.levels import Levels, read_levels
from lssgen.calibration.spectra import covering_share
from lssgen.plan.transitions import TRANSITIONS
from lssgen.runtime import Pipeline

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.demo_quality import held_out_prompts, paint_and_score, wilson  # noqa: E402  (needs the path above)

Variant = Mapping[str, Any]

ONE_STAGE = "one stage"
SIGMAS = (0.3, 0.45, 0.6, 0.75, 0.85)
PUBLISHED = 0.75
WORSE = 0.03
"""Difference from one stage, as a share of the prompts, from which on a variant is not as good."""


def variants(pipeline: Pipeline, spaces: Sequence[str], sigmas: Sequence[float]) -> dict[str, Variant]:
    """What is compared: options of a run, by name."""
    facts = pipeline.bundle.manifest.facts
    table: dict[str, Variant] = {ONE_STAGE: {"start_sigma": 1.0}}
    for space in spaces:
        keeps = TRANSITIONS[space].takes == "state"  # pyright: ignore[reportArgumentType]
        own = {"scaling_space": space, "shorten": True}
        levels = {f"{sigma:g}": sigma for sigma in (*sigmas, TRANSITIONS[space].start_sigma) if sigma}  # pyright: ignore
        if space in facts.defaults.covering_sigmas:
            levels["auto"] = "auto"  # pyright: ignore[reportArgumentType]
        for word, sigma in levels.items():
            table[f"{space}, {word}, to the end"] = {**own, "start_sigma": sigma, "hand_off": 0.0}
            table[f"{space}, {word}, left early"] = {**own, "start_sigma": sigma, "hand_off": "auto"}
        if keeps:
            table[f"{space}, {PUBLISHED:g}, one field"] = {**own, "start_sigma": PUBLISHED, "noise_field": "picture"}
    table[f"resnet, {PUBLISHED:g}, one field"] = {
        "scaling_space": "resnet",
        "shorten": True,
        "start_sigma": PUBLISHED,
        "noise_field": "picture",
    }
    return {
        name: variant for name, variant in table.items() if variant.get("scaling_space", "resnet") in facts_of(facts)
    }


def facts_of(facts: Any) -> tuple[str, ...]:
    """Transitions that a bundle has."""
    return tuple(facts.scaling_spaces)


def measure(
    pipeline: Pipeline, table: Mapping[str, Variant], prompts: list[str], log: Path
) -> Iterator[dict[str, Any]]:
    """A row per prompt and variant; rows already in `log` are not measured again."""
    done: dict[tuple[int, str], dict[str, Any]] = {}
    if log.exists():
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        done = {(row["prompt"], row["variant"]): row for row in rows}
    for options in table.values():  # first calls allocate; they are not what is measured
        pipeline(prompts[0], seed=0, **options)
    names = list(table)
    for index, prompt in enumerate(prompts):
        turn = index % len(names)
        for name in (*names[turn:], *names[:turn]):
            row = done.get((index, name))
            if row is None:
                row = {"prompt": index, "variant": name} | paint_and_score(pipeline, prompt, index, table[name])
                with log.open("a") as file:
                    print(json.dumps(row), file=file)
            yield row
        print(f"\r{index + 1} of {len(prompts)} prompts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def summarise(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Per variant: share wholly right with its 95 % interval, that share less one stage's on the same prompts, steps,
    seconds, and speed-up over one stage."""
    whole = {row["prompt"]: row for row in rows if row["variant"] == ONE_STAGE}
    found: list[dict[str, Any]] = []
    for name in names:
        mine = [row for row in rows if row["variant"] == name]
        share = float(np.mean([row["right"] for row in mine]))
        low, high = wilson(share, len(mine))
        apart = np.asarray([row["right"] - whole[row["prompt"]]["right"] for row in mine], float)
        found.append(
            {
                "variant": name,
                "right": share,
                "low": low,
                "high": high,
                # Paired: prompts that are hard are hard for both.
                "less": float(apart.mean()),
                "less_error": float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else 0.0,
                "steps": mine[0]["steps"],
                "median_seconds": median(row["seconds"] for row in mine),
                "speedup": median(whole[row["prompt"]]["seconds"] / row["seconds"] for row in mine),
                "prompts": len(mine),
            }
        )
    return found


def markdown(summary: Sequence[Mapping[str, Any]]) -> str:
    """The table as the docs show it."""
    lines = [
        "| variant | steps | wholly right | 95 % interval | against one stage, paired | seconds | speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['variant']} | {' + '.join(map(str, row['steps']))} | {row['right']:.1%} | "
        f"{row['low']:.1%} to {row['high']:.1%} | {100 * row['less']:+.1f} ± {196 * row['less_error']:.1f} | "
        f"{row['median_seconds']:.2f} | {row['speedup']:.2f} |"
        for row in summary
    ]
    return "\n".join(lines)


def optima(summary: Sequence[Mapping[str, Any]], levels: Levels) -> str:
    """The lowest level of every transition at which one stage is not better, and the quality constant that it means.

    Not better: the paired difference, with its 95 % interval, reaches no further down than `WORSE`. Where one constant
    gave them all, it would hold for the demo model's transitions; how far apart they are says how far it carries.
    """
    lines = [
        "| transition | lowest level that is as good as one stage | quality constant that it means |",
        "|---|---|---|",
    ]
    for space, error in levels.error.items():
        rows = [
            row for row in summary if row["variant"].startswith(f"{space}, ") and row["variant"].endswith("to the end")
        ]
        known = [(float(row["variant"].split(", ")[1]), row) for row in rows if row["variant"].split(", ")[1] != "auto"]
        if not known:
            continue
        good = [sigma for sigma, row in known if row["less"] - 1.96 * row["less_error"] > -WORSE]
        if not good:
            lines.append(f"| {space} | none of {', '.join(f'{sigma:g}' for sigma, _ in known)} | - |")
            continue
        lowest = min(good)
        below = "or less " if lowest == min(sigma for sigma, _ in known) else ""
        constant = quality_of(np.asarray(levels.power), np.asarray(error), lowest)
        lines.append(f"| {space} | {below}{lowest:g} | {'at least ' if below else ''}{constant:.3g} |")
    return "\n".join(lines)


def quality_of(power: Any, error: Any, share: float) -> float:
    """The quality constant for which a noise share is the lowest that covers an error."""
    low, high = 1e-6, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if covering_share(power, error, middle) > share else (low, middle)
    return high


def plot(summary: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share wholly right against speed-up; a colour a transition, filled to the end and hollow left early."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    whole = next(row for row in summary if row["variant"] == ONE_STAGE)
    axes.axhline(100 * whole["right"], color="0.6", linestyle=":", label="one stage")
    for number, space in enumerate(TRANSITIONS):
        for ending, fill in (("to the end", f"C{number}"), ("left early", "none")):
            rows = [
                row for row in summary if row["variant"].startswith(f"{space}, ") and row["variant"].endswith(ending)
            ]
            rows.sort(key=lambda row: row["speedup"])
            if rows:
                x, y = ([row["speedup"] for row in rows], [100 * row["right"] for row in rows])
                axes.plot(x, y, color=f"C{number}", marker="o", mfc=fill, lw=0.8, label=f"{space}, {ending}")
            for row in rows:
                level = row["variant"].split(", ")[1]
                axes.annotate(
                    level, (row["speedup"], 100 * row["right"]), fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
    axes.set(xlabel="speed-up over one stage", ylabel="wholly right, %", title="Demo model, 128 to 256 px")
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", type=Path, required=True, help="the exported demo model, with the transitions wanted"
    )
    parser.add_argument("--prompts", type=int, default=500, help="how many held-out prompts")
    parser.add_argument("--only", default="", help="transitions, with commas between; all that the bundle has")
    parser.add_argument("--sigmas", default=",".join(map(str, SIGMAS)), help="noise levels, with commas between")
    parser.add_argument("--schedules", type=Path, help="JSON of further variants: options of a run, by name")
    parser.add_argument("--levels", type=Path, help="what lssgen calibrate sigma wrote of the bundle: fix its constant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--outdir", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    args.outdir.mkdir(parents=True, exist_ok=True)
    with lssgen.load(args.bundle, engine="onnxruntime", threads=args.threads) as pipeline:
        manifest = pipeline.bundle.manifest
        spaces = args.only.split(",") if args.only else [s for s in TRANSITIONS if f"transition_{s}" in manifest.graphs]
        table = variants(pipeline, spaces, [float(sigma) for sigma in args.sigmas.split(",")])
        if args.schedules is not None:
            table |= json.loads(args.schedules.read_text())
        rows = list(measure(pipeline, table, held_out_prompts(args.prompts), args.outdir / "transitions.jsonl"))
    summary = summarise(rows, list(table))
    conditions = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": args.threads,
        "precision": manifest.graphs["step"].precision,
        "engine": f"onnxruntime {version('onnxruntime')}, CPU",
        "graph": manifest.graphs["step"].key,
        "covering": manifest.facts.defaults.covering_sigmas,
    }
    (args.outdir / "transitions.json").write_text(
        json.dumps({"conditions": conditions, "variants": summary}, indent=2) + "\n"
    )
    (args.outdir / "transitions.md").write_text(markdown(summary) + "\n")
    plot(summary, args.outdir / "transitions.png")
    print(markdown(summary))
    if args.levels is not None:
        found = optima(summary, read_levels(args.levels))
        (args.outdir / "transitions_optima.md").write_text(found + "\n")
        print(found)


if __name__ == "__main__":
    main()
