"""One field of noise for a whole picture: the same for any number of stages."""

from pathlib import Path

import numpy as np
import pytest
from fakes import fake_pipeline
from scipy.fft import dctn, idctn

from lssgen.errors import PlanError
from lssgen.ports import Array
from lssgen.runtime import Pipeline
from lssgen.runtime.noise import NoiseStream, StageNoise, restricted
from lssgen.testing import Ask


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (2, 3), (5, 7)])
def test_a_smaller_stage_has_the_lowest_frequencies_of_the_field(size: tuple[int, int]) -> None:
    """Against SciPy's orthonormal transform."""
    field = np.random.default_rng(0).standard_normal((3, 8, 12)).astype(np.float32)
    wanted = idctn(dctn(field, axes=(1, 2), norm="ortho")[:, : size[0], : size[1]], axes=(1, 2), norm="ortho")
    # The result is rounded to float32.
    np.testing.assert_allclose(restricted(field, *size), wanted, atol=1e-6)


def test_of_white_noise_it_is_white_noise_of_the_same_deviation() -> None:
    """Rows of orthonormal matrices: the covariance of their combinations is the identity."""
    columns = np.eye(64, dtype=np.float32).reshape(64, 8, 8)
    combinations = restricted(columns, 4, 4).reshape(64, 16)
    np.testing.assert_allclose(combinations.T @ combinations, np.eye(16), atol=1e-6)


def test_the_last_stage_begins_with_the_field_itself_whatever_the_number_of_stages() -> None:
    whole = (4, 16, 16)
    one = StageNoise(NoiseStream(7), "picture", whole).draw(whole)
    several = StageNoise(NoiseStream(7), "picture", whole)
    small, middle, large = (several.draw((4, side, side)) for side in (4, 8, 16))
    assert (large == one).all()
    np.testing.assert_allclose(restricted(middle, 4, 4), small, atol=1e-6)


def test_by_default_every_stage_draws_its_own_in_the_published_order() -> None:
    noise, stream = StageNoise(NoiseStream(7), "stage", (4, 16, 16)), NoiseStream(7)
    for side in (8, 16):
        assert (noise.draw((4, side, side)) == stream.draw((4, side, side))).all()


def test_a_kept_state_gets_noise_of_its_own_in_the_frequencies_that_it_has_and_the_fields_beyond() -> None:
    stream, other = NoiseStream(7), NoiseStream(7)
    noise = StageNoise(stream, "picture", (1, 8, 8))
    noise.draw((1, 4, 4))
    made = dctn(noise.draw((1, 8, 8), below=(4, 4))[0], norm="ortho")
    field, fresh = dctn(other.draw((1, 8, 8))[0], norm="ortho"), dctn(other.draw((1, 4, 4))[0], norm="ortho")
    np.testing.assert_allclose(made[:4, :4], fresh, atol=1e-5)
    np.testing.assert_allclose(made[4:], field[4:], atol=1e-5)
    np.testing.assert_allclose(made[:4, 4:], field[:4, 4:], atol=1e-5)


class Knows:
    """A network that knows the picture of every size, and keeps what it is given.

    Of flow matching, whose output is the noise minus the picture: from x = (1 - s) z + s e, (x - z) / s.
    """

    def __init__(self, picture: Array) -> None:
        self.pictures = {picture.shape[-1]: picture, picture.shape[-1] // 2: restricted(picture, 4, 4) / 2}
        self.given: list[Array] = []

    def __call__(self, ask: Ask) -> Array:
        self.given.append(ask.u.copy())
        return (ask.u - self.pictures[ask.u.shape[-1]]) * (1000 / ask.label)


def given_to_stages(pipeline: Pipeline, knows: Knows, **options: object) -> tuple[list[Array], Array]:
    """What the first step of every stage is given, and the end."""
    knows.given.clear()
    result = pipeline("a red circle", seed=3, guidance_scale=1.0, num_inference_steps=8, **options)  # pyright: ignore
    counts = [len(stage.steps) for stage in result.request.plan.stages]
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return [knows.given[start][0] for start in starts], result.pictures[0].latent


@pytest.fixture
def knows() -> Knows:
    return Knows(np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32))


