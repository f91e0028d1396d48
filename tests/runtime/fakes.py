"""Pipelines on networks without weights."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from toy_bundle import FACTS

from lssgen.plan.facts import ModelFacts
from lssgen.ports import Array
from lssgen.runtime import Pipeline
from lssgen.testing import (
    Ask,
    FakeBackend,
    FakeModel,
    Network,
    decode_network,
    encode_network,
    fake_bundle,
    keeping_network,
    step_network,
    text_network,
    transition_network,
)

SPACES: Mapping[str, Network] = {
    "transition_latent": transition_network(),
    "transition_pixel": transition_network(posterior=True),
    "transition_dct": keeping_network(),
}


def denoise(ask: Ask) -> Array:
    """A network whose output depends on all that it is given."""
    text = ask.extra["text"][:, :, None, None]
    return 0.9 * np.tanh(0.6 * ask.u) + 0.05 * np.cos(0.01 * ask.label) + 0.05 * text


def fake_pipeline(
    folder: Path,
    *,
    network: Callable[[Ask], Array] = denoise,
    facts: ModelFacts = FACTS,
    step: Network | None = None,
    **model: Any,
) -> Pipeline:
    """64 px in two stages of 4 x 4 and 8 x 8 cells, or what `facts` say; `model` goes to `FakeModel`."""
    networks = {
        "text": text_network(),
        "step": step or step_network(network),
        "decode": decode_network(),
        "encode": encode_network(),
        **SPACES,
    }
    return Pipeline(fake_bundle(folder, FakeModel(facts=facts, networks=networks, **model)), FakeBackend(networks))


def with_scheduler(name: str, config: Mapping[str, object], start: Any) -> ModelFacts:
    """The toy's facts with another scheduler."""
    return replace(FACTS, scheduler=name, scheduler_config=config, start=start)
