"""Names of diffusers for those that LoRA files have in the layouts of the original code and of its trainers."""

from collections.abc import Mapping
from typing import Any

import diffusers
from torch import Tensor
from transformers.utils import logging

from lssgen.lora.names import Renaming


def renaming(pipeline: str, config: object) -> Renaming[Tensor]:
    """What diffusers does with the names of the original code, and of those who train with it.

    Args:
        pipeline: Class of the checkpoint's pipeline.
        config: Of its denoiser, with all defaults; a UNet's names depend on it.
    """
    cls = _pipeline_class(pipeline)

    def rename(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        try:
            found = cls.lora_state_dict(dict(tensors), unet_config=config)
        except (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return {}  # names that are in no form that it knows
        return found[0] if isinstance(found, tuple) else found

    return rename


def _pipeline_class(pipeline: str) -> Any:
    """A class of diffusers, which names what is not installed for parts that no LoRA has when it is first imported."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return getattr(diffusers, pipeline)
    finally:
        logging.set_verbosity(level)
