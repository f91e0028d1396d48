"""A torch module whose layers have their weights only while they compute."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lssgen.export.weights import Weights, tensors_of

Slot = tuple[dict[str, Any], str, str]
"""Place where a layer keeps a tensor: parameters or buffers, key there, and the tensor's name in the checkpoint."""


@contextmanager
def weights_on_demand(module: nn.Module, weights: Weights) -> Generator[nn.Module]:
    """Inside, each layer reads its weights when it is called, and forgets them afterwards.

    Args:
        module: Its parameters are on the meta device (see `lssgen.export.writer.weightless`); real ones stay.
        weights: The checkpoint.

    Raises:
        ModelError: The checkpoint does not fit the module.
    """
    fitted = weights.fit(module)
    names = {id(tensor): name for known, tensor in tensors_of(module) for name in known if name in fitted}
    hooks: list[Any] = []
    for layer in module.modules():
        stores: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers)  # pyright: ignore[reportPrivateUsage]
        slots: list[Slot] = [(s, key, names[id(t)]) for s in stores for key, t in s.items() if id(t) in names]
        if slots:
            take, drop = _hooks(slots, fitted)
            hooks.append(layer.register_forward_pre_hook(take))
            # always_call: a layer that fails must not keep its weights either.
            hooks.append(layer.register_forward_hook(drop, always_call=True))
    try:
        yield module
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(slots: list[Slot], weights: Weights) -> tuple[Callable[..., None], Callable[..., None]]:
    kept: list[Tensor] = [store[key] for store, key, _ in slots]

    def take(*_: object) -> None:
        for (store, key, name), old in zip(slots, kept, strict=True):
            value = weights.tensor(name, old.dtype)
            store[key] = nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value

    def drop(*_: object) -> None:
        for (store, key, _name), old in zip(slots, kept, strict=True):
            store[key] = old

    return take, drop
