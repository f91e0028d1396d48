"""From stage to stage: where one is left, how noisy the next one starts, and what of a noisy state is kept."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from rows import DEFAULTS, flow_facts

from lssgen.errors import PlanError
from lssgen.models.aliases import ALIASES
from lssgen.plan import ModelFacts, Plan, PlanOptions, make_plan, predicted_speedup, solver_names
from lssgen.plan.facts import SPACES, ScalingSpace
from lssgen.plan.transitions import TRANSITIONS, covered_share, kept_weights

PUBLISHED = [alias.name for alias in ALIASES.values() if not alias.local]
MEASURED = replace(DEFAULTS, covering_sigmas={"latent": 0.4})
CLEAN = [space for space in SPACES if TRANSITIONS[space].takes == "clean"]


def planned(facts: ModelFacts, **words: object) -> Plan:
    """In two stages at least."""
    small = {"min_resolution": min(facts.defaults.height, facts.defaults.width) // 2}
    return make_plan(facts, PlanOptions.from_defaults(facts.defaults, **{**small, **words}))


def test_every_space_has_a_record() -> None:
    assert tuple(TRANSITIONS) == SPACES


@pytest.mark.parametrize(
    ("start", "left"), [(0.85, 0.739), (0.75, 0.6), (2 / 3, 0.5), (0.6, 0.4286), (0.5, 1 / 3), (1, 1), (0, 0)]
)
def test_a_start_covers_what_is_left_out_below_half_its_noise_ratio(start: float, left: float) -> None:
    assert covered_share(start) == pytest.approx(left, abs=5e-4)
    assert 2 * covered_share(start) / (1 + covered_share(start)) == pytest.approx(start)


@pytest.mark.parametrize("s", [0.1, 0.5, 0.6, 0.9])
def test_a_kept_state_is_scaled_as_speed_scales_it_and_needs_no_more_noise_at_the_level_it_fits(s: float) -> None:
    """SPEED: kappa = 2 / (1 + s), and the next level is s' = 2 s / (1 + s)."""
    start = 2 * s / (1 + s)
    gain, low_noise = kept_weights((1 - s, s), (1 - start, start))
    assert gain == pytest.approx(2 / (1 + s))
    assert low_noise == pytest.approx(0, abs=1e-7)  # the square root of float64's last bit


def test_a_kept_clean_latent_is_doubled_and_noised_everywhere() -> None:
    """A picture's orthonormal coefficients double with its sides."""
    assert kept_weights((1.0, 0.0), (0.25, 0.75)) == (0.5, 0.75)


def test_a_state_that_is_too_noisy_for_a_start_is_refused() -> None:
    with pytest.raises(PlanError, match=r"brings 1\.1\d* of noise to a start with 0\.75: its schedule goes no lower"):
        kept_weights((0.3, 0.7), (0.25, 0.75))


@pytest.mark.parametrize("space", CLEAN)
@pytest.mark.parametrize("name", PUBLISHED)
def test_unless_it_is_asked_for_a_stage_is_painted_to_its_end(name: str, space: ScalingSpace) -> None:
    """The published behaviour, step by step: the small stage is what the same stage is alone."""
    facts = ALIASES[name].facts()
    plan = planned(facts, scaling_space=space, start_sigma=0.75)
    assert plan == planned(facts, scaling_space=space, start_sigma=0.75, hand_off=0)
    first = plan.stages[0]
    assert len(first.steps) >= first.schedule_steps
    assert (first.gain, first.low_noise) == (first.image, 0.0)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_stage_that_is_left_early_evaluates_nothing_that_is_covered(name: str, space: ScalingSpace) -> None:
    facts = ALIASES[name].facts()
    asked = {"scaling_space": space, "start_sigma": 0.75, "start_rule": "sigma"}
    plan, whole = planned(facts, **asked, hand_off="auto"), planned(facts, **asked, hand_off=0)
    data = facts.scheduler_config.get("sigma_data", 0.5) if facts.scheduler.startswith("EDM") else 1.0
    leave = covered_share(_share(plan.stages[1].image, plan.stages[1].noise, data))
    kept = len(plan.stages[0].steps)
    assert plan.stages[0].steps[: kept - 1] == whole.stages[0].steps[: kept - 1]
    levels = [(whole.stages[0].image, whole.stages[0].noise), *whole.stages[0].levels]
    assert all(_share(*level, data) > leave for level in levels[1:kept])
    if kept < len(whole.stages[0].steps):
        assert _share(*levels[kept], data) <= leave + 1e-9


def _share(image: float, noise: float, data: float) -> float:
    return noise / (image * data + noise)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_kept_state_holds_and_what_is_added_make_the_level_of_the_start(name: str) -> None:
    facts = ALIASES[name].facts()
    for solver in solver_names(facts):
        plan = planned(facts, scaling_space="dct", solver=solver, num_inference_steps=20)
        before, after = plan.stages[:2]
        image, noise = before.levels[-1]
        assert after.gain * image / 2 == pytest.approx(after.image)  # a coefficient is half as large before
        assert (after.gain * noise) ** 2 + after.low_noise**2 == pytest.approx(after.noise**2)
        assert plan.keeps_state(0)
        assert not plan.keeps_state(len(plan.stages) - 1)


