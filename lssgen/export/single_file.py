"""Single-file checkpoints: one safetensors file in the layout of the original code, made a diffusers folder once.

What each tensor is called in diffusers is diffusers' knowledge (`diffusers.loaders.single_file_utils`). Here it is said
which tensors of a file belong to which part, where the rest of a checkpoint comes from, and where the result lies.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import diffusers
import filelock
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import (
    CHECKPOINT_KEY_NAMES,
    LDM_UNET_KEY,
    LDM_VAE_KEYS,
    convert_ldm_clip_checkpoint,
    convert_open_clip_checkpoint,
    convert_sd3_t5_checkpoint_to_diffusers,
    infer_diffusers_model_type,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from lssgen import paths
from lssgen.errors import ExportError, ModelError, UnknownModelError
from lssgen.export.checkpoint import SETTINGS, Checkpoint
from lssgen.export.weights import STEMS, Stored, Weights, open_weights
from lssgen.models.configs import INDEX

FORMAT = 1
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

QUANTISED = re.compile(
    r"(^|\.)(scaled_fp8|scale_(weight|input)|(weight|input)_scale(_2)?|comfy_quant|absmax|quant_map|quant_state\..+)$"
)
"""Keys that go with weights which mean nothing without them."""

V_PREDICTION: Mapping[str, Mapping[str, object]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True},
}
"""What a key, by its mere presence, says about the scheduler; trainers of SDXL have agreed on these."""

PROJECTION = "text_projection.weight"
"""Of a CLIP whose summary is projected. Files of SD3 leave the smaller CLIP's out, which is the identity."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Encoder:
    """How files of the original layouts hold a text encoder.

    Attributes:
        library: How its transformers class begins, "CLIP" or "T5".
        prefix: Of its keys.
        width_key: A tensor that it always has; the last size is the encoder's width, which tells two CLIPs apart.
        rename: diffusers' renaming, from the tensors, the prefix and the width.
    """

    library: str
    prefix: str
    width_key: str
    rename: Callable[[Tensors, str, int], Tensors]


def _clip(tensors: Tensors, prefix: str, width: int) -> Tensors:
    del width
    return convert_ldm_clip_checkpoint(tensors, prefix)


def _open_clip(tensors: Tensors, prefix: str, width: int) -> Tensors:
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))  # all that the renaming asks of it
    return convert_open_clip_checkpoint(model, tensors, prefix)


def _t5(tensors: Tensors, prefix: str, width: int) -> Tensors:
    del prefix, width
    return convert_sd3_t5_checkpoint_to_diffusers(tensors)


T5 = "text_encoders.t5xxl.transformer."

