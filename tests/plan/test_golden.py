"""Numbers of the published LSSGen pipelines (arXiv 2507.16154, diffusers 0.33)."""

import numpy as np
import pytest
from rows import diffusion_facts, flow_facts, sigmas

from lssgen.models.aliases import ALIASES
from lssgen.plan import ModelFacts, Plan, PlanOptions, make_plan


def plan_for(facts: ModelFacts, **given: object) -> Plan:
    return make_plan(facts, PlanOptions.from_defaults(facts.defaults, **given))


def single(facts: ModelFacts, size: int, steps: int, **given: object) -> list[float]:
    """Noise levels of a run in one stage."""
    given = {
        "height": size,
        "width": size,
        "num_inference_steps": steps,
        "min_resolution": size,
        "shorten": False,
    } | given
    return sigmas(plan_for(facts, **given).stages[0])


@pytest.mark.parametrize(
    ("grid", "size", "steps", "first", "last"),
    [
        ("even", 512, 25, (1, 0.9782904, 0.9557376), (0.1403547, 0.0725573, 0)),
        ("even", 1024, 50, (1, 0.9935795, 0.9869786), (0.1162888, 0.0605503, 0)),
        ("range", 1024, 20, (1, 0.9818746, 0.9623857), (0.1497872, 0.0089286, 0)),
        ("labels", 512, 25, (1, 0.9755601, 0.9502075), (0.0712555, 0.0017487, 0)),
    ],
)
def test_flow_levels_are_the_published_ones(
    grid: str, size: int, steps: int, first: tuple[float, ...], last: tuple[float, ...]
) -> None:
    levels = single(flow_facts(grid), size, steps)
    assert levels[:3] == pytest.approx(first, abs=6e-8)
    assert levels[-3:] == pytest.approx(last, abs=6e-8)


@pytest.mark.parametrize(
    ("alias", "given", "cut", "sigma"),
    [
        ("flux-dev", {"num_inference_steps": 50}, 25, 0.7595109),
        ("flux-dev", {"num_inference_steps": 28}, 14, 0.7595109),
        ("flux-dev", {"num_inference_steps": 50, "start_sigma": 0.667}, 30, 0.6780),
        ("flux-dev", {"num_inference_steps": 50, "start_sigma": 0.5}, 37, 0.5260),
        ("flux-dev", {"num_inference_steps": 50, "start_sigma": 0.3}, 44, 0.3010),
        ("flux-schnell", {"num_inference_steps": 4}, 1, 0.75),
        ("sd3", {"num_inference_steps": 40}, 19, 0.7605586),
        ("sd3", {"num_inference_steps": 28}, 13, 0.7647),
        ("sd3", {"num_inference_steps": 50}, 24, 0.7587),
        ("cogview4", {"num_inference_steps": 50}, 12, 0.9092172),
        ("cogview4", {"num_inference_steps": 50, "start_rule": "sigma"}, 25, 0.7574),
        ("sdxl", {"num_inference_steps": 50, "min_resolution": 512}, 13, 3.6306546),
        ("playground", {"num_inference_steps": 50, "min_resolution": 512}, 13, 15.78735),
    ],
)
def test_the_last_stage_starts_where_the_published_one_does(
    alias: str, given: dict[str, object], cut: int, sigma: float
) -> None:
    stage = plan_for(ALIASES[alias].facts(), **given).stages[-1]
    assert stage.schedule_steps - len(stage.steps) == cut
    assert stage.steps[0].sigma == pytest.approx(sigma, rel=1e-4)


def test_cogview4_is_noised_to_its_label_and_integrated_from_its_sigma() -> None:
    facts = ALIASES["cogview4"].facts()
    for given, noise in (({}, 0.755), ({"injection": "sigma"}, 0.9092172)):
        stage = plan_for(facts, **given).stages[-1]
        assert (stage.noise, stage.image) == pytest.approx((noise, 1 - noise), abs=6e-8)
        assert stage.steps[0].label == 755
    large = plan_for(facts, height=2048, width=2048).stages[-1]
    assert (large.noise, large.steps[0].sigma) == pytest.approx((0.755, 0.9506), abs=5e-5)


def test_cogview4_takes_half_as_many_steps_where_its_sigma_is_the_threshold() -> None:
    stage = plan_for(ALIASES["cogview4"].facts(), start_rule="sigma").stages[-1]
    assert (stage.schedule_steps, len(stage.steps)) == (50, 25)
    assert stage.noise == pytest.approx(stage.steps[0].sigma)
    assert stage.noise >= 0.75