@pytest.mark.parametrize("hand_off", ["own", 0.2, 0.0])
def test_a_network_that_knows_the_picture_gets_a_kept_state_of_exactly_the_level_that_it_starts_at(
    tmp_path: Path, knows: Knows, hand_off: float | str
) -> None:
    """x = (1 - s) z + s e at the new stage: z is the whole picture's lowest part, and e has unit deviation there."""
    pipeline = fake_pipeline(tmp_path / "bundle", network=knows)
    options = {"scaling_space": "dct", "hand_off": hand_off, "noise_field": "picture", "start_sigma": 0.75}
    starts, end = given_to_stages(pipeline, knows, **options)
    plan = pipeline.plan(num_inference_steps=8, guidance_scale=1.0, scaling_space="dct", hand_off=hand_off)
    stage, left = plan.stages[1], plan.stages[0].levels[-1]
    stream = NoiseStream(3)
    field, fresh = stream.draw((4, 8, 8)), stream.draw((4, 4, 4))
    low = stage.gain * left[1] * restricted(field, 4, 4) + stage.low_noise * fresh
    picture, noise = (dctn(x, axes=(1, 2), norm="ortho") for x in (knows.pictures[8][0], field))
    wanted = np.zeros((4, 8, 8))
    wanted[:, :4, :4] = stage.image * picture[:, :4, :4] + dctn(low, axes=(1, 2), norm="ortho")
    beyond = np.ones((8, 8), bool)
    beyond[:4, :4] = False
    wanted[:, beyond] = stage.noise * noise[:, beyond]
    # Some ten steps in float32, on numbers up to 4.
    np.testing.assert_allclose(dctn(starts[1], axes=(1, 2), norm="ortho"), wanted, atol=2e-4)
    np.testing.assert_allclose(end, knows.pictures[8][0], atol=2e-4)


@pytest.mark.parametrize("space", ["latent", "dct"])
def test_a_stage_that_is_left_early_hands_on_what_the_network_knows(tmp_path: Path, knows: Knows, space: str) -> None:
    """The clean latent, though half of the noise was still there; or the picture beside the noise."""
    shown: list[Array] = []
    pipeline = fake_pipeline(tmp_path / "bundle", network=knows)
    pipeline(
        "a red circle",
        guidance_scale=1.0,
        num_inference_steps=8,
        scaling_space=space,  # pyright: ignore[reportArgumentType]
        hand_off="auto",
        on_preview=lambda preview: shown.append(np.asarray(preview.images[0])),
    )
    wanted = np.clip(knows.pictures[4][0, :3] * 64 + 128, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    # Decoded to whole levels, of which rounding may give one more or less.
    np.testing.assert_allclose(shown[0][::8, ::8].astype(int), wanted, atol=1)


def test_with_one_field_a_seed_means_the_same_noise_in_one_stage_and_in_two(tmp_path: Path, knows: Knows) -> None:
    pipeline = fake_pipeline(tmp_path / "bundle", network=knows)
    one, _ = given_to_stages(pipeline, knows, start_sigma=1.0, noise_field="picture")
    two, _ = given_to_stages(pipeline, knows, scaling_space="latent", noise_field="picture")
    np.testing.assert_allclose(restricted(one[0], 4, 4), two[0], atol=1e-6)
    plan = pipeline.plan(num_inference_steps=8, guidance_scale=1.0, scaling_space="latent")
    enlarged = (two[1] - plan.stages[1].noise * one[0]) / plan.stages[1].image
    # What is left is the enlarged picture, which the same run with other noise has, too.
    own, _ = given_to_stages(pipeline, knows, scaling_space="latent")
    stream = NoiseStream(3)
    stream.draw((4, 4, 4))
    other = (own[1] - plan.stages[1].noise * stream.draw((4, 8, 8))) / plan.stages[1].image
    np.testing.assert_allclose(enlarged, other, atol=1e-4)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="noise_field is 'sky'; it must be one of stage, picture"):
        fake_pipeline(tmp_path / "bundle").plan(noise_field="sky")  # pyright: ignore[reportArgumentType]