ENCODERS = (
    Encoder("CLIP", "cond_stage_model.transformer.", str(CHECKPOINT_KEY_NAMES["clip"]), _clip),
    Encoder("CLIP", "cond_stage_model.model.", str(CHECKPOINT_KEY_NAMES["open_clip"]), _open_clip),
    Encoder("CLIP", "conditioner.embedders.0.transformer.", str(CHECKPOINT_KEY_NAMES["clip_sdxl"]), _clip),
    Encoder("CLIP", "conditioner.embedders.1.model.", str(CHECKPOINT_KEY_NAMES["open_clip_sdxl"]), _open_clip),
    Encoder("CLIP", "text_encoders.clip_l.transformer.", str(CHECKPOINT_KEY_NAMES["clip_sd3"]), _clip),
    Encoder("CLIP", "text_encoders.clip_g.transformer.", str(CHECKPOINT_KEY_NAMES["open_clip_sd3"]), _clip),
    Encoder("T5", T5, f"{T5}shared.weight", _t5),
)


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint in one file.

    Attributes:
        path: The file.
        stored: Its tensors, as its header describes them.
    """

    path: Path
    stored: Mapping[str, Stored]

    @property
    def alias(self) -> str:
        """The published checkpoint that it descends from, as far as diffusers can tell.

        Raises:
            UnknownModelError: It cannot, or there is no record of such models.
        """
        shapes = {key: torch.empty(tensor.shape, device="meta") for key, tensor in self.stored.items()}
        try:
            kind = infer_diffusers_model_type(shapes)
        except Exception:  # it expects sizes of a tensor, and fails in its own ways where there are others
            kind = ""
        if kind == "v1" and CHECKPOINT_KEY_NAMES["inpainting"] not in self.stored:  # "v1" is its word for all the rest
            kind = ""
        if kind not in BASES:
            seen = f"a checkpoint of the kind {kind!r}" if kind else "of no kind that diffusers knows"
            raise UnknownModelError(
                f"{self.path} is {seen}; single files are read of {', '.join(BASES.values())} and of what was trained "
                "from them. If this is one of them, say which with --base"
            )
        return BASES[kind]

    def encoder(self, class_name: str, width: int) -> Encoder | None:
        """The text encoder of that class and width, if it is in the file."""
        for encoder in ENCODERS:
            stored = self.stored.get(encoder.width_key)
            if stored is not None and class_name.startswith(encoder.library) and stored.shape[-1] == width:
                return encoder
        return None

    def keys(self, *prefixes: str) -> list[str]:
        """The keys that begin like this."""
        return [key for key in self.stored if key.startswith(prefixes)]

    @property
    def denoiser_keys(self) -> list[str]:
        """Those with the denoiser's prefix; where none has it, all that belong to no other part."""
        others = (*LDM_VAE_KEYS, *(encoder.prefix for encoder in ENCODERS))
        return self.keys(LDM_UNET_KEY) or [key for key in self.stored if not key.startswith(others)]


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
    stored = {name.removeprefix("file."): tensor for name, tensor in open_weights({"file": path}).stored.items()}
    odd = [
        key
        for key, tensor in stored.items()
        if QUANTISED.search(key) or (key.endswith(".weight") and not tensor.dtype.is_floating_point)
    ]
    if odd:
        raise ModelError(f"{path} is quantised ({odd[0]}); give the fp16, bf16 or plain fp8 version")
    return SingleFile(path, stored)


