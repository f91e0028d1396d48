"""The latent upsampler of LSSGen: a small ResNet that doubles a latent, in the published checkpoint format.

Source: LSSGen, arXiv 2507.16154; configuration fields, keys and layer order as published with it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lssgen.durable import whole_file, write_whole
from lssgen.errors import UpsamplerError
from lssgen.jsons import JsonError, read_object

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CLASS_NAME = "LatentUpSampler"
FILES = f"{CONFIG_FILE} and {WEIGHTS_FILE}"

ACTIVATIONS = {"silu": F.silu, "swish": F.silu, "mish": F.mish, "gelu": F.gelu, "relu": F.relu}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

BLOCK_EPS, OUT_EPS = 1e-6, 1e-5
"""The published networks divide by slightly different numbers in their blocks and before the last convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSamplerConfig:
    """What config.json holds. Defaults are the published class's; all five published checkpoints override several.

    Attributes:
        in_channels, out_channels: Channels of the latent that comes in and goes out.
        block_out_channels: Channels after each block; the first is also what the first convolution makes.
        is_up_samples: True where a block with a stride above 1 enlarges, False where it shrinks.
        strides: Factor of each block: 1 or 2 where it enlarges, any from 1 where it does not.
        norm_num_groups: Groups of every group norm; divides every entry of `block_out_channels`.
        act_fn: One of `ACTIVATIONS`.
        interpolate: Way to resize the skip branch, one of `INTERPOLATIONS`.

    Raises:
        UpsamplerError: A field has the wrong type or value, or the three lists differ in length.
    """

    in_channels: int = 16
    out_channels: int = 16
    block_out_channels: tuple[int, ...] = (64,)
    is_up_samples: tuple[bool, ...] = (True,)
    strides: tuple[int, ...] = (2,)
    norm_num_groups: int = 32
    act_fn: str = "silu"
    interpolate: str = "nearest"

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "norm_num_groups"):
            if not _is_positive(getattr(self, name)):
                raise UpsamplerError(f"upsampler config: {name} is {getattr(self, name)!r}, but must be an int above 0")
        for name, fits, kind in (
            ("block_out_channels", _is_positive, "ints above 0"),
            ("is_up_samples", _is_bool, "true and false"),
            ("strides", _is_positive, "ints above 0"),
        ):
            values: object = getattr(self, name)
            if not isinstance(values, tuple) or not values or not all(map(fits, cast(tuple[object, ...], values))):
                raise UpsamplerError(f"upsampler config: {name} is {values!r}, but must be a list of {kind}")
        lengths = [len(self.block_out_channels), len(self.is_up_samples), len(self.strides)]
        if len(set(lengths)) != 1:
            raise UpsamplerError(
                f"upsampler config: block_out_channels, is_up_samples and strides have {lengths} entries; "
                "each needs one per block"
            )
        for up, stride in zip(self.is_up_samples, self.strides, strict=True):
            if up and stride > 2:
                raise UpsamplerError(
                    f"upsampler config: an enlarging block has stride {stride}, but its 4x4 transposed convolution "
                    "only knows 2 (or 1, for a block that keeps the size)"
                )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UpsamplerError(
                    f"upsampler config: {channels} channels do not divide into norm_num_groups {self.norm_num_groups}"
                )
        for name, known in (("act_fn", tuple(ACTIVATIONS)), ("interpolate", INTERPOLATIONS)):
            if getattr(self, name) not in known:
                raise UpsamplerError(f"upsampler config: {name} is {getattr(self, name)!r}, but must be one of {known}")

    @property
    def scale(self) -> Fraction:
        """Side of the latent that goes out, over the side of the one that comes in."""
        return prod(
            # Fractions, so that 2 * 1/3 * 3 is exactly 2.
            (Fraction(s) if up else Fraction(1, s) for up, s in zip(self.is_up_samples, self.strides, strict=True)),
            start=Fraction(1),
        )


def published_config(channels: int) -> UpSamplerConfig:
    """The shape of the published checkpoints: 128 and 64 wide for 16-channel latents, 64 and 32 for 4-channel ones.

    Args:
        channels: Of the latent; more than 4 get the wide network.
    """
    return UpSamplerConfig(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(128, 64) if channels > 4 else (64, 32),
        is_up_samples=(True, False),
        strides=(2, 1),
        interpolate="bilinear",
    )


