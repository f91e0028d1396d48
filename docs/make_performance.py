"""Write docs/performance_numbers.md: every number that the performance page speaks of, from the results of its scripts.

python docs/make_performance.py
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance_numbers.md"
RESULTS = ROOT / "benchmarks" / "results"

HEAD = """# Performance in numbers

This page is written by `docs/make_performance.py` from the results that scripts in `benchmarks/` have left. How they
are measured, what they are worth and what is not measured is told in [performance.md](performance.md).
"""

PEERS = ("torch bf16 compiled", "optimum-onnx", "optimum-intel", "openvino-genai", "stable-diffusion.cpp")
"""Single-stage runs that compute what the checkpoint says; one that leaves steps out is in the table only."""

STEPS = ("torch fp32", "torch bf16", "torch bf16 compiled", "onnxruntime", "openvino fp32", "openvino")


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        *goals(),
        *steps(),
        *runs(),
        *peers(),
        *score(),
        *costs(),
        *trials(),
        *profile(),
        *cold(),
        *alarms(),
        *host(),
    ]
    return "\n".join(parts).rstrip() + "\n"


def goals() -> Iterator[str]:
    """What was aimed at, and what was found."""
    rows = [("goal", "found"), *goal_of_steps(), *goal_of_runs(), *goals_of_the_host()]
    yield "## Goals\n"
    yield table(rows)
    yield "Numbers are those of the tables below, with their conditions.\n"


def goal_of_steps() -> Iterator[tuple[str, str]]:
    found = read("cpu_goals").get("steps", {})
    for least, what, key in (
        (4.5, "torch eager fp32", "times_as_fast"), (1.6, "the best of torch's bf16", "times_as_fast_as_best_bf16"),
    ):  # fmt: skip
        ratios = {f"{name} px": one[clock_of(one)][key]["openvino"] for name, one in found.items()}
        yield f"a step at least {least} times as fast as {what}", met(ratios, least)


def goal_of_runs() -> Iterator[tuple[str, str]]:
    """The slowest of the peers' rows decides: that of the fastest peer."""
    sizes = {name: one for name, one in read("cpu_peers").items() if name != "score"}
    for way in ("staged", "staged, sigma 0.5"):
        ratios: dict[str, float] = {}
        for name, one in sizes.items():
            peers = {run: row for run, row in one["rows"].items() if run in PEERS}
            best = min(peers, key=lambda run: peers[run]["is_outrun_by"][f"lssgen auto, {way}"])
            ratios[f"{name} px, {best}"] = peers[best]["is_outrun_by"][f"lssgen auto, {way}"]
        yield f"a whole run, {way}, at least twice as fast as the best single-stage peer", met(ratios, 2.0)


def goals_of_the_host() -> Iterator[tuple[str, str]]:
    score, host, cold = read("cpu_goals")["score"], read("cpu_host")["microseconds_a_step"], read("cpu_cold")
    yield "quality within 1 point", f"{score['differ']} of {score['prompts']} verdicts differ between `auto` and fp32"
    worst = max(host.values())
    yield "at most 50 microseconds a step on the host, batches up to 8", f"{worst:.0f} at most: {verdict(worst <= 50)}"
    yield "`import lssgen.runtime` at most 1.5 times `import numpy`", goal_of_imports(cold)
    for engine in ("onnxruntime", "auto"):
        whole = cold["median_s"][f"picture, {engine}"]["whole"]
        said = f"{whole:.2f} s on `{engine}`: {verdict(whole < 1)}"
        yield "first picture of the demo model from a cold process below 1.0 s", said
    for model, one in read("cpu_costs").items():
        off = [abs(row["predicted"] / row["measured"] - 1) for row in one["rows"]]
        within = sum(each <= 0.15 for each in off)
        said = f"{within} of {len(off)} for `{model}`, the worst off by {max(off):.0%}: {verdict(max(off) <= 0.15)}"
        yield "predicted ratios within 15 %", said


def goal_of_imports(cold: Mapping[str, Any]) -> str:
    """The module by itself imports nothing before it is asked: what its names bring is what a user waits for."""
    medians = cold["median_s"]
    ratio = medians["picture, onnxruntime"]["import"] / medians["import numpy"]["whole"]
    return (
        f"{ratio:.2f} times with what paints, `from lssgen.runtime import load`: {verdict(ratio <= 1.5)}; the module "
        f"by itself, which imports nothing before it is asked for a name, takes {cold['import_over_numpy']:.2f} times"
    )


def met(ratios: Mapping[str, float], least: float) -> str:
    """Every ratio with its verdict, in a sentence."""
    return "; ".join(f"{name}: {ratio:.2f}, {verdict(ratio >= least)}" for name, ratio in ratios.items())


def verdict(good: bool) -> str:
    return "met" if good else "**missed**"


