"""The networks that a latent upsampler may be, by the class that its config.json names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lssgen.models.nets.latent_upsampler import LatentUpSampler
from lssgen.models.nets.local_upsampler import LocalLatentUpSampler
from lssgen.models.nets.upsampler import CONFIG_FILE, Upsampler, not_an_upsampler, read_raw_config

AnyUpsampler = Upsampler[Any]

NETWORKS: Mapping[str, type[AnyUpsampler]] = {kind.__name__: kind for kind in (LatentUpSampler, LocalLatentUpSampler)}


def load_upsampler(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> AnyUpsampler:
    """Load a checkpoint folder of any of the networks, ready for inference.

    Raises:
        UpsamplerError: As `Upsampler.from_pretrained`.
    """
    return network_of(Path(folder) / CONFIG_FILE).from_pretrained(folder, dtype=dtype)


def upsampler_of(config: Path) -> AnyUpsampler:
    """The network that a config.json describes, with the weights that torch draws.

    Raises:
        UpsamplerError: It is missing, not JSON, of a class that is none of `NETWORKS`, or makes no sense.
    """
    kind = network_of(config)
    return kind(kind.config_from(config))


def network_of(config: Path) -> type[AnyUpsampler]:
    """The class that a config.json names.

    Raises:
        UpsamplerError: It is missing, not JSON, or names none of `NETWORKS`.
    """
    raw = read_raw_config(config)
    name: object = raw.get("_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        raise not_an_upsampler(config, raw, " or ".join(NETWORKS))
    return NETWORKS[name]
