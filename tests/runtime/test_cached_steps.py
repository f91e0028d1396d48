"""Steps that take no evaluation, carried out: calls, progress, previews, batches, inpainting and the exact gate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lssgen
from lssgen.bench.exact import baseline_of_bundle
from lssgen.bench.idle import IdleBackend
from lssgen.bench.meter import Meter, MeteredBackend
from lssgen.bundle import read_bundle
from lssgen.errors import PlanError
from lssgen.runtime import Options, Pipeline, Preview, Progress

RUN = Options(num_inference_steps=12, scaling_space="latent", seed=3)
CACHED = Options(**RUN, cached_steps="medium")


def picture(size: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    return Image.fromarray(pixels)


def test_calls_progress_previews_and_times_are_those_of_the_plan(toy: Path) -> None:
    meter, seen, shown = Meter(timed=False), list[Progress](), list[Preview]()
    with Pipeline(read_bundle(toy), MeteredBackend(IdleBackend(), meter)) as pipeline:
        plan = pipeline.plan(**CACHED)
        assert sum(stage.cached_steps for stage in plan.stages) > 0
        result = pipeline("a", on_step=seen.append, on_preview=shown.append, **CACHED)
    assert [meter.tally.calls[f"step {px}x{px}"] for px in (32, 64)] == [len(stage.steps) for stage in plan.stages]
    assert len(seen) == seen[-1].total == plan.evaluations
    assert [len(stage.steps) for stage in result.times[0].stages] == [len(stage.steps) for stage in plan.stages]
    assert len(shown) == 1


def test_the_exact_gate_counts_the_calls_that_are_left(toy: Path) -> None:
    bundle = read_bundle(toy)
    plain, cached = (baseline_of_bundle(bundle, options, prompt="a red").exact for options in (RUN, CACHED))
    for number, px in enumerate((32, 64), start=1):
        calls = cached[f"stage {number} network calls"]
        assert calls == cached[f"first run: calls of step {px}x{px}"]
        assert int(calls) < int(plain[f"stage {number} network calls"])
        assert int(cached[f"stage {number} MFLOP"]) <= int(plain[f"stage {number} MFLOP"])


@pytest.mark.parametrize("more", [{}, {"solver": "euler"}, {"strength": 0.8}, {"guidance_scale": 1.0}])
def test_a_picture_depends_neither_on_its_batch_nor_on_its_company(toy: Path, more: dict[str, Any]) -> None:
    options = Options(**{**CACHED, **more})
    start = picture() if "strength" in more else None
    with lssgen.load(toy, threads=1) as pipeline:
        alone = [pipeline("a", init_image=start, **{**options, "seed": 3 + n}).latents[0] for n in range(3)]
        together = pipeline("a", init_image=start, num_images=3, batch=3, **options).latents
    np.testing.assert_array_equal(np.stack(alone), together)


def test_what_inpainting_keeps_stays_where_steps_are_cached(toy: Path) -> None:
    """The kept half is put back after every evaluation, at the level that the cached steps behind it lead to."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    with lssgen.load(toy, threads=1) as pipeline:
        results = [
            pipeline("a", init_image=picture(), mask_image=mask, **{**CACHED, "cached_steps": text}).latents[0]
            for text in ("off", "medium")
        ]
    np.testing.assert_array_equal(results[0][:, :, 4:], results[1][:, :, 4:])
    assert not np.array_equal(results[0][:, :, :4], results[1][:, :, :4])


def test_a_graph_that_carries_too_few_estimates_is_said_before_anything_runs(toy: Path) -> None:
    """DPM++ 2M looks back one step; where that was cached, two: those that it was made of."""
    with (
        lssgen.load(toy, threads=1) as pipeline,
        pytest.raises(PlanError, match="blends 3 estimates, but the exported step graph keeps 2"),
    ):
        pipeline("a", solver="dpm++2m", **CACHED)
