"""What was measured of a bundle, kept beside its graphs: the costs of its parts, and which way is the faster.

`lssgen bench guarantee` writes it. It holds for one engine on one machine, and says nothing about others.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Literal

import msgspec

from lssgen.bundle import MANIFEST, Bundle, sha256_of
from lssgen.durable import write_whole
from lssgen.jsons import JsonError, read_json
from lssgen.machine import cpu_name, cpus
from lssgen.plan.timing import TimeCosts

MEASURED = "measured.json"
FORMAT = 2

OPTIONS = ("inference_precision", "low_memory", "tf32", "weight_streaming")
"""Options of engines that change how fast they are."""

Faster = Literal["staged", "single", "undecided"]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How long one way takes over another, measured in turn.

    Attributes:
        ratio: Estimate.
        lower, upper: Its 95 % interval.
        pairs: Pairs of pictures.
    """

    ratio: Annotated[float, msgspec.Meta(gt=0)]
    lower: Annotated[float, msgspec.Meta(ge=0)]
    upper: Annotated[float, msgspec.Meta(gt=0)]
    pairs: Annotated[int, msgspec.Meta(ge=1)]

    @property
    def surely_slower(self) -> bool:
        """Whether the first way is surely the slower one."""
        return self.lower > 1

    @property
    def surely_faster(self) -> bool:
        """Whether the first way is surely the faster one."""
        return self.upper < 1

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.lower:.2f} to {self.upper:.2f})"


class Guarantee(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one picture size.

    Attributes:
        width, height: Picture size in pixels.
        staged_over_single: Time of the stages over that of one stage, at the same steps and guidance.
        engine_over_reference: Time of the engine over that of the reference, both as the bundle paints by itself; None
            where the engine is the reference, or where that one cannot run the bundle.
        reference: Name of the reference; "" where there is none.
    """

    width: Annotated[int, msgspec.Meta(ge=1)]
    height: Annotated[int, msgspec.Meta(ge=1)]
    staged_over_single: Ratio
    engine_over_reference: Ratio | None = None
    reference: str = ""

    @property
    def faster(self) -> Faster:
        """Which of stages and one stage is surely the faster."""
        ratio = self.staged_over_single
        return "staged" if ratio.surely_faster else "single" if ratio.surely_slower else "undecided"

    @property
    def outrun(self) -> bool:
        """Whether the reference is surely faster than the engine."""
        return self.engine_over_reference is not None and self.engine_over_reference.surely_slower


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one engine on one machine.

    Attributes:
        written: Time in UTC.
        costs: Costs of the parts of a run.
        sizes: Number of picture sizes that the costs were measured at; 0 where it was not noted.
        guarantees: One for each size that was measured.
    """

    written: str
    costs: TimeCosts | None = None
    sizes: int = 0
    guarantees: tuple[Guarantee, ...] = ()

    def at(self, height: int, width: int) -> Guarantee | None:
        """The guarantee for a picture size in pixels; None where there is none."""
        return next((one for one in self.guarantees if (one.height, one.width) == (height, width)), None)


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """The file.

    Attributes:
        format: `FORMAT`.
        manifest_sha256: Hash of the manifest that all of it belongs to.
        places: Measurements, by engine and machine.
    """

    format: int = FORMAT
    manifest_sha256: str
    places: Mapping[str, Measured] = {}


def place_of(engine: str, backend: Mapping[str, object]) -> str:
    """An engine on this machine, as text.

    Args:
        engine: Name of the engine.
        backend: What it tells about itself: threads, device, and options that make it faster or slower, where it has
            them and they are not the usual ones, are part of the place.
    """
    device = backend.get("gpu") or backend.get("device")
    where = f"{device}" if device else f"{cpu_name()} x {cpus()}"
    return f"{engine} with {backend.get('threads') or 'all'} threads{how_of(backend)} on {where}"


def how_of(backend: Mapping[str, object]) -> str:
    """Options that make an engine faster or slower and are not the usual ones, as text: ", low_memory True"; "" where
    all are.

    Args:
        backend: What it tells about itself, as values or as their text.
    """
    usual = ("None", "False", "auto")
    return "".join(f", {name} {backend[name]}" for name in OPTIONS if str(backend.get(name)) not in usual)


def read_measured(bundle: Bundle, place: str) -> Measured | None:
    """What is known of a place; None where nothing is, or where it is of another manifest or cannot be read."""
    file = _read(bundle)
    return file.places.get(place) if file else None


def all_measured(bundle: Bundle) -> Mapping[str, Measured]:
    """What is known of every place, on whatever machine it was measured."""
    file = _read(bundle)
    return file.places if file else {}


def write_measured(bundle: Bundle, place: str, measured: Measured) -> None:
    """Add what was measured, in place of what was known of the same place.

    Raises:
        OSError: The bundle cannot be written.
    """
    file = _read(bundle) or _File(manifest_sha256=sha256_of(bundle.path(MANIFEST)))
    whole = _File(manifest_sha256=file.manifest_sha256, places={**file.places, place: measured})
    write_whole(bundle.path(MEASURED), msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")


def fault_of(bundle: Bundle) -> str:
    """Why the file of measurements is not heeded, in one sentence; "" where it is, or where there is none."""
    path = bundle.path(MEASURED)
    if not path.is_file():
        return ""
    try:
        file = read_json(path, _File)
    except JsonError as error:
        return f"{path} is damaged: it {error}"
    if file.format != FORMAT:
        return f"{path} has format {file.format}, and this lssgen reads format {FORMAT}"
    if file.manifest_sha256 != sha256_of(bundle.path(MANIFEST)):
        return f"{path} was measured before the bundle was exported anew"
    return ""


def _read(bundle: Bundle) -> _File | None:
    path = bundle.path(MEASURED)
    if not path.is_file():
        return None
    with suppress(JsonError, OSError):
        file = read_json(path, _File)
        if file.format == FORMAT and file.manifest_sha256 == sha256_of(bundle.path(MANIFEST)):
            return file
    return None
