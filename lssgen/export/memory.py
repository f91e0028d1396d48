"""How much memory a module takes to compute, found out without computing: the sizes of its tensors while they live."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lssgen.export.writer import faked
from lssgen.parity.samples import shape_of
from lssgen.ports import Port

SLACK = 1.5
"""Factor for what engines take beside the tensors of a network: copies in other layouts, convolutions unrolled."""


def working_bytes(module: nn.Module, inputs: tuple[Port, ...], axes: Mapping[str, int]) -> int:
    """Bytes that computing a module takes at most at one time, its weights aside.

    Args:
        module: Parameters may be on the meta device.
        inputs: Its arguments.
        axes: Size of every dynamic axis that they name.
    """
    # Buffers are real: modules compute them while they are built.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    meter = _Meter()
    with torch.no_grad(), faked(module, mode), mode:
        given = [torch.zeros(shape_of(port, axes), dtype=getattr(torch, port.dtype)) for port in inputs]
        with meter:
            module(*given)
    return int(SLACK * meter.peak)


class _Meter(TorchDispatchMode):
    """Adds up the tensors that are alive.

    Attributes:
        peak: Largest sum so far, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                # By storage, which views share with what they are views of.
                self._take(tensor.untyped_storage())
        self.peak = max(self.peak, self.alive + _scores(func, args))
        return made

    def _take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.alive += storage.nbytes()
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.alive -= self._known.pop(key, 0)


def _scores(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes of attention's scores, in float32: torch computes them a few at a time, ONNX Runtime all at once."""
    if "scaled_dot_product" not in str(func):
        return 0
    query, key = args[0], args[1]
    return 4 * query.shape[:-1].numel() * key.shape[-2]
