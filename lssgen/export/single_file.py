"""Single-file checkpoints: one safetensors file in the layout of the original code, made a diffusers folder once.

What each tensor is called in diffusers is diffusers' knowledge (`diffusers.loaders.single_file_utils`). Here it is said
which tensors of a file belong to which part, where the rest of a checkpoint comes from, and where the result lies.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import diffusers
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import (
    CHECKPOINT_KEY_NAMES,
    LDM_UNET_KEY,
    LDM_VAE_KEYS,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from lssgen import durable, paths
from lssgen.errors import ExportError, ModelError, UnknownModelError
from lssgen.export.checkpoint import SETTINGS, Checkpoint
from lssgen.export.config import PredictionType
from lssgen.export.said import Said, read_said, see_kind
from lssgen.export.stored import STEMS, Stored, read_header
from lssgen.export.weights import Weights, open_weights, see_plain
from lssgen.models.configs import INDEX, read_json
from lssgen.models.families import family_of

FORMAT = 2
"""Counts the changes of what is written here; older folders are not found again."""

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""A model's name that ends like this is a file. Only the first kind is read; pickles can run code."""

BASES: Mapping[str, str] = {
    "v1": "sd15",
    "v2": "sd21",
    "xl_base": "sdxl",
    "playground-v2-5": "playground",
    "sd3": "sd3",
    "sd35_medium": "sd3.5-medium",
    "sd35_large": "sd3.5-large",
    "flux-dev": "flux-dev",
    "flux-schnell": "flux-schnell",
}
"""Alias of the published checkpoint that a file descends from, by diffusers' name of the file's kind."""

PROJECTION = "text_projection.weight"
"""Key of a CLIP whose summary is projected. Files of SD3 leave the smaller CLIP's out, which is the identity."""

NOTES = "lssgen.json"
"""File of a converted folder with what is to be said about it."""

TABLES = re.compile(
    r"(^|\.)(position_ids|model_ema\.(decay|num_updates)|betas|((sqrt|log)_)?(one_minus_)?(recip(m1)?_)?alphas_cumprod(_prev)?|"
    r"sqrt_recipm1_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])|logvar|lvlb_weights|global_step)$"
)
"""Keys of tables that the original code computes and saves too."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder of a file.

    Attributes:
        library: Beginning of its transformers class, "CLIP" or "T5".
        layout: Whose names it has: those of transformers, or OpenCLIP's.
        prefix: Beginning of its keys.
        width: Size of its vectors, which tells two CLIPs apart.
    """

    library: str
    layout: Literal["transformers", "open_clip"]
    prefix: str
    width: int


