"""GPU architectures, and which precisions each can compile: a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lssgen.errors import BuildError
from lssgen.manifest import NumberFormat

PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True, slots=True)
class Target:
    """One architecture.

    Attributes:
        name: "sm89": compute capability 8.9.
        cards: Cards that have it, for people.
        precisions: Networks that compile for it. Measured with TensorRT-RTX 1.7 where that builds for it.
        usual: True if it is meant where no target is named. NVIDIA advises a separate engine for Turing.
        rtx: True if TensorRT-RTX builds for it; TensorRT builds for the GPU it runs on, whichever that is.
    """

    name: str
    cards: str
    precisions: tuple[str, ...] = PRECISIONS
    usual: bool = True
    rtx: bool = True


TARGETS = {
    target.name: target
    for target in (
        Target("sm75", "GeForce RTX 20, T4 (Turing)", ("fp16",), usual=False),
        Target("sm80", "A100, A30 (Ampere)"),
        Target("sm86", "GeForce RTX 30, A10, A40 (Ampere)"),
        Target("sm89", "GeForce RTX 40, L4, L40, RTX Ada (Ada)"),
        Target("sm90", "H100, H200 (Hopper)", rtx=False),
        Target("sm100", "B200, GB200 (Blackwell)", rtx=False),
        Target("sm103", "B300, GB300 (Blackwell)", rtx=False),
        Target("sm120", "GeForce RTX 50, RTX PRO Blackwell (Blackwell)"),
        Target("sm121", "GB10 (Blackwell)"),
    )
}


_FIRST_BF16 = 80

FORMATS: Mapping[NumberFormat, int] = {"int8": 75, "int8-weights": 75, "fp8": 89, "nvfp4": 100}
"""First compute capability, times ten, that has products in a number format. Measured with TensorRT-RTX 1.7 where that
builds; source for the others: NVIDIA's support matrix of TensorRT."""


def takes(name: str, number_format: NumberFormat) -> bool:
    """Whether an architecture has products in a number format."""
    return int(name.removeprefix("sm")) >= FORMATS[number_format]


def see_format(names: Sequence[str], number_format: NumberFormat | None, *, rtx: bool) -> tuple[str, ...]:
    """Those of some targets that have products in a number format.

    Args:
        names: Targets, as the user wrote them.
        number_format: The format; None: any target will do.
        rtx: True for TensorRT-RTX, which does not build for all.

    Returns:
        All that were named; where none was, all that take the format.

    Raises:
        BuildError: One of them does not; says which do.
    """
    legal = [
        one.name for one in TARGETS.values() if one.rtx >= rtx and (not number_format or takes(one.name, number_format))
    ]
    for name in map(normal, names):
        if name not in TARGETS:
            raise BuildError(f"there is no target {name!r}; choose from {', '.join(TARGETS)}")
        if name not in legal and number_format:
            raise BuildError(
                f"{name}, {TARGETS[name].cards}, has no products in {number_format}; {number_format} fits "
                f"{', '.join(ordered(set(legal)))}"
            )
    return tuple(names) or tuple(name for name in legal if TARGETS[name].usual)


def rtx_targets(names: Sequence[str], precision: str) -> tuple[str, ...]:
    """Check the targets of a TensorRT-RTX engine.

    Args:
        names: As the user wrote them: "sm89", "89" and "8.9" are the same. None stands for all from Ampere on.
        precision: Of the network.

    Returns:
        Names of `TARGETS`, sorted, each once.

    Raises:
        BuildError: Unknown to TensorRT-RTX, or cannot hold the precision; says which can.
    """
    can = {name for name, target in TARGETS.items() if target.rtx and precision in target.precisions}
    asked = {normal(name) for name in names} or {name for name in can if TARGETS[name].usual}
    for name in sorted(asked):
        if name not in TARGETS:
            raise BuildError(f"there is no target {name!r}; choose from {', '.join(TARGETS)}")
        if not TARGETS[name].rtx:
            raise BuildError(
                f"TensorRT-RTX does not build for {name}, {TARGETS[name].cards}; use --engine tensorrt there"
            )
        if name not in can:
            raise BuildError(
                f"{name}, {TARGETS[name].cards}, cannot hold a network in {precision}; it takes "
                f"{' or '.join(TARGETS[name].precisions)}, and {precision} fits {', '.join(ordered(can))}"
            )
    return ordered(asked)


def trt_target(name: str, precision: str) -> str:
    """Check the GPU at hand as the target of a TensorRT engine, which knows more GPUs than `TARGETS`.

    Raises:
        BuildError: It cannot hold the precision; says what it can.

    Source: NVIDIA's support matrix of TensorRT, hardware and precision.
    """
    if precision == "bf16" and int(name.removeprefix("sm")) < _FIRST_BF16:
        raise BuildError(
            f"the GPU of this machine, {name}, cannot hold a network in bf16, which sm{_FIRST_BF16} (Ampere) and later "
            "can; export with --precision fp16 or fp32"
        )
    return name


def normal(name: str) -> str:
    """A target's name from what a user may write."""
    return "sm" + name.lower().removeprefix("sm").removeprefix("_").replace(".", "")


def ordered(names: set[str]) -> tuple[str, ...]:
    """Names by compute capability."""
    # By length first, or sm100 would come before sm75.
    return tuple(sorted(names, key=lambda name: (len(name), name)))
