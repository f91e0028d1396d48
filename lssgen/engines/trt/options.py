"""What a user may choose about TensorRT engines: how they are built, what they may be, where they are kept."""

from dataclasses import dataclass
from pathlib import Path

from lssgen import paths
from lssgen.choices import choice, refuse_outside
from lssgen.engines.options import DEVICE, LOW_MEMORY, MOST_DEVICES, TF32
from lssgen.errors import BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What changes a compiled engine, besides graph, profiles and targets. Part of its key.

    Attributes:
        tf32: Let fp32 arithmetic use 10 bits of mantissa in tensor cores. Off: fp32 means fp32.
        weight_streaming: Weights may stay on the host when device memory is short. Costs CUDA graphs.
        level: Optimisation level of TensorRT, 0 to 5; TensorRT-RTX has nothing to tune.
        refit: Keep the engine such that its weights can be exchanged; see `lssgen.engines.trt.refit`.
    """

    tf32: bool = False
    weight_streaming: bool = False
    level: int = 3
    refit: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an engine may be; beyond it, it is not used.

    Attributes:
        activation_bytes: Scratch memory of one profile.
        unfused: Number of attentions that may stay unfused although a fused kernel exists for them.
    """

    activation_bytes: int = 12 * 2**30
    unfused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtOptions:
    """TensorRT or TensorRT-RTX on one GPU.

    Attributes:
        device_id: Number of the GPU.
        low_memory: Keep the weights of one large engine at a time on the device.
        engines: Folder of the compiled engines.
        tf32, refit, weight_streaming: Choices of `BuildOptions`.
        max_scratch: Scratch memory that one profile of an engine may take, in GiB.
        allow_unfused: Number of attentions that may stay unfused although a fused kernel exists for them.

    Raises:
        BackendError: A number that cannot be one.
    """

    device_id: int = choice(0, name="--device", help=DEVICE, metavar="N", least=0, most=MOST_DEVICES)
    low_memory: bool = choice(False, help=LOW_MEMORY)
    engines: Path = choice(default_factory=paths.engines, help="folder of the compiled engines", metavar="DIR")
    tf32: bool = choice(False, help=TF32)
    refit: bool = choice(
        False, help="keep weights exchangeable, and make an engine of another LoRA from one that is there; on the GPU"
    )
    weight_streaming: bool = choice(False, help="weights may stay on the host where the device is too small")
    max_scratch: float = choice(
        Bounds().activation_bytes / 2**30,
        help="scratch memory that a profile may take",
        metavar="GIB",
        least=0,
        most=1_000_000,
    )
    allow_unfused: int = choice(
        0, help="attentions that need not be one kernel", metavar="N", least=0, most=1_000_000_000
    )

    def __post_init__(self) -> None:
        refuse_outside(self, BackendError)


def build_options(options: TrtOptions) -> BuildOptions:
    """Those that change a compiled engine."""
    return BuildOptions(tf32=options.tf32, refit=options.refit, weight_streaming=options.weight_streaming)


def bounds(options: TrtOptions) -> Bounds:
    """Those that say what an engine may be."""
    return Bounds(activation_bytes=int(options.max_scratch * 2**30), unfused=options.allow_unfused)