class LatentUpSampler(nn.Module):
    """Doubles a latent: conv, residual blocks of which the first enlarges, norm, activation, conv.

    Works in the model's own latent space (after the VAE's scaling and shift), nothing is clamped and there is no
    path around the network. The group norms look at the whole latent, so a latent cannot be upsampled in tiles.

    Source: LSSGen, arXiv 2507.16154, as published.
    """

    def __init__(self, config: UpSamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.upsampler = _ResNet(config)  # published keys all start with "upsampler."

    def forward(self, latent: Tensor) -> Tensor:
        """Args: latent, (batch, in_channels, h, w). Returns: (batch, out_channels, scale * h, scale * w)."""
        return self.upsampler(latent)

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
        config = read_config(folder / CONFIG_FILE)
        with torch.device("meta"):  # the weights come from the file: draw no random ones
            model = cls(config)
        weights = _read_weights(folder / WEIGHTS_FILE)
        _check_weights(weights, model.state_dict(), folder / WEIGHTS_FILE)
        model.load_state_dict({key: value.to(dtype) for key, value in weights.items()}, assign=True)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, the parameters in the type they have.

        Each file is whole or as it was, so that nobody reads half of one.
        """
        folder = Path(folder)
        config = {"_class_name": CLASS_NAME, **asdict(self.config)}
        # Trained weights are channels_last, which safetensors refuses to write.
        weights = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        with whole_file(folder / WEIGHTS_FILE) as draft:
            save_file(weights, draft, metadata={"format": "pt"})
        write_whole(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


class _ResNet(nn.Module):
    def __init__(self, config: UpSamplerConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.activation = ACTIVATIONS[config.act_fn]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        # The first list is one longer (strict=False): the last width goes into no further block.
        self.up_blocks = nn.ModuleList(
            _Block(config, c_in, c_out, up, stride)
            for c_in, c_out, up, stride in zip(
                (widths[0], *widths), widths, config.is_up_samples, config.strides, strict=False
            )
        )
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=OUT_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.activation(self.norm_out(x)))


class _Block(nn.Module):
    """Norm, resizing conv, activation, norm, conv, activation; beside it the input, projected and then resized."""

    def __init__(self, config: UpSamplerConfig, c_in: int, c_out: int, up: bool, stride: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.act_fn]
        self.mode = config.interpolate
        self.factor = 1.0 if stride == 1 else float(stride) if up else 1 / stride
        self.norm1 = nn.GroupNorm(config.norm_num_groups, c_in, eps=BLOCK_EPS)
        if stride == 1:
            self.conv1: nn.Module = nn.Conv2d(c_in, c_out, 3, padding=1)
        elif up:
            self.conv1 = nn.ConvTranspose2d(c_in, c_out, 4, stride=stride, padding=1)
        else:
            self.conv1 = nn.Conv2d(c_in, c_out, 4, stride=stride, padding=1)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, c_out, eps=BLOCK_EPS)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip_proj = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.conv1(self.norm1(x)))
        y = self.activation(self.conv2(self.norm2(y)))
        skip = self.skip_proj(x)
        if self.factor != 1:
            # torch refuses align_corners, even False, for nearest.
            corners = None if self.mode == "nearest" else False
            skip = F.interpolate(skip, scale_factor=self.factor, mode=self.mode, align_corners=corners)
        return y + skip


def read_config(path: Path) -> UpSamplerConfig:
    """Read an upsampler's config.json.

    Raises:
        UpsamplerError: Missing, not JSON, of another class, or with fields or values that are not known.
    """
    try:
        raw = read_object(path)
    except JsonError as error:
        if not path.exists():
            raise UpsamplerError(f"no {path.name} in {path.parent}; an upsampler is a folder with {FILES}") from error
        raise UpsamplerError(f"{path} {error}; fetch or train the upsampler again") from error
    if raw.get("_class_name") != CLASS_NAME:
        came = str(raw.get("_class_name"))[:80]
        raise UpsamplerError(f"{path} describes {came!r}, not a {CLASS_NAME}; give the upsampler's own folder")
    values = {key: value for key, value in raw.items() if not key.startswith("_")}
    known = {field.name for field in fields(UpSamplerConfig)}
    if unknown := sorted(set(values) - known):
        raise UpsamplerError(f"{path} has fields that no {CLASS_NAME} has: {', '.join(unknown)}")
    arguments: dict[str, Any] = {
        key: tuple(cast(list[Any], v)) if isinstance(v, list) else v for key, v in values.items()
    }
    return UpSamplerConfig(**arguments)


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


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)