def convert(single: SingleFile, base: Checkpoint, parts: Sequence[str]) -> Path:
    """A folder in the diffusers layout with what is in the file, made now or found from an earlier time.

    It lies below LSSGEN_HOME, whole or not at all. Tensors keep their types. They are read through a memory map; what
    diffusers takes apart is copied, at most a part of the model at a time.

    Args:
        single: The file.
        base: Says how the parts are configured; its scheduler and tokenizers are copied. Its weights are not read.
        parts: Of the model; those whose weights the file lacks have no folder afterwards.

    Raises:
        ModelError: The file does not fit the base.
        ExportError: The folder cannot be written.
    """
    parts = [part for part in parts if base.has(part)]
    settings = {part: _settings(single, base, part) for part in parts}
    folder = paths.checkpoints() / f"{single.path.stem}-{_key(single, base, settings)[:12]}"
    draft = folder.with_name(f".{folder.name}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
                try:
                    _write(single, base, settings, draft)
                    draft.rename(folder)
                finally:
                    shutil.rmtree(draft, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"{single.path} cannot be converted to {folder}: {error}; it takes as much room as the file, "
            "and LSSGEN_HOME moves it"
        ) from error
    return folder


def lacking(folder: Path, parts: Sequence[str]) -> list[str]:
    """Parts that `convert` did not find in the file."""
    return [part for part in parts if Checkpoint(folder).has(part) and not (folder / part).is_dir()]


def _settings(single: SingleFile, base: Checkpoint, part: str) -> dict[str, bytes]:
    """A part's small files, by name."""
    folder = base.path(part)
    found = {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name.endswith(SETTINGS) and ".safetensors." not in path.name
    }
    if part == "scheduler":
        changes = {
            name: value for key in V_PREDICTION if key in single.stored for name, value in V_PREDICTION[key].items()
        }
        if changes:
            found["scheduler_config.json"] = json.dumps({**base.config(part), **changes}, indent=2).encode()
    return found


def _key(single: SingleFile, base: Checkpoint, settings: Mapping[str, Mapping[str, bytes]]) -> str:
    """Hash of all that the folder is made of."""
    made_of = {
        "format": FORMAT,
        "diffusers": diffusers.__version__,
        "file": Weights(single.stored).sha256[single.path],
        "index": base.index,
        "settings": {
            part: {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            for part, files in settings.items()
        },
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _write(single: SingleFile, base: Checkpoint, settings: Mapping[str, Mapping[str, bytes]], folder: Path) -> None:
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps(base.index, indent=2) + "\n")
    with safe_open(single.path, framework="pt") as file:
        for part, files in tqdm(settings.items(), desc=f"converting {single.path.name}", unit=" parts", disable=None):
            tensors: Tensors | None = None
            if "config.json" in files:
                tensors = _converted(single, base, part, file)
                if not tensors:
                    continue
            (folder / part).mkdir()
            for name, data in files.items():
                (folder / part / name).write_bytes(data)
            if tensors is not None:
                library = str(base.index[part][0])
                stem = STEMS[0] if library == "diffusers" else STEMS[1]
                save_file(tensors, folder / part / f"{stem}.safetensors", {"format": "pt"})
                del tensors
                _check(single, base, folder, part)


def _converted(single: SingleFile, base: Checkpoint, part: str, file: Any) -> Tensors:
    """A part's tensors by diffusers' names; none where the file lacks the part.

    Raises:
        ModelError: diffusers cannot convert such a part, or leaves tensors over.
    """
    skeleton = base.skeleton(part, torch.float32)
    try:
        if hasattr(skeleton.config, "vocab_size"):
            found = _encoder(single, base.class_of(part), skeleton.config, file)
        else:
            found = _network(single, base.class_of(part), skeleton, file, vae=part == "vae")
    except (KeyError, IndexError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{single.path} does not fit {base.folder}: diffusers cannot convert its {part} "
            f"({type(error).__name__}: {error}); name a checkpoint of its kind with --base"
        ) from error
    return {key: tensor.contiguous() for key, tensor in found.items()}


def _encoder(single: SingleFile, class_name: str, config: Any, file: Any) -> Tensors:
    """A text encoder's tensors."""
    width = int(getattr(config, "hidden_size", 0) or config.d_model)
    encoder = single.encoder(class_name, width)
    if encoder is None:
        return {}
    tensors: Tensors = {key: file.get_tensor(key) for key in single.keys(encoder.prefix)}
    found = encoder.rename(tensors, encoder.prefix, width)
    if class_name.endswith("WithProjection") and PROJECTION not in found:
        found[PROJECTION] = torch.eye(width, dtype=tensors[encoder.width_key].dtype)
    return found


def _network(single: SingleFile, class_name: str, skeleton: nn.Module, file: Any, *, vae: bool) -> Tensors:
    """The denoiser's or the VAE's tensors.

    Raises:
        ValueError: The denoiser has some that diffusers does not know.
    """
    keys = single.keys(*LDM_VAE_KEYS) if vae else single.denoiser_keys
    tensors: Tensors = {key: file.get_tensor(key) for key in keys}
    if not tensors or set(tensors) == set(skeleton.state_dict()):  # some have diffusers' names
        return tensors
    rename = cast("Callable[..., Tensors]", SINGLE_FILE_LOADABLE_CLASSES[class_name]["checkpoint_mapping_fn"])
    found = rename(checkpoint=tensors, config=dict(cast("Mapping[str, Any]", skeleton.config)))
    used = {tensor.data_ptr() for tensor in found.values()}
    over = [key for key, tensor in tensors.items() if tensor.data_ptr() not in used]  # what it split, it took away
    if over and not vae:  # VAEs bring remains of their training
        raise ValueError(f"it leaves {len(over)} tensors over: {', '.join(sorted(over)[:8])}")
    return found


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
