"""A checkpoint on disk: a diffusers folder, given by path, by hub id or by alias."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lssgen.errors import ModelError
from lssgen.export.lora import Lora, read_lora, renaming
from lssgen.export.weights import Delta, Weights, open_weights
from lssgen.export.writer import weightless
from lssgen.models.configs import INDEX, read_json
from lssgen.models.nets.latent_upsampler import CONFIG_FILE, LatentUpSampler, read_config

SETTINGS = (".json", ".txt", ".model")
"""How the names of a part's small files end: configuration and vocabulary."""

ATTENTION = {"T5EncoderModel": "eager"}
"""Attention implementations other than sdpa: T5's sdpa cannot be exported (its bias breaks the decomposition)."""


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers pipeline folder. Weights are found when they are asked for, and read later still.

    Attributes:
        folder: Holds model_index.json and a folder for each part.
        extra: Parts that lie elsewhere, by name (the latent upsampler).
        deltas: Changes of its weights, in the order in which they are merged.
    """

    folder: Path
    extra: Mapping[str, Path] = field(default_factory=dict[str, Path])
    deltas: tuple[Mapping[str, Delta], ...] = ()

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """model_index.json."""
        return read_json(self.folder / INDEX)

    @property
    def pipeline(self) -> str:
        """Class of the diffusers pipeline, "StableDiffusion3Pipeline"."""
        return str(self.index.get("_class_name", ""))

    def has(self, name: str) -> bool:
        """Whether the part belongs to this checkpoint; parts may be left out on purpose, as [null, null]."""
        return name in self.extra or self._class(name) != (None, None)

    def path(self, name: str) -> Path:
        """Folder of a part.

        Raises:
            ModelError: There is none.
        """
        if name in self.extra:
            return self.extra[name]
        folder = self.folder / name
        if not self.has(name):
            parts = ", ".join(key for key in self.index if not key.startswith("_") and self.has(key))
            raise ModelError(f"{self.folder} has no {name}; its {INDEX} names {parts}")
        if not folder.is_dir():
            raise ModelError(f"{self.folder} is incomplete: {INDEX} names {name}, but there is no such folder")
        return folder

    def config(self, name: str) -> Mapping[str, Any]:
        """A part's config.json, or scheduler_config.json.

        Raises:
            ModelError: No such part, or its file is missing or damaged.
        """
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        return read_json(self.path(name) / file)

    def weights(self, names: tuple[str, ...]) -> Weights:
        """The tensors of some parts, changed by `deltas`; files are looked through once.

        Raises:
            ModelError: As for `open_weights` and `Weights.with_delta`.
        """
        if names not in self._opened:
            weights = open_weights({name: self.path(name) for name in names})
            for deltas in self.deltas:
                changes = {key: delta for key, delta in deltas.items() if key.split(".")[0] in names}
                weights = weights.with_delta(changes)
            self._opened[names] = weights
        return self._opened[names]

    def with_part(self, name: str, folder: Path) -> "Checkpoint":
        """The same checkpoint with a part from elsewhere."""
        return replace(self, extra={**self.extra, name: folder})

    def with_loras(self, loras: Sequence[Lora], parts: Iterable[str], network: str) -> "Checkpoint":
        """The same checkpoint with LoRAs merged into the weights of some parts.

        Raises:
            ModelError: A LoRA is for another model.
        """
        if not loras:
            return self
        names = list(self.weights(tuple(parts)))
        rename = renaming(self.pipeline, self.skeleton(network, torch.float32).config)
        return replace(self, deltas=tuple(read_lora(lora, names, network, rename) for lora in loras))

    def sha256(self, name: str) -> Mapping[str, str]:
        """Hash of each of a part's weight files, by file name; reads them once."""
        if name not in self._hashes:
            self._hashes[name] = {path.name: sha for path, sha in self.weights((name,)).sha256.items()}
        return self._hashes[name]

    def deltas_sha256(self, names: tuple[str, ...]) -> str:
        """Hash of everything that is merged into some parts."""
        digest = hashlib.sha256()
        for deltas in self.deltas:
            for key in sorted(key for key in deltas if key.split(".")[0] in names):
                delta = deltas[key]
                digest.update(f"{key} {delta.scale!r}".encode())
                for factor in (delta.down, delta.up):
                    digest.update(factor.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _opened(self) -> dict[tuple[str, ...], Weights]:
        return {}

    @cached_property
    def _hashes(self) -> dict[str, Mapping[str, str]]:
        return {}

    def skeleton(self, name: str, dtype: torch.dtype) -> nn.Module:
        """A part as its library builds it, without weights, in `dtype` but for what the library keeps in float32.

        Raises:
            ModelError: The installed library has no such class, or the configuration does not fit it.
        """
        if name == "upsampler":
            with weightless(dtype):
                return LatentUpSampler(read_config(self.path(name) / CONFIG_FILE)).eval().requires_grad_(False)
        library, class_name = self._class(name)
        config = dict(self.config(name))
        try:
            cls = getattr(import_module(str(library)), str(class_name))
        except (ImportError, AttributeError) as error:
            raise ModelError(
                f"{name} of {self.folder} is a {library}.{class_name}, which the installed {library} does not have; "
                f"upgrade it (pip install -U {library})"
            ) from error
        try:
            with weightless(dtype):
                if library == "transformers":
                    settings = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
                    parsed = cls.config_class.from_dict(settings)
                    module = cls._from_config(parsed, attn_implementation=ATTENTION.get(str(class_name), "sdpa"))
                else:
                    module = cls.from_config(config)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{name} of {self.folder} cannot be built from its config.json: {error}") from error
        if dtype is torch.float16:
            keep_float32(module, tuple(getattr(module, "_keep_in_fp32_modules", None) or ()))
        return cast(nn.Module, module).eval().requires_grad_(False)

    def class_of(self, name: str) -> str:
        """Class of a part, "CLIPTokenizer"."""
        return str(self._class(name)[1])

    def _class(self, name: str) -> tuple[str | None, str | None]:
        entry = self.index.get(name)
        if not isinstance(entry, list | tuple):
            return None, None
        pair = cast("list[str | None]", entry)
        return (pair[0], pair[1]) if len(pair) == 2 else (None, None)


@dataclass(frozen=True)
class Parts:
    """A checkpoint's parts at one precision, as recipes ask for them (`lssgen.models.nets.recipe.Components`)."""

    checkpoint: Checkpoint
    dtype: torch.dtype

    @property
    def index(self) -> Mapping[str, Any]:
        return self.checkpoint.index

    def has(self, name: str) -> bool:
        return self.checkpoint.has(name)

    def config(self, name: str) -> Mapping[str, Any]:
        return self.checkpoint.config(name)

    def module(self, name: str) -> nn.Module:
        return self.checkpoint.skeleton(name, self.dtype)


def keep_float32(module: nn.Module, names: tuple[str, ...]) -> None:
    """Back to float32 with the layers that overflow in float16, by the last part of their names (T5's "wo")."""
    for path, layer in module.named_modules():
        if path.rpartition(".")[2] in names:
            layer.to(torch.float32)
