"""Exchange the weights of a built engine: a copy of it that computes with those of another graph of the same structure.

Minutes of kernel search are saved, and what is saved is checked, because refit is not to be trusted:

    NVIDIA documents that a refittable engine may lose a bias as it is built (TensorRT 11.3), and that weights may
    be folded together; TensorRT-RTX does not report every weight that was not given
    users report engines that hold a mixture of weights after they went from A to B and back to A

So an engine is always refitted from the stored plan of one that was built, never from a refitted one, and never in
place; and a built and a refitted one alike are examined before they count.

Source: NVIDIA's documentation of TensorRT 11.3, on refitting; pytorch/TensorRT pull request 4198; NVIDIA/TensorRT
issue 3628.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lssgen.engines.cuda import Device
from lssgen.engines.trt.cache import Entry, damaged
from lssgen.engines.trt.library import Library
from lssgen.engines.trt.need import Need, misfits
from lssgen.engines.trt.network import load_graph, parse_errors
from lssgen.errors import BuildError
from lssgen.manifest import Probe

if TYPE_CHECKING:
    import tensorrt as trt

_MORE_ROUNDING = 1.5
"""Factor by which a refitted engine may be further from its graph than the built one is from its own: the same
kernels round other numbers. The precision's own bound alone would let most lost biases pass. A refusal costs a build,
what is let pass may cost pictures."""

_EXACT = 0.01
"""An engine's own error counts as at least this part of what its precision may show, or an exact one would forbid any
rounding to its copies."""


def structure_of(onnx: Path) -> str:
    """Hash of a graph without the weights in files beside it; small constants inside count.

    Raises:
        BackendError: The `onnx` package is missing.
        BuildError: The file is not an ONNX graph.
    """
    model = load_graph(onnx)
    for tensor in model.graph.initializer:
        # Where a weight lies in its file says nothing about structure: another LoRA's export may pack it elsewhere.
        del tensor.external_data[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def fixed_weights(library: Library, device: Device, plan: Path, onnx: Path) -> str:
    """Hash of the weights of a graph that its engine does not let go, by what the library says.

    Raises:
        BuildError: The engine cannot be loaded, or is not refittable.
    """
    with device.turn, library.listen() as log:
        device.choose()
        engine, refitter = _opened(library, plan)
        if engine is None or refitter is None:
            raise BuildError(f"its weights cannot be exchanged: {log.reason()}")
        return _fixed(refitter.get_all_weights(), onnx)


def donors(need: Need, structure: str, entries: Iterable[Entry]) -> list[Entry]:
    """Built engines that differ from what is needed in their weights only, in the order of `entries`."""
    return [
        entry
        for entry in entries
        if entry.report.structure == structure
        and not entry.report.refitted_from
        and not misfits(replace(need, content=entry.report.content), entry.report)
    ]


def allowed(probe: Probe) -> float:
    """How large the error of a refitted engine may be, from the probe of the one that it is a copy of."""
    return _MORE_ROUNDING * max(probe.error, _EXACT * probe.bound)


def refit(library: Library, device: Device, donor: Entry, onnx: Path) -> Any:
    """A plan with the weights of `onnx`, which has the buffer protocol; the donor stays what it is.

    Raises:
        BuildError: The library does not take them, or not all of them; names those.
    """
    if damaged(donor):
        raise BuildError(f"{donor.plan} is damaged")
    with device.turn, library.listen() as log:
        device.choose()
        device.synchronize()  # a server may have asked for steps, and weights are not exchanged beside them
        engine, refitter = _opened(library, donor.plan)
        if engine is None or refitter is None:
            raise BuildError(f"{donor.plan} cannot be refitted here: {log.reason()}")
        # Before anything is exchanged: such weights keep the donor's values, and no call of the library says so.
        if _fixed(refitter.get_all_weights(), onnx) != donor.report.fixed_weights:
            raise BuildError("weights that were compiled in, and cannot be exchanged, are others now")
        parser: trt.OnnxParserRefitter = library.module.OnnxParserRefitter(refitter, library.logger)
        taken = parser.refit_from_file(str(onnx))
        if missing := refitter.get_missing_weights():
            raise BuildError(f"the weights {', '.join(missing)} are missing")
        if not taken:
            raise BuildError(f"{library.flavour} does not take the weights: {parse_errors(parser)}")
        if not refitter.refit_cuda_engine():
            raise BuildError(f"{library.flavour} cannot exchange the weights: {log.reason()}")
        plan: Any = engine.serialize()
        if plan is None:
            raise BuildError(f"{library.flavour} cannot write the engine: {log.reason()}")
        return plan


def _opened(library: Library, plan: Path) -> "tuple[trt.ICudaEngine | None, trt.Refitter | None]":
    runtime: Any = library.module.Runtime(library.logger)
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None or not engine.refittable:
        return engine, None
    return engine, library.module.Refitter(engine, library.logger)


def _fixed(exchangeable: Iterable[str], onnx: Path) -> str:
    free, digest = set(exchangeable), hashlib.sha256()
    for tensor in load_graph(onnx).graph.initializer:
        if tensor.external_data and tensor.name not in free:
            digest.update(_stored(tensor, onnx).data)
    return digest.hexdigest()


def _stored(tensor: Any, onnx: Path) -> NDArray[np.uint8]:
    """The bytes of a weight in a file beside the graph."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    count = int(place["length"]) if "length" in place else -1
    return np.fromfile(onnx.with_name(place["location"]), np.uint8, count, offset=int(place.get("offset", 0)))