# What every encoder has, by the end of the key: its table of words. The beginning is whatever the writer liked.
_WORDS = (
    (re.compile(r"(.*?)(?:text_model\.)?embeddings\.token_embedding\.weight"), "CLIP", "transformers"),
    (re.compile(r"(.*?)(?<!embeddings\.)token_embedding\.weight"), "CLIP", "open_clip"),
    (re.compile(r"(.*?)(?:shared|encoder\.embed_tokens)\.weight"), "T5", "transformers"),
)


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint in one file.

    Attributes:
        path: The file.
        stored: Place of every tensor, as the header has it.
        said: Texts that the header has besides, by name.
    """

    path: Path
    stored: Mapping[str, Stored]
    said: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def kind(self) -> str:
        """diffusers' name of the file's kind; empty where it knows none."""
        # diffusers looks at keys and shapes; on the meta device tensors of any size cost nothing.
        shapes = {key: torch.empty(tensor.shape, device="meta") for key, tensor in self.stored.items()}
        try:
            kind = str(infer_diffusers_model_type(shapes))
        except Exception:  # it expects sizes of a tensor, and fails in its own ways where there are others
            return ""
        if kind == "v1" and CHECKPOINT_KEY_NAMES["inpainting"] not in self.stored:  # "v1" is its word for all the rest
            return ""
        return kind

    @property
    def alias(self) -> str:
        """The published checkpoint that it descends from, as far as diffusers can tell.

        Raises:
            UnknownModelError: It cannot, or there is no record of such models.
        """
        kind = self.kind
        if kind not in BASES:
            seen = f"a checkpoint of the kind {kind!r}" if kind else "of a kind that diffusers does not know"
            raise UnknownModelError(
                f"{self.path} is {seen}; single files are read of {', '.join(BASES.values())} and of what was trained "
                "from them. If this is one of them, say which with --base"
            )
        return BASES[kind]

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """The text encoders in the file, in its order."""
        found: dict[str, Encoder] = {}
        for key, stored in self.stored.items():
            for words, library, layout in _WORDS:
                match = words.fullmatch(key)
                if match and not key.startswith(LDM_UNET_KEY):
                    encoder = Encoder(library, cast(Any, layout), match[1], stored.shape[-1] if stored.shape else 0)
                    found.setdefault(encoder.prefix, encoder)
                    break
        return tuple(found.values())

    def encoder(self, class_name: str, width: int) -> Encoder | None:
        """The text encoder of that class and width, if it is in the file."""
        fitting = (one for one in self.encoders if class_name.startswith(one.library) and one.width == width)
        return next(fitting, None)

    def keys(self, *prefixes: str) -> list[str]:
        """The keys that begin like this."""
        return [key for key in self.stored if key.startswith(prefixes)]

    def tensor(self, key: str) -> Tensor:
        """A tensor as it is stored.

        Raises:
            ModelError: The file is cut off.
        """
        stored = self.stored[key]
        return stored.read().reshape(stored.shape)

    @property
    def denoiser_keys(self) -> list[str]:
        """Those with the denoiser's prefix; where none has it, all that belong to no other part."""
        others = (*LDM_VAE_KEYS, *(encoder.prefix for encoder in self.encoders))
        return self.keys(LDM_UNET_KEY) or [
            key for key in self.stored if not key.startswith(others) and not TABLES.search(key)
        ]


def open_single_file(path: Path) -> SingleFile:
    """Read a file's header.

    Raises:
        UnknownModelError: There is no such file.
        ModelError: It is pickled, damaged or quantised.
    """
    if not path.is_file():
        raise UnknownModelError(f"there is no file {path}; give the path of a safetensors file")
    if path.suffix == ".gguf":
        raise ModelError(f"{path} is quantised; give the safetensors file that it was made from")
    if path.suffix != SUFFIXES[0]:
        raise ModelError(
            f"{path} is pickled, and reading a pickle can run code that somebody put into it; give the safetensors "
            "version, or convert it on a machine that you trust it with"
        )
    stored, said = read_header(path)
    see_plain(stored)
    if not stored:
        raise ModelError(f"{path} holds no tensors; fetch the checkpoint again")
    single = SingleFile(path, stored, said)
    see_kind(single)
    return single


def convert(single: SingleFile, base: Checkpoint, parts: Sequence[str], asked: PredictionType | None = None) -> Path:
    """A folder in the diffusers layout with what is in the file, made now or found from an earlier time.

    It lies below LSSGEN_HOME, whole or not at all. Tensors keep their types. They are read through a memory map; what
    diffusers takes apart is copied, at most a part of the model at a time.

    Args:
        single: The file.
        base: Says how the parts are configured; its scheduler and tokenizers are copied. Its weights are not read.
        parts: Of the model; those whose weights the file lacks have no folder afterwards.
        asked: What the user says that a UNet predicts, whatever the file says.

    Raises:
        ModelError: The file does not fit the base, or says something that cannot be reproduced.
        ExportError: The folder cannot be written.
    """
    parts = [part for part in parts if base.has(part)]
    said = _said(single, base, asked)
    settings = {part: _settings(base, part, said) for part in parts}
    folder = paths.checkpoints() / f"{single.path.stem}-{_key(single, base, settings, said)[:12]}"
    try:
        with durable.locked(folder.with_name(f".{folder.name}.lock")):
            durable.clear_partial(folder)
            if not folder.is_dir():
                with durable.whole_folder(folder) as draft:
                    _write(single, base, settings, said, draft)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"{single.path} cannot be converted to {folder}: {error}; it takes as much room as the file, "
            "and LSSGEN_HOME moves it"
        ) from error
    return folder


def _said(single: SingleFile, base: Checkpoint, asked: PredictionType | None) -> Said:
    """What the file says about itself; of flow models there is nothing to be said."""
    if family_of(base.index).network != "unet":
        return Said()
    return read_said(single, sd2=single.kind == "v2", base=base.config("scheduler"), asked=asked)


