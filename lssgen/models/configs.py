"""JSON files of a checkpoint folder in the diffusers layout."""

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, cast

from lssgen.errors import ModelError
from lssgen.jsons import JsonError, NoFileError, decode_json, read_bytes

INDEX = "model_index.json"

PIPELINE = "model_index"
"""Name of that file among the configurations of a checkpoint's components."""

NAME = re.compile(r"\w{1,100}")
"""Names of parts: each is that of a folder."""

COUNTS = frozenset((
    "addition_time_embed_dim", "attention_head_dim", "block_out_channels", "caption_channels", "cross_attention_dim",
    "d_ff", "d_kv", "d_model", "hidden_size", "in_channels", "intermediate_size", "joint_attention_dim",
    "latent_channels", "layers_per_block", "max_position_embeddings", "norm_num_groups", "num_attention_heads",
    "num_heads", "num_hidden_layers", "out_channels", "patch_size", "pooled_projection_dim", "projection_dim",
    "sample_size", "transformer_layers_per_block", "vocab_size",
))  # fmt: skip
"""Fields of the libraries' configurations that count something: a number, or lists of them, one a block."""

MOST = 2**20
"""Above any count in a published model; the largest is T5's and Gemma's vocabulary, 256,000."""

NUMBERS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Fields that normalise latents: a number, or a list of them, one a channel."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the few lines that git keeps in the place of a large file, until Git LFS fetches it."""


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """See that a file is itself, and not what git has in its place.

    Raises:
        ModelError: It is a pointer of Git LFS.
    """
    if beginning.startswith(POINTER):
        raise ModelError(
            f"{path} is a pointer of Git LFS and not the file itself, which was never fetched: run `git lfs pull` in "
            "that folder, or fetch the checkpoint with `hf download`"
        )


def read_json(path: Path) -> Mapping[str, Any]:
    """One JSON object.

    Raises:
        ModelError: The file is missing, or holds no JSON object.
    """
    try:
        data = read_bytes(path)
        refuse_pointer(path, data)
        return decode_json(data, dict[str, Any])
    except NoFileError as error:
        raise ModelError(f"{path} {error}; is the folder a diffusers checkpoint?") from error
    except JsonError as error:
        raise ModelError(f"{path} {error}; download the checkpoint again") from error


def read_component(path: Path) -> Mapping[str, Any]:
    """A component's config.json. What the libraries would stumble over later is refused now, by the field's name.

    Raises:
        ModelError: The file is missing, or holds no JSON object; or a field counts what cannot be counted.
    """
    config = read_json(path)
    for name in (*COUNTS, *NUMBERS):
        value = config.get(name)
        if value is None and (name not in config or name != "block_out_channels"):
            continue
        if not _fits(value, name):
            fits = f"whole numbers from 1 to {MOST:,}" if name in COUNTS else "finite numbers"
            raise ModelError(
                f"{path}: {name} is {str(value)[:60]}, and only {fits} fit, or lists of them; fetch it again"
            )
    return config


def _fits(value: object, name: str) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_fits(one, name) for one in cast("list[object]", value))
    if isinstance(value, bool):
        return False
    if name in COUNTS:
        return isinstance(value, int) and 1 <= value <= MOST
    return isinstance(value, int | float) and isfinite(value)


def configs_from_folder(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Configuration of every component that a checkpoint's model_index.json names and that has one.

    Returns:
        By component; schedulers from scheduler_config.json, all others from config.json. model_index.json itself is
        there by the name `PIPELINE`.

    Raises:
        ModelError: No model_index.json, or a file that is not JSON.
    """
    index = read_json(folder / INDEX)
    configs: dict[str, Mapping[str, Any]] = {PIPELINE: index}
    for name in index:
        if not NAME.fullmatch(name):
            raise ModelError(
                f"{folder / INDEX} names a part {name[:40]!r}, which is not the name of a folder; download the "
                "checkpoint again"
            )
        if name.startswith("_"):
            continue
        file = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        if file.is_file():
            configs[name] = read_json(file) if name == "scheduler" else read_component(file)
    return configs