def steps() -> Iterator[str]:
    """Steps as multiples of torch."""
    found = read("cpu_goals").get("steps", {})
    if not found:
        return
    yield "## One step of two guidance branches\n"
    yield (
        "As multiples of torch eager in fp32; more is faster. The last column is `openvino` against the better of "
        "torch's two bf16.\n"
    )
    rows = [("model", "px", *STEPS, "against bf16")]
    for name, one in found.items():
        model, size = name.rsplit(" ", 1)
        times = one[clock_of(one)]
        numbers = (f"{times['times_as_fast'][each]:.2f}" for each in STEPS)
        rows.append((model, size, *numbers, f"{times['times_as_fast_as_best_bf16']['openvino']:.2f}"))
    yield table(rows)
    yield from every_where(found, "goals")


def runs() -> Iterator[str]:
    """Whole runs."""
    found = read("cpu_goals").get("runs", {})
    if not found:
        return
    yield "## Whole runs\n"
    yield "Prompt to picture, as multiples of a size's first row; PSNR of final latents against ONNX Runtime's.\n"
    rows = [("model", "px", "steps", "way", "times as fast", "median s", "PSNR dB")]
    for name, one in found.items():
        model, size = name.rsplit(" ", 1)
        times = one[clock_of(one)]
        for way, ratio in times["times_as_fast"].items():
            close = one["latents"].get(way.removeprefix("lssgen auto, ")) if way.startswith("lssgen auto") else None
            rows.append((model, size, str(one["steps"]), way, f"{ratio:.2f}", f"{times['median_ms'][way] / 1e3:.2f}",
                         f"{close:.1f}" if close else "-"))  # fmt: skip
    yield table(rows)
    yield from every_where(found, "goals")


def score() -> Iterator[str]:
    """The demo model's score."""
    found = read("cpu_goals").get("score")
    if not found:
        return
    yield "## Quality of the demo model\n"
    rows = [("engine", "wholly right", "95 % interval")]
    rows += [judged(name, found[name]) for name in ("onnxruntime", "auto")]
    yield table(rows)
    yield (
        f"{found['prompts']} held-out prompts, same seeds; {found['differ']} verdicts differ. PSNR "
        "of the pictures: median "
        f"{found['median_psnr_db']:.1f} dB, least {found['least_psnr_db']:.1f} dB.\n"
    )


def peers() -> Iterator[str]:
    """Single-stage runs of others."""
    found = read("cpu_peers")
    sizes = {name: one for name, one in found.items() if name != "score"}
    if not sizes:
        return
    yield "## Other single-stage runs of the same checkpoint\n"
    yield "Seconds of a picture, and how many times as fast lssgen's `auto` is, by way.\n"
    ways = ("one stage", "staged", "staged, sigma 0.5")
    rows = [("model", "px", "steps", "run", "seconds", *ways)]
    for name, one in sizes.items():
        model, size = name.rsplit(" ", 1)
        clock = clock_of(one)
        for run, row in one["rows"].items():
            ratios = (row["is_outrun_by"].get(f"lssgen auto, {way}") for way in ways)
            rows.append((model, size, str(one["steps"]), run, f"{row[f'{clock}_s']:.2f}",
                         *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)))  # fmt: skip
    yield table(rows)
    refused = {peer: words for one in sizes.values() for peer, words in one["cannot_load"].items()}
    yield from (f"`{peer}` could not be run: {words}\n" for peer, words in refused.items())
    yield from every_where(sizes, "peers")
    if "score" in found:
        yield "How many held-out prompts the demo model paints wholly right there:\n"
        rows = [("run", "wholly right", "95 % interval")]
        rows += [judged(run, row) for run, row in found["score"]["rows"].items()]
        yield table(rows)
        prompts = next(iter(found["score"]["rows"].values()))["prompts"]
        yield f"{prompts} prompts. {where(found['score'])} Printed by `benchmarks/cpu/peers.py --score`.\n"


def costs() -> Iterator[str]:
    """Predicted and measured ratios."""
    found = read("cpu_costs")
    if not found:
        return
    yield "## How cost grows, predicted and measured\n"
    for model, one in found.items():
        base = ", ".join(f"{name} {value}" for name, value in one["base"].items())
        yield (
            f"`{model}`: times of the run with {base}, in two stages. `arithmetic` counts FLOPs; `plan` adds the fixed "
            f"costs, which were measured at {', '.join(map(str, one['measured_at']))} px in one stage.\n"
        )
        rows = [("engine", "what", "value", "arithmetic", "plan", "measured", "plan is off by")]
        for row in one["rows"]:
            off = row["predicted"] / row["measured"] - 1
            numbers = (f"{row[name]:.2f}" for name in ("by_arithmetic", "predicted", "measured"))
            rows.append((row["engine"], row["axis"], row["value"], *numbers, f"{off:+.0%}"))
        yield table(rows)
        yield f"{where(one['conditions'])} Printed by `benchmarks/cpu/costs.py`.\n"


