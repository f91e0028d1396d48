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

STEPS = ("torch fp32", "torch bf16", "torch bf16 compiled", "onnxruntime", "openvino fp32", "openvino")


def page() -> str:
    """The whole page."""
    parts = [HEAD, *steps(), *runs(), *score(), *peers(), *costs(), *trials(), *cold(), *alarms(), *host()]
    return "\n".join(parts).rstrip() + "\n"


def steps() -> Iterator[str]:
    """Steps as multiples of torch."""
    found = read("cpu_goals")
    if "steps" not in found:
        return
    yield "## One step of two guidance branches\n"
    yield (
        "As multiples of torch eager in fp32, by the processor's time; more is faster. The last column "
        "is `openvino` against the better of torch's two bf16.\n"
    )
    rows = [("model", "px", *STEPS, "against bf16")]
    for name, one in found["steps"].items():
        model, size = name.rsplit(" ", 1)
        cpu = one["cpu"]
        numbers = (f"{cpu['times_as_fast'][each]:.2f}" for each in STEPS)
        rows.append((model, size, *numbers, f"{cpu['times_as_fast_as_best_bf16']['openvino']:.2f}"))
    yield table(rows)
    yield f"{where(found['conditions'])} Printed by `benchmarks/cpu/goals.py`.\n"


def runs() -> Iterator[str]:
    """Whole runs."""
    found = read("cpu_goals")
    if "runs" not in found:
        return
    yield "## Whole runs\n"
    yield (
        "Prompt to picture; multiples of torch eager in fp32 in one stage, by the processor's time and by the clock.\n"
    )
    rows = [("model", "px", "way", "processor", "clock", "median s")]
    for name, one in found["runs"].items():
        model, size = name.rsplit(" ", 1)
        for way, ratio in one["cpu"]["times_as_fast"].items():
            clock, ms = one["wall"]["times_as_fast"][way], one["cpu"]["median_ms"][way]
            rows.append((model, size, way, f"{ratio:.2f}", f"{clock:.2f}", f"{ms / 1e3:.2f}"))
    yield table(rows)
    for name, one in found["runs"].items():
        said = ", ".join(f"{value:.1f} dB in {way}" for way, value in one["latents"].items())
        yield f"Final latents of `auto` against ONNX Runtime in fp32, {name} px: PSNR {said}.\n"


def score() -> Iterator[str]:
    """The demo model's score."""
    found = read("cpu_goals").get("score")
    if not found:
        return
    yield "## Quality of the demo model\n"
    rows = [("engine", "wholly right", "95 % interval")]
    for name in ("onnxruntime", "auto"):
        low, high = found[name]["interval"]
        rows.append((name, f"{found[name]['share']:.1%}", f"{low:.1%} to {high:.1%}"))
    yield table(rows)
    yield (
        f"{found['prompts']} held-out prompts, same seeds; {found['differ']} verdicts differ. PSNR "
        "of the pictures: median "
        f"{found['median_psnr_db']:.1f} dB, least {found['least_psnr_db']:.1f} dB.\n"
    )


def peers() -> Iterator[str]:
    """Single-stage runs of others."""
    found = read("cpu_peers")
    if not found:
        return
    yield "## Other runs of the demo model\n"
    rows = [("run", "processor s", "staged `auto` is times as fast")]
    rows += [
        (name, f"{row['cpu_s']:.2f}", f"{row['staged_auto_is_times_as_fast']:.2f}")
        for name, row in found["rows"].items()
    ]
    yield table(rows)
    yield (
        f"{found['size']} px, {found['steps']} steps, {found['rounds']} rounds. {where(found['conditions'])} "
        "Printed by `benchmarks/cpu/peers.py`.\n"
    )


def costs() -> Iterator[str]:
    """Predicted and measured ratios."""
    found = read("cpu_costs")
    if not found:
        return
    yield "## Predicted and measured\n"
    yield (
        "How many times as fast stages are as one stage, by arithmetic alone, by the costs that were "
        "measured at other sizes, and measured.\n"
    )
    rows = [("engine", "px", "steps", "arithmetic", "costs", "measured", "off by")]
    for one in found["rows"]:
        off = one["by_costs"] / one["measured"] - 1
        rows.append((one["engine"], str(one["size"]), str(one["steps"]), f"{one['by_arithmetic']:.2f}",
                     f"{one['by_costs']:.2f}", f"{one['measured']:.2f}", f"{off:+.0%}"))  # fmt: skip
    yield table(rows)
    yield f"{where(found['conditions'])} Printed by `benchmarks/cpu/costs.py`.\n"


def trials() -> Iterator[str]:
    """Settings, one at a time."""
    found = read("cpu_trials")
    for name, one in found.items():
        yield f"## Settings: {name} px\n"
        rows = [("setting", "times as fast", "error against float32")]
        rows += [(key, f"{row['times_as_fast']:.2f}", f"{row['error']:.1e}") for key, row in one["rows"].items()]
        yield table(rows)
        yield f"{where(one)} Notes of the trials: {one['notes']}. Printed by `benchmarks/cpu/trials.py`.\n"


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


def where(said: Mapping[str, Any]) -> str:
    """Conditions in a sentence."""
    software = said["software"]
    versions = ", ".join(f"{name} {software[name]}" for name in ("onnxruntime", "openvino") if name in software)
    return (
        f"Conditions: {said['date'][:10]}; {said['machine']['cpu']}, {said['machine']['cores']} "
        "cores shared with other work "
        f"(load {float(said['load_now']):.0f}), threads {said['threads'] or 'all'}; python "
        f"{software['python']}, {versions}."
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
