"""Which sizes a run asks compiled engines for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lssgen.bundle import Bundle, read_bundle
from lssgen.engines.demand import Demand
from lssgen.runtime.demand import demand_of
from lssgen.runtime.options import request_from_options


@pytest.fixture
def bundle(toy: Path) -> Bundle:
    """For 32 and 64 px."""
    return read_bundle(toy)


def demand(bundle: Bundle, prompts: int = 1, **options: Any) -> Demand:
    request = request_from_options(bundle, {"scaling_space": "latent", **options})  # type: ignore[typeddict-item]
    return demand_of(bundle.manifest, request, prompts=prompts)


def test_the_usual_run_asks_for_the_usual_engines(bundle: Bundle) -> None:
    usual = Demand(graphs=("text", "step", "transition_latent", "decode"))
    assert demand(bundle) == demand(bundle, prompts=3) == usual


def test_only_the_graphs_that_a_run_calls_are_asked_for(bundle: Bundle) -> None:
    assert demand(bundle, start_sigma=1.0).graphs == ("text", "step", "decode")
    request = request_from_options(bundle, {"scaling_space": "latent"})
    started = demand_of(bundle.manifest, request, prompts=1, starts=True)
    assert started.graphs == ("text", "encode", "step", "transition_latent", "decode")


def test_stages_that_are_shown_are_decoded(bundle: Bundle) -> None:
    request = request_from_options(bundle, {"scaling_space": "latent"})
    assert demand_of(bundle.manifest, request, prompts=1, previews=True).previews


@pytest.mark.parametrize(
    ("prompts", "num_images", "batch", "sizes"),
    [(1, 4, 4, (4,)), (1, 6, 4, (2, 4)), (1, 1, 4, (1,)), (3, 2, 4, (2, 4))],
)
def test_every_number_of_pictures_that_is_painted_together_gets_a_profile(
    bundle: Bundle, prompts: int, num_images: int, batch: int, sizes: tuple[int, ...]
) -> None:
    assert demand(bundle, prompts, num_images=num_images, batch=batch).batches == sizes


def test_prompts_of_any_length_may_be_painted_in_any_number(bundle: Bundle) -> None:
    tokens = tuple(replace(one, pad_to="longest") for one in bundle.manifest.tokenizers)
    longest = Bundle(bundle.folder, replace(bundle.manifest, tokenizers=tokens))
    assert demand(longest, prompts=3, batch=4).batches == (1, 2, 3, 4)
    assert demand(longest, prompts=1, num_images=4, batch=4).batches == (4,)


def test_a_run_without_guidance_has_one_branch(bundle: Bundle) -> None:
    assert demand(bundle, guidance_scale=1.0).branches == (1,)


def test_a_run_that_ends_elsewhere_brings_its_own_sizes(bundle: Bundle) -> None:
    assert demand(bundle, height=128, width=128).resolutions == ((32, 32), (64, 64), (128, 128))
    assert demand(bundle, height=32, width=32).resolutions == ((32, 32),)  # usually, pictures end at 64 px