def test_cogview4_labels_are_whole_and_unshifted() -> None:
    for size, steps, labels in ((512, 25, (1000, 958, 916, 875)), (1024, 50, (1000, 979, 959, 938))):
        stage = plan_for(
            flow_facts("labels"), height=size, width=size, num_inference_steps=steps, min_resolution=size
        ).stages[0]
        assert tuple(step.label for step in stage.steps)[:4] == labels
        assert stage.steps[-1].label == 1


def test_sdxl_levels_are_the_published_ones() -> None:
    stage = plan_for(ALIASES["sdxl"].facts()).stages[0]
    assert [sigmas(stage)[i] for i in (0, 1, 13, 49)] == pytest.approx(
        (13.1204157, 11.6760502, 3.6306546, 0.0413145), rel=1e-6
    )
    assert stage.noise == pytest.approx(13.1584692, rel=3e-7)
    assert stage.steps[13].label == 721


def test_playground_levels_are_the_published_ones() -> None:
    stage = plan_for(ALIASES["playground"].facts()).stages[0]
    assert [sigmas(stage)[i] for i in (0, 1, 13, 49)] == pytest.approx((79.99998, 71.50103, 15.78735, 0.002), rel=1e-6)
    assert [stage.steps[i].label for i in (0, 13, 49)] == pytest.approx((1.0955067, 0.6898022, -1.5536520), abs=2e-7)
    assert stage.noise == pytest.approx(80.00625, rel=1e-7)


@pytest.mark.parametrize(("scheduler", "label", "calls"), [("PNDMScheduler", 741, 38), ("DDIMScheduler", 721, 37)])
def test_later_stages_of_sd_start_at_a_share_of_the_steps(scheduler: str, label: int, calls: int) -> None:
    stage = plan_for(diffusion_facts(scheduler, skip_prk_steps=True)).stages[-1]
    assert (stage.steps[0].label, len(stage.steps)) == (label, calls)
    remaining = {721: 0.07051364, 741: 0.06035552}[label]
    assert (stage.image, stage.noise) == pytest.approx((remaining**0.5, (1 - remaining) ** 0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("alias", "given", "calls"),
    [
        ("flux-dev", {}, [25, 25]),
        ("flux-krea", {}, [25, 25]),
        ("flux-schnell", {}, [2, 3]),
        ("sd3", {"num_inference_steps": 40, "shorten": True}, [20, 21]),
        ("sd3.5-medium", {"num_inference_steps": 40, "shorten": True}, [20, 21]),
        ("cogview4", {"shorten": True}, [25, 38]),
        ("sdxl", {}, [50]),
        ("sdxl", {"min_resolution": 512}, [50, 37]),
        ("sd15", {"height": 1024, "width": 1024}, [51, 38]),
        ("sd15", {"height": 1024, "width": 1024, "solver": "ddim"}, [50, 37]),
        ("flux-dev", {"height": 2048, "width": 2048}, [25, 25, 25]),
    ],
)
def test_call_counts_are_the_published_ones(alias: str, given: dict[str, object], calls: list[int]) -> None:
    plan = plan_for(ALIASES[alias].facts(), **given)
    assert [len(stage.steps) for stage in plan.stages] == calls
    assert plan.evaluations == sum(calls)


def test_flux_levels_stop_moving_above_the_tokens_it_knows_unless_asked() -> None:
    facts = ALIASES["flux-dev"].facts()
    large, usual = (single(facts, size, 50) for size in (2048, 1024))
    assert large == usual
    free = single(facts, 2048, 50, token_clamp=False)
    grid = np.linspace(1, 1 / 50, 50)
    mu = 16384 * (1.15 - 0.5) / 3840 + 0.5 - 256 * (1.15 - 0.5) / 3840
    assert free[:-1] == pytest.approx(np.exp(mu) / (np.exp(mu) + 1 / grid - 1), rel=1e-6)


def test_lcm_picks_the_published_timesteps() -> None:
    facts = ALIASES["lcm-sdxl"].facts()
    stage = plan_for(facts).stages[0]
    assert [step.label for step in stage.steps] == [999, 759, 499, 259]
    assert [step.noise is None for step in stage.steps] == [False, False, False, True]
