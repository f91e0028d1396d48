"""What a user may choose about the engines. Each backend has its own options; the words are common to all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

from lssgen.choices import choice, refuse_outside
from lssgen.errors import BackendError


class EngineOptions(TypedDict, total=False):
    """Every word that some backend takes; explained by the options of the backends."""

    threads: int
    device_id: int
    low_memory: bool
    tf32: bool
    engines: Path
    refit: bool
    weight_streaming: bool
    max_scratch: float
    allow_unfused: int
    inference_precision: "InferencePrecision"


InferencePrecision = Literal["auto", "bf16", "fp32"]
"""Number format that an engine computes in, where that is not the graph's: "auto" is bf16 for every component whose
outputs stay within a bound, on a processor that computes in it."""

MOST_DEVICES, MOST_THREADS = 1023, 1_000_000
"""Numbers beyond what any machine has, and not beyond what libraries can read."""

THREADS = "CPU threads of one operator, at most the machine's; 0 leaves it to the engine"
DEVICE = "which GPU, as nvidia-smi counts those that CUDA_VISIBLE_DEVICES leaves"
LOW_MEMORY = "load text encoders, network and VAE in turn, and free each"
TF32 = "let fp32 networks use TF32; off, fp32 means fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtOptions:
    """ONNX Runtime on the CPU.

    Attributes:
        threads: CPU threads of one operator, at most as many as the machine has; 0 lets ONNX Runtime use every core.
        low_memory: Keep the session of one large graph at a time: loaded when it runs, freed when another one does.

    Raises:
        BackendError: A number that cannot be one of threads or devices.
    """

    threads: int = choice(0, help=THREADS, metavar="N", least=0, most=MOST_THREADS)
    low_memory: bool = choice(False, help=LOW_MEMORY)

    def __post_init__(self) -> None:
        refuse_outside(self, BackendError)


@dataclass(frozen=True, slots=True, kw_only=True)
class OvOptions(OrtOptions):
    """OpenVINO on the CPU.

    Attributes:
        inference_precision: Number format to compute in; "auto" asks a probe, component by component.

    Raises:
        BackendError: There is no such format.
    """

    inference_precision: InferencePrecision = choice(
        "auto", help="compute in this format; auto: in bf16 what stays within 1 % of fp32, where the CPU has bf16"
    )

    def __post_init__(self) -> None:
        refuse_outside(self, BackendError)
        if self.inference_precision not in (known := get_args(InferencePrecision)):
            raise BackendError(
                f"inference_precision is {self.inference_precision!r}; it must be one of {', '.join(known)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtCudaOptions(OrtOptions):
    """ONNX Runtime on an NVIDIA GPU.

    Attributes:
        device_id: Number of the GPU.
        tf32: Let fp32 arithmetic use 10 bits of mantissa in tensor cores, which ONNX Runtime does unless told not to.
    """

    device_id: int = choice(0, name="--device", help=DEVICE, metavar="N", least=0, most=MOST_DEVICES)
    tf32: bool = choice(False, help=TF32)
