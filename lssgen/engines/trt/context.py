"""Execution contexts: what an engine needs to run at one size, as its exam and its bindings make them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lssgen.engines.cuda import CudaBuffer, Device, Memory
from lssgen.engines.trt.library import Library
from lssgen.errors import EngineError, ShapeError
from lssgen.ports import Port

if TYPE_CHECKING:
    import tensorrt as trt  # its published stubs; what only TensorRT-RTX has is `Any` here


def new_context(
    library: Library, device: Device, engine: "trt.ICudaEngine", name: str, profile: int, config: Any = None
) -> "trt.IExecutionContext":
    """A context that has its profile, and no memory, shapes and addresses yet.

    Args:
        library: Library that the engine is of.
        device: GPU that the engine is on.
        engine: The engine.
        name: Its name, for messages.
        profile: Number of the profile.
        config: Runtime configuration; None for the usual one.

    Raises:
        EngineError: The library cannot make it: there is no memory for it, for instance.
    """
    strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
    # The turn, since the profile is set by work on the stream.
    with device.turn, library.listen() as log:
        device.choose()
        context = engine.create_execution_context(strategy if config is None else config)
        if not (context and context.set_optimization_profile_async(profile, device.stream)):
            raise EngineError(f"{name} cannot prepare its profile {profile} on {device.name}: {log.reason()}")
    device.synchronize()  # the profile is there only now
    return context


def tie(
    context: "trt.IExecutionContext",
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    buffers: Mapping[str, CudaBuffer],
    scratch: Memory,
) -> None:
    """Give a context that has its profile what it computes with: scratch, shapes, addresses, in this order.

    Raises:
        ShapeError, EngineError: The engine called `name` does not take them.
    """
    context.set_device_memory(scratch.address, scratch.size)
    for port in inputs:
        if not context.set_input_shape(port.name, buffers[port.name].shape):
            raise ShapeError(f"{name} does not take {port.name} {buffers[port.name].shape}")
    try:
        missing = context.infer_shapes()
    except RuntimeError as error:  # what it raises where shapes contradict each other
        raise ShapeError(f"{name} does not know the shapes of its outputs: {error}") from error
    if missing:
        raise EngineError(f"{name} does not know the shapes of {', '.join(missing)}")
    for port in outputs:
        # The library checks no output's size: it would write beyond the end of a buffer that is too small.
        made, given = sizes_of(context.get_tensor_shape(port.name)), buffers[port.name].shape
        if made != given:
            raise ShapeError(f"{name} makes {port.name} {list(made)}, and was given a buffer of {list(given)}")
    for port_name, buffer in buffers.items():
        if not context.set_tensor_address(port_name, buffer.address):
            raise EngineError(f"{name} does not take an address for {port_name}")


def enqueue(library: Library, device: Device, context: "trt.IExecutionContext", name: str) -> None:
    """Put one run on the stream.

    Raises:
        EngineError: The library refuses; says why.
    """
    with device.turn, library.listen() as log:
        device.choose()
        if not context.execute_async_v3(device.stream):
            raise EngineError(f"{name} failed on {device.name}: {log.reason()}")


def sizes_of(dims: Any) -> tuple[int, ...]:
    """A shape of the library, which its stubs do not know to be a sequence."""
    return tuple(dims)