@dataclass(frozen=True, slots=True)
class Found:
    """What there is to say about a converted file.

    Attributes:
        notes: Sentences that the user should read.
        size_px: Side of the pictures that it was trained on; 0: not said.
    """

    notes: tuple[str, ...]
    size_px: int


def found_out(folder: Path) -> Found:
    """What `convert` found out about the file that a folder was made from."""
    written = read_json(folder / NOTES)
    return Found(tuple(written["notes"]), int(written["size_px"]))


def lacking(folder: Path, parts: Sequence[str]) -> list[str]:
    """Parts that `convert` did not find in the file."""
    return [part for part in parts if Checkpoint(folder).has(part) and not (folder / part).is_dir()]


def _settings(base: Checkpoint, part: str, said: Said) -> dict[str, bytes]:
    """A part's small files, by name, with what the file says otherwise."""
    folder = base.path(part)
    found = {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name.endswith(SETTINGS) and ".safetensors." not in path.name
    }
    name, changes = {
        "scheduler": ("scheduler_config.json", said.scheduler),
        "vae": ("config.json", said.vae),
        "unet": ("config.json", _sample_size(base, said)),
    }.get(part, ("", {}))
    if changes and name in found:
        # Where a file says another schedule, nothing of the base's is left.
        known = {} if "_class_name" in changes else read_json(folder / name)
        found[name] = json.dumps({**known, **changes}, indent=2).encode()
    return found


