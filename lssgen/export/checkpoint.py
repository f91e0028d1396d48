"""A checkpoint on disk: a diffusers folder, given by path, by hub id or by alias."""

import hashlib
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lssgen.errors import ModelError
from lssgen.export.changes import Change
from lssgen.export.config import Embedding
from lssgen.export.embeddings import Taught, notes_on, read_embedding, teach
from lssgen.export.lora import read_lora
from lssgen.export.lora_renaming import renaming
from lssgen.export.tokenizers import chat_length, open_tokenizer
from lssgen.export.weights import Weights, open_weights
from lssgen.export.writer import weightless
from lssgen.lora.asked import Lora
from lssgen.lora.names import Target
from lssgen.models.configs import INDEX, read_component, read_json
from lssgen.models.nets.upsampler import CONFIG_FILE
from lssgen.models.nets.upsamplers import upsampler_of

SETTINGS = (".json", ".txt", ".model", ".jinja")
"""Ends of the names of a part's small files: configuration, vocabulary and chat template."""

STATISTICS = ("latents_mean", "latents_std")
"""Fields of a VAE's configuration that normalise latents, in FLUX.2 those of squares of cells."""

ATTENTION = {"T5EncoderModel": "eager"}
"""Attention implementations other than sdpa: T5's sdpa cannot be exported (its bias breaks the decomposition)."""


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers pipeline folder. Weights are found when they are asked for, and read later still.

    Attributes:
        folder: Holds model_index.json and a folder for each part.
        extra: Parts that lie elsewhere, by name (the latent upsampler).
        deltas: Changes of its weights, in the order in which they are merged.
        taught: Words that text encoders have learned, by part.
        notes: Sentences about all of these that the user should read.
    """

    folder: Path
    extra: Mapping[str, Path] = field(default_factory=dict[str, Path])
    deltas: tuple[Mapping[str, Change], ...] = ()
    taught: Mapping[str, Taught] = field(default_factory=dict[str, Taught])
    notes: tuple[str, ...] = ()

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
        """A part's config.json as its library understands it, with every default; or its scheduler_config.json.

        Raises:
            ModelError: No such part, or its file is missing or damaged.
        """
        if name not in self._configs:
            config = self._config(name)
            if name in self.taught:
                # max: some tables have more rows than the tokenizer has words, and new words take those first.
                config = {**config, "vocab_size": max(int(config["vocab_size"]), self.taught[name].end)}
            self._configs[name] = config
        return self._configs[name]

    def _config(self, name: str) -> Mapping[str, Any]:
        if name == "scheduler":
            return read_json(self.path(name) / "scheduler_config.json")
        written = read_component(self.path(name) / "config.json")
        if name == "upsampler":
            return written
        library, _ = self._class(name)
        cls = self._library_class(name)
        try:
            if library == "transformers":
                # From the folder: some hold the configuration of a larger model, with the encoder's inside.
                return cls.config_class.from_pretrained(self.path(name), local_files_only=True).to_dict()
            known, _, _ = cls.extract_init_dict(dict(written))
        except Exception as error:  # the libraries raise whatever a value of theirs makes them meet
            raise ModelError(f"{self.path(name)}/config.json cannot be read as a {cls.__name__}: {error}") from error
        parameters = inspect.signature(cls.__init__).parameters.values()
        defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
        # Of the checkpoint's own, whichever VAE paints: the network learned latents that these normalise.
        statistics = statistics_of(self.folder / name) if name == "vae" else {}
        return {"_class_name": cls.__name__, **defaults, **known, **statistics}

    def weights(self, names: tuple[str, ...]) -> Weights:
        """The tensors of some parts, changed by `deltas`; files are looked through once.

        Raises:
            ModelError: As for `open_weights` and `Weights.with_delta`.
        """
        if names not in self._opened:
            weights = open_weights({name: self.path(name) for name in names})
            # Before the LoRAs' changes, which may be of rows of these tables.
            for part in self.taught.keys() & set(names):
                weights = replace(
                    weights, stored={**weights.stored, **self.taught[part].table_in(part, weights.stored)}
                )
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
        parts = tuple(parts)
        target = Target(
            shapes={name: tensor.shape for name, tensor in self.weights(parts).stored.items()},
            network=network,
            rename=renaming(self.pipeline, self.skeleton(network, torch.float32).config),
            classes={part: self.class_of(part) for part in parts},
        )
        merges = [read_lora(lora, target) for lora in loras]
        return replace(
            self,
            deltas=(*self.deltas, *(changes for merge in merges for changes in merge.changes)),
            notes=(*self.notes, *(note for merge in merges for note in merge.notes)),
        )

    def with_embeddings(self, embeddings: Sequence[Embedding]) -> "Checkpoint":
        """The same checkpoint with words that its CLIP encoders learn; LoRAs come after.

        Raises:
            ModelError: An embedding is for another model, or its word is known already.
        """
        if not embeddings:
            return self
        # With a projection and without. T5 and GLM learn no words here.
        parts = [part for part in self.index if self.class_of(part).startswith("CLIPTextModel")]
        widths = {part: int(self.config(part)["hidden_size"]) for part in parts}
        read = [(embedding, read_embedding(embedding, widths)) for embedding in embeddings]
        taught: dict[str, Taught] = {}
        for part in parts:
            words = [word for _, found in read for word in found.get(part, ())]
            if words:
                name = part.replace("text_encoder", "tokenizer")
                # Of the tokenizer and not of the table: ids are the tokenizer's to give.
                vocabulary = open_tokenizer(self.path(name), self.class_of(name)).get_vocab()
                taught[part] = teach(part, words, vocabulary)
        notes = [note for embedding, found in read for note in notes_on(embedding, found, parts)]
        return replace(self, taught=taught, notes=(*self.notes, *notes))

    def sha256(self, name: str) -> Mapping[str, str]:
        """Hash of each of a part's weight files, by file name; reads them once."""
        if name not in self._hashes:
            self._hashes[name] = {path.name: sha for path, sha in self.weights((name,)).sha256.items()}
        return self._hashes[name]

    def deltas_sha256(self, names: tuple[str, ...]) -> str:
        """Hash of everything that is merged into some parts."""
        digest = hashlib.sha256()
        for part in sorted(self.taught.keys() & set(names)):
            for word in self.taught[part].words:
                # Shapes too, or numbers that are cut up otherwise would have one hash.
                digest.update(f"{part} {word.text!r} {list(word.vectors.shape)}".encode())
                digest.update(word.vectors.contiguous().numpy().tobytes())
        for deltas in self.deltas:
            for key in sorted(key for key in deltas if key.split(".")[0] in names):
                delta = deltas[key]
                for what, tensor in delta.tensors():
                    digest.update(f"{key} {what} {list(tensor.shape)}".encode())
                    # float: NumPy has no bfloat16, and every half is exact in float32.
                    digest.update(tensor.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _opened(self) -> dict[tuple[str, ...], Weights]:
        return {}

    @cached_property
    def _configs(self) -> dict[str, Mapping[str, Any]]:
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
                return upsampler_of(self.path(name) / CONFIG_FILE).eval().requires_grad_(False)
        library, class_name = self._class(name)
        config = dict(self.config(name))
        cls = self._library_class(name)
        try:
            with weightless(dtype), warnings.catch_warnings():
                # What the libraries warn each other of, such as of diffusers' own use of a name.
                warnings.simplefilter("ignore", FutureWarning)
                if library == "transformers":
                    # transformers would build in the type that the file names, not in the one that is asked for.
                    settings = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
                    parsed = cls.config_class.from_dict(settings)
                    module = cls._from_config(parsed, attn_implementation=ATTENTION.get(str(class_name), "sdpa"))
                else:
                    known = inspect.signature(cls.__init__).parameters
                    module = cls.from_config({key: value for key, value in config.items() if key in known})
                    # What its weights say, and no class of diffusers takes: see `statistics_of`.
                    if said := {key: config[key] for key in STATISTICS if key in config and key not in known}:
                        module.register_to_config(**said)
        except Exception as error:  # as above; RuntimeError of torch among them
            raise ModelError(f"{name} of {self.folder} cannot be built from its config.json: {error}") from error
        # bfloat16 has the range of float32, so nothing overflows there that would not overflow anyway.
        if dtype is torch.float16:
            keep_float32(module, tuple(getattr(module, "_keep_in_fp32_modules", None) or ()))
        return cast(nn.Module, module).eval().requires_grad_(False)

    def _library_class(self, name: str) -> Any:
        library, class_name = self._class(name)
        try:
            return getattr(import_module(str(library)), str(class_name))
        except (ImportError, AttributeError) as error:
            raise ModelError(
                f"{name} of {self.folder} is a {library}.{class_name}, which the installed {library} does not have; "
                f"upgrade it (pip install -U {library})"
            ) from error

    def class_of(self, name: str) -> str:
        """Class of a part, "CLIPTokenizer"."""
        return str(self._class(name)[1])

    def _class(self, name: str) -> tuple[str | None, str | None]:
        entry = self.index.get(name)
        if name in self.extra and entry is None:  # what was put beside the checkpoint says itself what it is
            return "diffusers", str(read_json(self.extra[name] / "config.json").get("_class_name"))
        if not isinstance(entry, list | tuple) or len(cast("list[object]", entry)) != 2:
            return None, None
        library, class_name = cast("list[str | None]", entry)
        config = self.extra.get(name, self.folder / name) / "config.json"
        if library == "diffusers" and config.is_file():  # what was put there from elsewhere may be of another class
            class_name = read_json(config).get("_class_name", class_name)
        return library, class_name


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

    def chat_tokens(self, name: str, chat: Sequence[tuple[str, str]]) -> int:
        folder = self.checkpoint.path(name)
        return chat_length(open_tokenizer(folder, self.checkpoint.class_of(name)), chat, folder)

    def module(self, name: str) -> nn.Module:
        return self.checkpoint.skeleton(name, self.dtype)


def keep_float32(module: nn.Module, names: tuple[str, ...]) -> None:
    """Back to float32 with the layers that overflow in float16, by the last part of their names (T5's "wo")."""
    for path, layer in module.named_modules():
        if path.rpartition(".")[2] in names:
            layer.to(torch.float32)


def statistics_of(folder: Path) -> Mapping[str, Any]:
    """How a VAE with a batch norm (FLUX.2) normalises latents, as fields of a configuration; empty: it has none.

    Squares of 2 x 2 cells are normalised together, so there are four times as many numbers as a latent has channels,
    in the order of `torch.nn.PixelUnshuffle`.

    Args:
        folder: Folder of the VAE.

    Raises:
        ModelError: Its weights are not there, or they hold no such statistics.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("_class_name") != "AutoencoderKLFlux2":
        return {}
    weights = open_weights({"vae": folder})
    names = [f"vae.bn.running_{what}" for what in ("mean", "var")]
    if not all(name in weights for name in names):
        raise ModelError(
            f"the weights in {folder} have no bn.running_mean and bn.running_var, by which FLUX.2 normalises latents; "
            "fetch the VAE again"
        )
    mean, variance = (weights.tensor(name, torch.float32) for name in names)
    spread = torch.sqrt(variance + float(config.get("batch_norm_eps", 1e-4)))
    if not (bool(torch.isfinite(mean).all()) and bool(torch.isfinite(spread).all()) and bool((spread > 0).all())):
        raise ModelError(
            f"bn.running_mean and bn.running_var of the VAE in {folder} are not statistics: some are not finite, or a "
            "variance is negative; fetch the VAE again"
        )
    return {"latents_mean": mean.tolist(), "latents_std": spread.tolist()}
