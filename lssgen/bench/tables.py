"""Results as text: columns for people, Markdown for pages."""

from collections.abc import Sequence

from lssgen.bench.cases import STAGED
from lssgen.bench.environment import Environment
from lssgen.bench.results import BenchResult, CaseResult
from lssgen.bench.summary import Summary

HEAD = ("case", "p50 ms", "p90", "p99", "img/s", "text", "stages", "step", "trans.", "decode", "gap us", "load",
        "first", "preview", "MiB")  # fmt: skip


def as_table(result: BenchResult, *, markdown: bool = False) -> str:
    """All cases, one a line; then what is to be known of them."""
    rows = [HEAD, *(_row(case) for case in result.cases)]
    lines = markdown_table(rows) if markdown else aligned(rows)
    lines += [f"{case.name}: {said}" for case in result.cases for said in (*_alone(case), *case.complaints)]
    return "\n".join(lines)


def _alone(case: CaseResult) -> list[str]:
    """Where a case that was asked for in stages has one: a size from which none is half."""
    if STAGED not in case.name.split(", ") or len(case.stages) > 1:
        return []
    return [f"its plan has one stage anyway, of {sum(stage.steps for stage in case.stages)} steps"]


def conditions(result: BenchResult) -> str:
    """Where it was measured, in one line."""
    facts, runs = result.environment, [case.request_latency_ms.count for case in result.cases]
    device = facts.machine.get("gpu.name") or facts.machine.get("cpu", "an unknown processor")
    return (
        f"{result.bundle['name']} on {result.engine}, {device}, {facts.machine.get('cores', '?')} cores, "
        f"threads {threads_of(facts)}, load {facts.state.get('load', '?')}, "
        f"{min(runs, default=0)} runs a case, lssgen {facts.software.get('lssgen', '?')}, {facts.written}"
    )


def threads_of(facts: Environment) -> str:
    """Threads of a measurement, in words."""
    threads = facts.backend.get("threads", "?")
    return "all" if threads == "0" else threads


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns below each other; the first column to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as a table in Markdown; the first is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *body]


def _row(case: CaseResult) -> tuple[str, ...]:
    latency = case.request_latency_ms
    gap = case.host_gap_us
    preview = case.time_to_first_preview_ms
    return (
        case.name,
        number(latency.p50),
        _or_dash(latency.p90),
        _or_dash(latency.p99),
        number(case.image_throughput.p50),
        number(case.text_ms.p50),
        " + ".join(number(stage.stage_ms.p50) for stage in case.stages),
        " / ".join(number(stage.step_ms.p50) for stage in case.stages),
        number(case.transition_ms) if len(case.stages) > 1 else "-",
        number(case.decode_ms.p50),
        _gap(gap),
        number(case.load_ms),
        number(case.time_to_first_image_ms),
        _or_dash(preview),
        f"{case.peak_memory_mib:.0f}",
    )


def number(value: float) -> str:
    """A measurement with as many digits as it deserves: three."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _gap(gap: Summary | None) -> str:
    return "-" if gap is None else number(gap.p50)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)
