"""Everything about a checkpoint that can be seen before anything is made of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lssgen.errors import ModelError
from lssgen.export.checkpoint import Checkpoint
from lssgen.models.configs import read_json
from lssgen.models.families import Family

WITHOUT_T5 = "--no-t5 does without it"

LIBRARIES = ("diffusers", "transformers")
"""Libraries that a checkpoint's parts may be of; their names are imported as they stand in its model_index.json."""


def see_pipeline(folder: Path, index: Mapping[str, Any]) -> None:
    """See that a checkpoint's pipeline is a class of diffusers, and not one in a file of the checkpoint.

    Raises:
        ModelError: It is in a file, which diffusers runs under `trust_remote_code`.
    """
    said = index.get("_class_name")
    if isinstance(said, list):
        raise ModelError(f"{folder}: the pipeline is of the class {_dotted(said)}, {_CODE}")  # pyright: ignore[reportUnknownArgumentType]


def see_no_code(folder: Path, index: Mapping[str, Any], parts: Iterable[str]) -> None:
    """See that parts of a checkpoint do not ask for code of its own, which the libraries run under `trust_remote_code`.

    Args:
        folder: The checkpoint, as far as it is here.
        index: Its model_index.json.
        parts: Those that are read; others, such as a safety checker, may be what they like.

    Raises:
        ModelError: Names the part, and the class in a file that it asks for: by its entry in model_index.json, or by
            the map of classes in its configuration (`auto_map`).
    """
    for part in parts:
        entry = index.get(part)
        if isinstance(entry, list) and entry and entry[0] not in (*LIBRARIES, None):
            raise ModelError(f"{folder}: {part} is of the class {_dotted(entry)}, {_CODE}")  # pyright: ignore[reportUnknownArgumentType]
        files = [folder / part / "config.json"]
        # A tokenizer in the library's own form is read from there, whatever class its code has.
        if not (folder / part / "tokenizer.json").is_file():
            files.append(folder / part / "tokenizer_config.json")
        for file in files:
            if file.is_file() and (mapped := read_json(file).get("auto_map")):
                classes = cast("Mapping[str, object]", mapped).values() if isinstance(mapped, dict) else (mapped,)
                shown = ", ".join(str(one) for one in classes)[:120]
                raise ModelError(f"{file} maps its classes to {shown} (auto_map), {_CODE}")


def _dotted(names: list[object]) -> str:
    return ".".join(str(name) for name in names)[:120]


_CODE = (
    "which is code of the checkpoint's own (trust_remote_code) and not of diffusers or transformers: lssgen runs none; "
    "give a version of the checkpoint in classes of these libraries"
)


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
