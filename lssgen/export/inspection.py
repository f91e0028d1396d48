"""Everything about a checkpoint that can be seen before anything is made of it."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn

from lssgen.errors import ModelError
from lssgen.export.checkpoint import Checkpoint
from lssgen.models.configs import read_json
from lssgen.models.families import Family

WITHOUT_T5 = "--no-t5 does without it"


def see_classes(checkpoint: Checkpoint, family: Family, parts: Iterable[str]) -> None:
    """See that parts are of classes that the family's graphs are made of, and that their weights are plain numbers.

    Args:
        checkpoint: Where they are.
        family: Says what fits.
        parts: Those that are asked for; optional ones may be left out of the checkpoint.

    Raises:
        ModelError: Names the part, its class, and what would fit.
    """
    for part in parts:
        if part in family.optional and not checkpoint.has(part):
            continue
        try:
            checkpoint.path(part)
        except ModelError as error:
            raise _optional(error, family, part) from error
        known, came = family.classes[part], checkpoint.class_of(part)
        if came not in known:
            remedy = ", or give another with --vae" if part == "vae" else ""
            raise ModelError(
                f"{part} of {checkpoint.path(part)} is a {came}; {family.title} is exported with "
                f"{' or '.join(known)}: choose a checkpoint that has one{remedy}"
            )
        _see_unquantised(checkpoint, part)


def _see_unquantised(checkpoint: Checkpoint, part: str) -> None:
    file = checkpoint.path(part) / "config.json"
    written = read_json(file) if file.is_file() else {}
    settings = written.get("quantization_config") or written.get("compression_config")
    if settings:
        said: Mapping[str, Any] = cast("Mapping[str, Any]", settings) if isinstance(settings, dict) else {}
        method = said.get("quant_method") or said.get("quant_type") or "a method that it does not name"
        raise ModelError(
            f"{part} of {checkpoint.folder} is quantised ({method}); give the folder that it was made from, in fp32, "
            "fp16 or bf16"
        )


def see_weights(checkpoint: Checkpoint, family: Family, parts: Iterable[str]) -> None:
    """See that the weights of parts are there and fit their configurations; of the files, headers are read.

    Raises:
        ModelError: As for `Weights.fit`.
    """
    for part in parts:
        module = nn.ModuleDict({part: checkpoint.skeleton(part, torch.float32)})
        try:
            checkpoint.weights((part,)).fit(module)
        except ModelError as error:
            raise _optional(error, family, part) from error


def _optional(error: ModelError, family: Family, part: str) -> ModelError:
    """The error, with the way out that a part has which is not needed."""
    return ModelError(f"{error}; {WITHOUT_T5}") if part in family.optional else error
