"""What the owner of a Ray Serve application may choose, as its arguments spell it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lssgen.engines.registry import needs_gpu
from lssgen.errors import ServingError
from lssgen.jsons import JsonError, convert_json, decode_json


@dataclass(frozen=True, slots=True, kw_only=True)
class RayChoices:
    """Arguments of `lssgen.serving.ray:app`.

    Attributes:
        bundles: Folders, which every node has at the same place, by name; as text "sd3=/models/sd3,/models/flux".
        loras: LoRAs by the name that follows a bundle's and "@", files that every node has, with or without
            strengths; as text "style=/models/style.safetensors:0.8".
        engine: Engine that paints, as for `lssgen.load`.
        engine_options, server_options: Options of the engine and of the engine room; as text, JSON.
        checker, watermark: Names of hooks that every picture passes, as `lssgen serve` takes them, with commas between
            several checkers; empty: none.
        api_keys: File of keys on every node; empty: everybody may ask.
        num_gpus, num_cpus: GPUs and CPUs that a replica has for itself; GPUs may be a share of one.
        min_replicas, max_replicas: Bounds of the autoscaler.
        target_pixels: Pixels that wait or are painted on a replica, which the autoscaler aims at.
        max_ongoing: Requests that a replica has open; further ones wait in the proxies.
        max_queued: Requests that wait there; further ones are refused with status 429.
        drain_seconds: Time that a replica gets to finish when it is taken down.
        name: Name of the deployment.

    Raises:
        ServingError: A number that cannot be one of these, or no bundle.
    """

    bundles: Mapping[str, str]
    loras: Mapping[str, str] = field(default_factory=dict[str, str])
    engine: str = ""
    engine_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    server_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checker: str = ""
    watermark: str = ""
    api_keys: str = ""
    num_gpus: float = -1.0
    num_cpus: float = 1.0
    min_replicas: int = 1
    max_replicas: int = 1
    target_pixels: float = 8 * 2**20
    max_ongoing: int = 64
    max_queued: int = 256
    drain_seconds: float = 30.0
    name: str = "lssgen"

    def __post_init__(self) -> None:
        if not self.bundles:
            raise ServingError("bundles are needed, as in bundles=/models/sd3,flux=/models/flux-dev")
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ServingError(
                f"replicas are {self.min_replicas} to {self.max_replicas}; give 0 <= min_replicas <= max_replicas, at "
                "least 1"
            )
        for name in ("target_pixels", "max_ongoing", "max_queued"):
            if not getattr(self, name) > 0:
                raise ServingError(f"{name} is {getattr(self, name)}; it must be above 0")

    @property
    def gpus(self) -> float:
        """GPUs of a replica: one, where the engine needs one and nothing else is said."""
        return self.num_gpus if self.num_gpus >= 0 else float(needs_gpu(self.engine))


def choices_from(args: Mapping[str, Any]) -> RayChoices:
    """The choices of an application's arguments, all of which may be text.

    Raises:
        ServingError: One is unknown, or makes no sense.
    """
    known = {one.name for one in fields(RayChoices)}
    if strange := set(args) - known:
        raise ServingError(f"{', '.join(sorted(strange))} cannot be chosen; there are {', '.join(sorted(known))}")
    given: dict[str, Any] = {"bundles": {}, **args}
    for name in ("bundles", "loras"):
        if isinstance(given.get(name), str):
            given[name] = _places(given[name])
    for name in ("engine_options", "server_options"):
        if isinstance(given.get(name), str):
            given[name] = _object(name, given[name])
    try:
        return convert_json(json.loads(json.dumps({name: _number(value) for name, value in given.items()})), RayChoices)
    except JsonError as error:
        raise ServingError(f"the arguments make no sense: {error}") from error


def _places(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, named, folder = part.rpartition("=")
        found[name if named else folder.rstrip("/").rpartition("/")[2]] = folder
    return found


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        return decode_json(text.encode(), dict[str, Any])
    except JsonError as error:
        raise ServingError(f"{name} {error}") from error


def _number(value: Any) -> Any:
    """A number that came as text."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
