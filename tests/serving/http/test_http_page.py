"""What docs/serving_http.md promises: numbers are those that were measured, refusals those of the server."""

import json
import re
from math import prod
from pathlib import Path

from lssgen.bundle import read_manifest
from lssgen.demo import SHIPPED
from lssgen.serving.http.fields import Common
from lssgen.serving.http.orders import FIDELITY, VARIATION_STRENGTH
from lssgen.serving.http.reception import GRACE_S
from lssgen.serving.http.refusals import KINDS
from lssgen.serving.http.running import HEAD_SECONDS
from lssgen.serving.ray.choices import RayChoices

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving_http.md").read_text()
LOAD = json.loads((ROOT / "benchmarks" / "results" / "serving_load.json").read_text())
STARVED = json.loads((ROOT / "benchmarks" / "results" / "serving_load_starved.json").read_text())
OVERHEAD = json.loads((ROOT / "benchmarks" / "results" / "serving_http_overhead.json").read_text())


def test_every_refusal_is_in_the_table_with_its_status_and_advice() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| [45]\d\d", line)]
    told = {code: row for row in rows for code in re.findall(r"`([a-z_]+)`", row)}
    for code, kind in KINDS.items():
        if code == "body_lost":  # of Ray alone, and explained there
            continue
        assert str(kind.status) in told[code].split("|")[1], code
        if kind.retry is not None:
            assert f"`x-should-retry: {str(kind.retry).lower()}`" in told[code], code


def test_every_word_of_a_run_is_named() -> None:
    words = set(Common.__struct_fields__) - {"model"}
    assert {word for word in words if f"`{word}`" not in PAGE} == set()


def test_numbers_are_those_of_the_code() -> None:
    assert f"`high` is `strength` {FIDELITY['high']}, `low` {FIDELITY['low']}" in PAGE
    assert FIDELITY["low"] == VARIATION_STRENGTH
    assert f"{GRACE_S:.0f} seconds after its client went" in " ".join(PAGE.split())
    assert f"closed after {HEAD_SECONDS:.0f} seconds" in " ".join(PAGE.split())
    for name in ("target_pixels", "max_queued"):
        assert name in RayChoices.__dataclass_fields__
        assert f"`{name}`" in PAGE


def test_a_prompt_of_the_demo_model_takes_what_the_page_says() -> None:
    outputs = read_manifest(SHIPPED).graphs["text"].outputs
    size = sum(4 * prod(axis for axis in port.shape if isinstance(axis, int)) for port in outputs)
    assert f"each {size / 1e3:.0f} kB of encoded text" in PAGE


def test_measurements_are_those_of_the_scripts() -> None:
    assert "\n".join(LOAD["table"]) in PAGE
    assert LOAD["wrong"] == []
    answered = sum(int(row.split("|")[2]) for row in STARVED["table"][2:])
    assert f"{STARVED['requests'] - answered} of the 10,000" in PAGE
    assert f"{STARVED['memory_mb']['100%']} MB at the end" in PAGE
    both = [OVERHEAD[way]["microseconds_per_step"]["median"] for way in ("python_only", "http")]
    assert f"{both[1]:.0f} microseconds" in PAGE
    assert f"{both[0]:.0f} with requests from Python" in PAGE