@pytest.mark.parametrize("name", ["flux-dev", "sd3", "sdxl", "sd15", "playground", "cogview4"])
def test_a_stage_left_early_ends_with_what_the_network_sees_whatever_the_solver(name: str) -> None:
    """For a network that knows the picture z, the last row gives z from a z + s e, exactly."""
    facts, rng = ALIASES[name].facts(), np.random.default_rng(0)
    for solver in solver_names(facts):
        stage = planned(facts, solver=solver, hand_off=0.5, start_sigma=0.75, num_inference_steps=20).stages[0]
        last = stage.steps[-1]
        assert (last.keep, last.blend, last.noise, last.next_sigma) == (0.0, (1.0,), None, 0.0)
        x, z = rng.standard_normal((2, 5))
        output = (z - last.h_x * x) / last.h_f  # what such a network says
        assert last.h_x * x + last.h_f * output == pytest.approx(z)
        assert stage.levels[-1] == (1.0, 0.0)


def test_flux_is_predicted_to_be_1_72_times_as_fast_instead_of_1_55() -> None:
    facts = ALIASES["flux-dev"].facts()
    ratios = [predicted_speedup(planned(facts, hand_off=leave), facts) for leave in (0, "auto")]
    assert ratios == pytest.approx([1.55, 1.72], abs=5e-3)


def test_selflift_puts_a_little_less_noise_in_than_its_solver_starts_at() -> None:
    facts = flow_facts("even")
    own, other = (planned(facts, scaling_space=space).stages[1] for space in ("selflift", "latent"))
    assert own.noise == pytest.approx(0.97 * other.noise)
    assert own.image == pytest.approx(1 - own.noise)
    assert own.steps == other.steps


def test_super_resolution_starts_at_little_noise_unless_it_is_told_otherwise() -> None:
    facts = ALIASES["sdxl"].facts()
    options = PlanOptions.from_defaults(facts.defaults, scaling_space="sr")
    assert (options.start_sigma, options.start_rule) == (0.12, "sigma")
    assert PlanOptions.from_defaults(facts.defaults, scaling_space="sr", start_sigma=0.3).start_sigma == 0.3
    stage = planned(facts, scaling_space="sr").stages[1]
    assert _share(stage.image, stage.noise, 1.0) == pytest.approx(0.12, abs=0.02)  # the next level of 50 steps


def test_auto_is_the_level_that_was_measured_as_a_share_of_noise() -> None:
    facts = flow_facts("even", MEASURED)
    options = PlanOptions.from_defaults(facts.defaults, scaling_space="latent", start_sigma="auto")
    assert (options.start_sigma, options.start_rule) == (0.4, "sigma")


def test_where_nothing_needs_covering_the_last_step_is_left() -> None:
    facts = flow_facts("even", replace(DEFAULTS, covering_sigmas={"latent": 0.0}))
    assert len(planned(facts, scaling_space="latent", start_sigma="auto").stages[1].steps) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"start_sigma": "auto"}, "nothing was measured for transitions by 'resnet', only for latent: run"),
        ({"start_sigma": "high"}, "start_sigma is 'high'; it must be a number above 0 and at most 1, or auto"),
        ({"hand_off": "high"}, "hand_off is 'high'; it must be one of own, auto"),
        ({"hand_off": 1.0}, "hand_off is 1.0; it must be 0 or more and below 1, or auto"),
        ({"hand_off": -0.1}, "it must be 0 or more and below 1"),
        ({"hand_off": float("nan")}, "it must be 0 or more and below 1"),
        ({"hand_off": True}, "it must be 0 or more and below 1"),
        ({"start_sigma": 1.5}, "must lie above 0 and be at most 1"),
        ({"scaling_space": "dct", "hand_off": 0.65}, r"starts at a noise share of 0.7\d+ holds a state of 0.6\d* at"),
    ],
)
def test_impossible_levels_are_refused_in_words(words: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        planned(flow_facts("even", MEASURED), **words)


def test_a_stage_that_starts_below_where_it_is_to_be_left_is_refused() -> None:
    with pytest.raises(PlanError, match=r"starts at a noise share of 0\.6\d* and would paint nothing: lower it"):
        planned(flow_facts("even"), hand_off=0.8, sigmas=(0.5, 0.4, 0.3), start_sigma=0.3)


def test_more_noise_may_be_asked_for_than_a_kept_state_needs() -> None:
    """As RALU has it: what the state holds less, is put into its own frequencies."""
    stage = planned(flow_facts("even"), scaling_space="dct", hand_off=0.3).stages[1]
    assert 0 < stage.low_noise < stage.noise
    assert stage.low_noise == pytest.approx(sqrt(stage.noise**2 - (stage.gain * 0.3) ** 2), abs=0.05)