def _sample_size(base: Checkpoint, said: Said) -> Mapping[str, object]:
    if not said.size_px:
        return {}
    return {"sample_size": said.size_px // family_of(base.index).cell_px(base.config("vae"))}


def _key(single: SingleFile, base: Checkpoint, settings: Mapping[str, Mapping[str, bytes]], said: Said) -> str:
    """Hash of all that the folder is made of."""
    made_of = {
        "format": FORMAT,
        # Its renaming is part of what is written.
        "diffusers": diffusers.__version__,
        "file": Weights(single.stored).sha256[single.path],
        "index": base.index,
        "notes": said.notes,
        "settings": {
            part: {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            for part, files in settings.items()
        },
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _write(
    single: SingleFile, base: Checkpoint, settings: Mapping[str, Mapping[str, bytes]], said: Said, folder: Path
) -> None:
    (folder / INDEX).write_text(json.dumps(base.index, indent=2) + "\n")
    claimed = set(said.keys)
    for part, files in tqdm(settings.items(), desc=f"converting {single.path.name}", unit=" parts", disable=None):
        tensors: Tensors | None = None
        if "config.json" in files:
            tensors, used = _converted(single, base, part)
            claimed |= used
            if not tensors:
                continue
        (folder / part).mkdir()
        for name, data in files.items():
            (folder / part / name).write_bytes(data)
        if tensors is not None:
            library = str(base.index[part][0])
            stem = STEMS[0] if library == "diffusers" else STEMS[1]
            save_file(tensors, folder / part / f"{stem}.safetensors", {"format": "pt"})
            # Before `_check` reads the file: both at once would be the part twice.
            del tensors
            _check(single, base, folder, part)
    notes = (*said.notes, *left_over(single, claimed))
    (folder / NOTES).write_text(json.dumps({"notes": notes, "size_px": said.size_px}, indent=2) + "\n")


def left_over(single: SingleFile, claimed: set[str]) -> tuple[str, ...]:
    """A sentence about the tensors that no part has claimed; none where there are none but tables."""
    over = [key for key in single.stored if key not in claimed and not TABLES.search(key)]
    if not over:
        return ()
    shared = {key.partition(".")[0] for key in claimed}
    groups = Counter(_beginning(key, 2 if key.partition(".")[0] in shared else 1) for key in over)
    counts = ", ".join(f"{name} ({count})" for name, count in groups.most_common(12))
    more = f" and {len(groups) - 12} more kinds" if len(groups) > 12 else ""
    return (
        f"{len(over)} tensors of {single.path.name} belong to no part of the model and are left out: {counts}{more}.",
    )


def _beginning(key: str, parts: int) -> str:
    return ".".join(key.split(".")[:parts])


def _converted(single: SingleFile, base: Checkpoint, part: str) -> tuple[Tensors, set[str]]:
    """A part's tensors by diffusers' names, and the keys they had; none where the file lacks the part.

    Raises:
        ModelError: diffusers cannot convert such a part, or leaves tensors over.
    """
    skeleton = base.skeleton(part, torch.float32)
    try:
        # Text encoders, whose classes diffusers' SINGLE_FILE_LOADABLE_CLASSES does not have.
        if hasattr(skeleton.config, "vocab_size"):
            found, used = _encoder(single, base.class_of(part), skeleton.config)
        else:
            keys = single.keys(*LDM_VAE_KEYS) if part == "vae" else single.denoiser_keys
            tensors = {key: single.tensor(key) for key in keys}
            found, used = renamed(base.class_of(part), skeleton, tensors)
            over = [key for key in tensors if key not in used]
            if over and part != "vae":  # VAEs bring remains of their training
                raise ValueError(f"it leaves {len(over)} tensors over: {', '.join(sorted(over)[:8])}")
    except (KeyError, IndexError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{single.path} does not fit {base.folder}: diffusers cannot convert its {part} "
            f"({type(error).__name__}: {error}); name a checkpoint of its kind with --base"
        ) from error
    return {key: tensor.contiguous() for key, tensor in found.items()}, used  # safetensors refuses to write views


def _encoder(single: SingleFile, class_name: str, config: Any) -> tuple[Tensors, set[str]]:
    """A text encoder's tensors, and the keys they had."""
    width = int(getattr(config, "hidden_size", 0) or config.d_model)
    encoder = single.encoder(class_name, width)
    if encoder is None:
        return {}, set()
    inside = {key.removeprefix(encoder.prefix): key for key in single.keys(encoder.prefix)}
    if encoder.layout == "open_clip":
        inside = {name: key for name, key in inside.items() if _open_clip_layer(name) < config.num_hidden_layers}
        tensors = {f".{name}": single.tensor(key) for name, key in inside.items()}
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))  # all that the renaming asks of it
        found = cast(Tensors, convert_open_clip_checkpoint(model, tensors, "."))
        inside = {name: key for name, key in inside.items() if not name.endswith(("logit_scale", "attn_mask"))}
    else:
        found = {name: single.tensor(key) for name, key in inside.items()}
        inside = {name: key for name, key in inside.items() if not name.endswith("logit_scale")}
    if class_name.endswith("WithProjection") and PROJECTION not in found:
        found[PROJECTION] = torch.eye(width, dtype=next(one.dtype for one in found.values() if one.is_floating_point()))
    return found, set(inside.values())


def _open_clip_layer(name: str) -> int:
    """Number of the layer that a key belongs to; some models read an earlier layer than the last."""
    match = re.search(r"resblocks\.(\d+)\.", name)
    return int(match[1]) if match else -1


def renamed(class_name: str, skeleton: nn.Module, tensors: Tensors) -> tuple[Tensors, set[str]]:
    """A denoiser's or a VAE's tensors by diffusers' names, and the keys of those that were used.

    Raises:
        Exception: Of many kinds, where diffusers does not know the names.
    """
    if not tensors or set(tensors) == set(skeleton.state_dict()):  # some have diffusers' names
        return tensors, set(tensors)
    rename = cast("Callable[..., Tensors]", SINGLE_FILE_LOADABLE_CLASSES[class_name]["checkpoint_mapping_fn"])
    given = dict(tensors)
    found = rename(checkpoint=given, config=dict(cast("Mapping[str, Any]", skeleton.config)))
    used = {tensor.data_ptr() for tensor in found.values()}
    left = {id(tensor) for tensor in given.values() if tensor.data_ptr() not in used}  # what it split, it took away
    return found, {key for key, tensor in tensors.items() if id(tensor) not in left}


def _check(single: SingleFile, base: Checkpoint, folder: Path, part: str) -> None:
    """See that the part is whole.

    Raises:
        ModelError: Tensors are missing, unexpected, or of another shape than the base has them.
    """
    module = nn.ModuleDict({part: base.skeleton(part, torch.float32)})
    try:
        open_weights({part: folder / part}).fit(module)
    except ModelError as error:
        raise ModelError(f"{single.path} does not fit {base.folder}; is it of the same kind? {error}") from error