def trials() -> Iterator[str]:
    """Settings, one at a time."""
    for name, one in read("cpu_trials").items():
        yield f"## Settings: {name} px\n"
        rows = [("setting", "times as fast", "error against float32")]
        rows += [(key, f"{row['times_as_fast']:.2f}", f"{row['error']:.1e}") for key, row in one["rows"].items()]
        yield table(rows)
        notes = "; ".join(f"{key}: {said}" for key, said in one["notes"].items())
        yield f"{where(one)} {f'Notes: {notes}. ' if notes else ''}Printed by `benchmarks/cpu/trials.py`.\n"


def profile() -> Iterator[str]:
    """Where a step's time goes."""
    found = read("cpu_profile")
    if not found:
        return
    yield "## Where a step's time goes\n"
    rows = [("model", "px", "format", "matrix products", "attention and the rest", "moving data", "GFLOP/s")]
    for name, one in found.items():
        model, size, form = name.rsplit(" ", 2)
        shares = (f"{one['shares'][kind]:.0%}" for kind in ("products", "rest", "moves"))
        rows.append((model, size, form, *shares, f"{one['gflops']:.0f}"))
    yield table(rows)
    yield f"{where(next(iter(found.values()))['conditions'])} Printed by `benchmarks/cpu/profile.py`.\n"


def cold() -> Iterator[str]:
    """Cold starts."""
    found = read("cpu_cold")
    if not found:
        return
    yield "## From a cold process\n"
    rows = [("what", "import s", "open s", "text s", "stages s", "decode s", "whole s", "processor s")]
    for kind, parts in found["median_s"].items():
        if kind.startswith("picture"):
            names = ("import", "open", "text", "stages", "decode", "whole", "processor")
            rows.append((kind, *(f"{parts[name]:.2f}" for name in names)))
    yield table(rows)
    rows = [("import", "seconds")]
    rows += [(kind.removeprefix("import "), f"{parts['whole']:.3f}")
             for kind, parts in found["median_s"].items() if kind.startswith("import")]  # fmt: skip
    yield table(rows)
    yield (
        f"Medians of {found['repeats']} processes. {where(found['conditions'])} Printed by `benchmarks/cpu/cold.py`.\n"
    )


def alarms() -> Iterator[str]:
    """The gate against itself."""
    path = RESULTS / "false_alarms.jsonl"
    if not path.exists():
        return
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    verdicts = Counter(line["verdict"] for line in lines)
    loads = sorted(float(line["load"]) for line in lines)
    rounds = sorted(line["rounds"] for line in lines)
    yield "## The gate against itself\n"
    rows = [("verdict", "comparisons"), *((name, str(verdicts.get(name, 0))) for name in ("PASS", "UNDECIDED", "FAIL"))]
    yield table(rows)
    yield (
        f"{len(lines)} comparisons of one side with itself, {rounds[0]} to {rounds[-1]} rounds each, margin "
        f"{lines[0]['margin']:.0%}, {lines[0]['written'][:10]}; the machine's load was "
        f"{loads[0]:.0f} to {loads[-1]:.0f} on "
        "two cores. A FAIL would be a false alarm. Printed by `benchmarks/false_alarms.py`.\n"
    )


def host() -> Iterator[str]:
    """Host time of a step."""
    found = read("cpu_host")
    if not found:
        return
    yield "## The host's own time\n"
    rows = [("batch", "microseconds a step")]
    rows += [(batch, f"{value:.1f}") for batch, value in found["microseconds_a_step"].items()]
    yield table(rows)
    yield (
        f"On engines that do nothing, the demo model's run. {where(found['conditions'])} Printed by "
        "`benchmarks/cpu/host.py`.\n"
    )


def read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def clock_of(one: Mapping[str, Any]) -> str:
    """What counts: with one thread the processor's time, with several the clock."""
    return "cpu" if one["conditions"]["threads"] == 1 else "wall"


def judged(name: str, row: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = row["interval"]
    return name, f"{row['share']:.1%}", f"{low:.1%} to {high:.1%}"


def every_where(found: Mapping[str, Mapping[str, Any]], script: str) -> Iterator[str]:
    """Conditions, once for those that have the same."""
    names: dict[str, list[str]] = {}
    for name, one in found.items():
        names.setdefault(where(one["conditions"]), []).append(f"{name} px")
    for said, several in names.items():
        yield f"{', '.join(several) + ': ' if len(names) > 1 else ''}{said} Printed by `benchmarks/cpu/{script}.py`.\n"


def where(said: Mapping[str, Any]) -> str:
    """Conditions in a sentence."""
    software = said["software"]
    versions = ", ".join(f"{name} {software[name]}" for name in ("onnxruntime", "openvino") if name in software)
    counted = "by the processor's time" if said["threads"] == 1 else "by the clock"
    return (
        f"Conditions: {said['date'][:10]}; {said['machine']['cpu']}, {said['machine']['cores']} "
        f"cores, load {float(said['load_now']):.0f}, threads {said['threads'] or 'all'}, {counted}; python "
        f"{software['python']}, {versions}."
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
