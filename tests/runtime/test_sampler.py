from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import denoise, fake_pipeline, with_scheduler

from lssgen.errors import NonFiniteError, PromptError
from lssgen.manifest import Feed, Gates, Sizes
from lssgen.plan import SkipLayerGuidance
from lssgen.ports import Array, Port
from lssgen.runtime.noise import NoiseStream
from lssgen.testing import Ask, FakeBackend, step_network

LATENT: Any = {"scaling_space": "latent"}
LCM = with_scheduler("LCMScheduler", {"original_inference_steps": 50}, "fraction")


def told(*values: Any) -> tuple[Port, Feed]:
    """A port called "size" that is told these."""
    return Port("size", "float32", ("branches", "batch", len(values))), Sizes(values=values)


def calls(pipeline: Any) -> list[str]:
    return pipeline.backend.calls


def test_a_run_is_one_call_a_step_and_one_between_stages(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    plan = pipeline("a red circle", **LATENT).plan
    low, high = (["step"] * len(stage.steps) for stage in plan.stages)
    assert calls(pipeline) == ["text", "text", *low, "transition_latent", *high, "decode"]


def test_a_second_run_makes_no_buffers_and_encodes_no_prompt_again(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    backend = pipeline.backend
    assert isinstance(backend, FakeBackend)
    first = pipeline("a red circle", **LATENT).latents
    made = backend.buffers
    second = pipeline("a red circle", **LATENT).latents
    assert backend.buffers == made
    assert calls(pipeline).count("text") == 2
    assert np.array_equal(first, second)


@pytest.mark.parametrize("space", ["latent", "pixel"])
@pytest.mark.parametrize("scheduler", ["flow", "lcm"])
def test_a_picture_depends_on_seed_and_prompt_and_not_on_its_company(
    tmp_path: Path, space: Any, scheduler: str
) -> None:
    pipeline = fake_pipeline(tmp_path, **({"facts": LCM} if scheduler == "lcm" else {}))
    prompts = ["a red circle", "a blue square"]
    many = pipeline(prompts, num_images=3, batch=4, seed=5, scaling_space=space).latents
    for index in range(6):
        alone = pipeline(prompts[index // 3], seed=5 + index, scaling_space=space).latents[0]
        assert np.array_equal(many[index], alone)


def test_a_stage_draws_its_noise_then_the_posterior_then_one_draw_a_step(tmp_path: Path) -> None:
    """With a network that answers 0 and a plan whose numbers are known, the last latent shows what was drawn."""
    seen: list[Array] = []

    def spy(ask: Ask) -> Array:
        seen.append(ask.u.copy())
        return np.zeros_like(ask.u)

    pipeline = fake_pipeline(tmp_path, network=spy, facts=LCM)
    plan = pipeline("a", scaling_space="pixel", guidance_scale=1.0).plan
    stream = NoiseStream(0)
    low, high = plan.stages
    first = stream.draw((4, 4, 4)) * low.noise
    assert seen[0][0] == pytest.approx(first * low.steps[0].c_in, abs=1e-6)
    fresh = [stream.draw((4, 4, 4)) if step.noise is not None else None for step in low.steps]
    assert seen[1][0] == pytest.approx(_moved(first, low.steps[0], fresh[0]), abs=1e-5)
    _, posterior = stream.draw((4, 8, 8)), stream.draw((4, 8, 8))
    fresh_high = [stream.draw((4, 8, 8)) for step in high.steps if step.noise is not None]
    entered, next_seen = seen[len(low.steps)][0], seen[len(low.steps) + 1][0]
    assert next_seen == pytest.approx(_moved(entered, high.steps[0], fresh_high[0]), abs=1e-5)
    assert not np.allclose(posterior, fresh_high[0])


def _moved(x: Array, step: Any, fresh: Array | None) -> Array:
    """A step of a network that answers 0."""
    return step.keep * x + step.blend[0] * step.h_x * x + step.noise * fresh


def test_guidance_is_the_weighted_sum_of_its_branches(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    kwargs = {**LATENT, "start_sigma": 1.0}
    off = pipeline("a", guidance_scale=1.0, **kwargs).latents
    same = pipeline("a", negative_prompt="a", guidance_scale=7.0, **kwargs).latents
    other = pipeline("a", negative_prompt="red", guidance_scale=7.0, **kwargs).latents
    assert same == pytest.approx(off, abs=1e-5)
    assert not np.allclose(other, off, atol=1e-3)


def test_layers_are_left_out_in_the_skip_branch_and_in_no_other(tmp_path: Path) -> None:
    gates: list[tuple[float, ...]] = []

    def spy(ask: Ask) -> Array:
        gates.append(tuple(ask.extra["layer_gates"]))
        return denoise(ask)

    gated = (Port("layer_gates", "float32", ("branches", 3)), Gates(skipped=(1,)))
    pipeline = fake_pipeline(tmp_path, step=step_network(spy, extra=[gated]))
    plan = pipeline("a", skip_layers=SkipLayerGuidance(start=0.0, stop=0.5), **LATENT).plan
    expected = [
        (1.0, 0.0, 1.0) if branch == "skip" else (1.0, 1.0, 1.0)
        for stage in plan.stages
        for step in stage.steps
        for branch, _ in step.guidance
    ]
    assert gates == expected
    assert (1.0, 0.0, 1.0) in gates


def test_every_stage_is_told_its_own_size(tmp_path: Path) -> None:
    seen: list[tuple[float, ...]] = []

    def spy(ask: Ask) -> Array:
        seen.append(tuple(ask.extra["size"][0]))
        return denoise(ask)

    pipeline = fake_pipeline(tmp_path, step=step_network(spy, extra=[told("height_px", "crop_top", "width_px")]))
    pipeline("a", height=64, width=96, guidance_scale=1.0, **LATENT)
    assert sorted(set(seen)) == [(32.0, 0.0, 48.0), (64.0, 0.0, 96.0)]


def test_noise_that_is_given_takes_the_place_of_the_seeds(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    streams = [NoiseStream(seed) for seed in (5, 6, 7)]
    noise = [np.stack([stream.draw((4, side, side)) for stream in streams]) for side in (4, 8)]
    of_seeds = pipeline("a", seed=5, num_images=3, batch=2, **LATENT).latents
    assert np.array_equal(pipeline("a", num_images=3, batch=2, noise=noise, **LATENT).latents, of_seeds)


@pytest.mark.parametrize(
    "noise", [[np.zeros((1, 4, 8, 8))], [np.zeros((1, 4, 4, 4)), np.full((1, 4, 8, 8), np.nan)], [np.zeros(3)]]
)
def test_noise_that_fits_no_run_is_refused(tmp_path: Path, noise: list[Array]) -> None:
    with pytest.raises(PromptError, match=r"takes finite numbers of the shapes \(1, 4, 4, 4\), \(1, 4, 8, 8\)"):
        fake_pipeline(tmp_path).paint("a", noise=noise, **LATENT)


def test_every_stage_is_told_the_sizes_that_the_user_gives(tmp_path: Path) -> None:
    seen: list[tuple[float, ...]] = []

    def spy(ask: Ask) -> Array:
        seen.append(tuple(ask.extra["size"][0]))
        return denoise(ask)

    values = ("original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width")
    pipeline = fake_pipeline(tmp_path, step=step_network(spy, extra=[told(*values)]))
    for given in ({}, {"original_size": (300, 200), "crops_coords_top_left": (7, 9)}, {"target_size": (1, 2)}):
        pipeline("a", height=64, width=96, guidance_scale=1.0, **given, **LATENT)
    own = {(32, 48, 0, 0, 32, 48), (64, 96, 0, 0, 64, 96)}
    original = {(300, 200, 7, 9, 32, 48), (300, 200, 7, 9, 64, 96)}
    assert set(seen) == own | original | {(32, 48, 0, 0, 1, 2), (64, 96, 0, 0, 1, 2)}


@pytest.mark.parametrize(("stage", "step"), [(1, 3), (2, 2)])
def test_a_latent_that_is_not_finite_names_stage_and_step(tmp_path: Path, stage: int, step: int) -> None:
    size = {1: 4, 2: 8}[stage]
    labels: list[float] = []

    def breaks(ask: Ask) -> Array:
        if ask.u.shape[-1] == size and ask.label not in labels:
            labels.append(ask.label)
        here = ask.u.shape[-1] == size and labels.index(ask.label) == step - 1
        return denoise(ask) * (np.nan if here else 1)

    pipeline = fake_pipeline(tmp_path, network=breaks)
    words = rf"stage {stage} of 2 .* after step {step} of .*; a checkpoint whose weights hold such numbers does this"
    with pytest.raises(NonFiniteError, match=words):
        pipeline("a", **LATENT)


def test_a_run_after_a_broken_one_is_whole(tmp_path: Path) -> None:
    broken = [True]

    def network(ask: Ask) -> Array:
        return denoise(ask) * (np.nan if broken[0] else 1)

    pipeline = fake_pipeline(tmp_path, network=network)
    with pytest.raises(NonFiniteError):
        pipeline("a", **LATENT)
    broken[0] = False
    assert np.isfinite(pipeline("a", **LATENT).latents).all()


def test_times_have_an_entry_for_every_step(tmp_path: Path) -> None:
    result = fake_pipeline(tmp_path)("a", **LATENT)
    (times,) = result.times
    assert [len(stage.steps) for stage in times.stages] == [len(stage.steps) for stage in result.plan.stages]
    assert times.text + times.decode + sum(stage.total for stage in times.stages) <= times.total
