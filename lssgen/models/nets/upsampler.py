"""What all latent upsamplers share: the checkpoint folder, and the question whether one fits a model.

The network itself is named by `_class_name` in config.json; `lssgen.models.nets.upsamplers` knows all of them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lssgen.durable import whole_file, write_whole
from lssgen.errors import UpsamplerError
from lssgen.jsons import JsonError, read_object

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FILES = f"{CONFIG_FILE} and {WEIGHTS_FILE}"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class UpsamplerConfig(Protocol):
    """What every network's config.json holds: a frozen dataclass that refuses values that make no sense."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def scale(self) -> Fraction:
        """Side of the latent that goes out, over the side of the one that comes in."""
        ...


C = TypeVar("C", bound=UpsamplerConfig)


class Upsampler(nn.Module, Generic[C]):
    """A network that enlarges a latent, (batch, in_channels, h, w) -> (batch, out_channels, scale * h, scale * w).

    Attributes:
        Config: Class of its configuration. The name of the network's own class is that in config.json.
    """

    Config: ClassVar[type[Any]]

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    def check_fits(self, channels: int, *, model: str) -> None:
        """See that this upsampler can stand between two stages of a model with `channels` latent channels.

        Raises:
            UpsamplerError: It takes or makes another number of channels, or does not double.
        """
        config = self.config
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise UpsamplerError(
                f"the upsampler turns {config.in_channels} latent channels into {config.out_channels}, but {model} "
                f"has {channels}; use one that was trained for this model's VAE (lssgen-train-upsampler makes one)"
            )
        if config.scale != 2:
            raise UpsamplerError(f"the upsampler enlarges {config.scale} times, but stages double; use one that does")

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Load a checkpoint folder, ready for inference.

        Args:
            folder: Holds config.json and diffusion_pytorch_model.safetensors (F32, F16 or BF16).
            dtype: Type of the parameters after loading.

        Raises:
            UpsamplerError: A file is missing or damaged, the configuration makes no sense, or keys, shapes,
                types or values of the weights do not fit it.
        """
        folder = Path(folder)
        config = cls.config_from(folder / CONFIG_FILE)
        with torch.device("meta"):  # the weights come from the file: draw no random ones
            model = cls(config)
        weights = _read_weights(folder / WEIGHTS_FILE)
        _check_weights(weights, model.state_dict(), folder / WEIGHTS_FILE)
        model.load_state_dict({key: value.to(dtype) for key, value in weights.items()}, assign=True)
        return model.eval().requires_grad_(False)

    @classmethod
    def config_from(cls, path: Path) -> Any:
        """Read a config.json of this class.

        Raises:
            UpsamplerError: Missing, not JSON, of another class, or with fields or values that are not known.
        """
        raw = read_raw_config(path)
        if raw.get("_class_name") != cls.__name__:
            raise not_an_upsampler(path, raw, cls.__name__)
        values = {key: value for key, value in raw.items() if not key.startswith("_")}
        known = {field.name for field in fields(cls.Config)}
        if unknown := sorted(set(values) - known):
            raise UpsamplerError(f"{path} has fields that no {cls.__name__} has: {', '.join(unknown)}")
        arguments: dict[str, Any] = {
            key: tuple(cast(list[Any], v)) if isinstance(v, list) else v for key, v in values.items()
        }
        return cls.Config(**arguments)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, the parameters in the type they have.

        Each file is whole or as it was, so that nobody reads half of one.
        """
        folder = Path(folder)
        config = {"_class_name": type(self).__name__, **asdict(cast(Any, self.config))}
        # Trained weights are channels_last, which safetensors refuses to write.
        weights = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        with whole_file(folder / WEIGHTS_FILE) as draft:
            save_file(weights, draft, metadata={"format": "pt"})
        write_whole(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def read_raw_config(path: Path) -> Mapping[str, Any]:
    """An upsampler's config.json as it stands there.

    Raises:
        UpsamplerError: Missing, or not JSON.
    """
    try:
        return read_object(path)
    except JsonError as error:
        if not path.exists():
            raise UpsamplerError(f"no {path.name} in {path.parent}; an upsampler is a folder with {FILES}") from error
        raise UpsamplerError(f"{path} {error}; fetch or train the upsampler again") from error


def not_an_upsampler(path: Path, raw: Mapping[str, Any], wanted: str) -> UpsamplerError:
    """What to raise where a config.json is of another class."""
    came = str(raw.get("_class_name"))[:80]
    return UpsamplerError(f"{path} describes {came!r}, not a {wanted}; give the upsampler's own folder")


def is_positive(value: object) -> bool:
    """Whether a value out of a config.json is an int above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UpsamplerError(f"no {path.name} in {path.parent}; an upsampler is a folder with {FILES}") from error
    except (OSError, SafetensorError) as error:
        raise UpsamplerError(f"{path} is damaged: {error}; fetch or train the upsampler again") from error


def _check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise UpsamplerError(
            f"{path} does not hold the weights its config.json asks for; "
            f"missing: {_some(missing)}; not expected: {_some(extra)}"
        )
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise UpsamplerError(
                f"{path}: {key} has shape {list(value.shape)}, but config.json asks for {list(expected[key].shape)}"
            )
        if value.dtype not in DTYPES:
            raise UpsamplerError(f"{path}: {key} is {value.dtype}, but upsamplers are F32, F16 or BF16")
        if not value.isfinite().all():
            raise UpsamplerError(f"{path}: {key} holds NaN or infinity; fetch or train the upsampler again")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"
