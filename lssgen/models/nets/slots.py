"""Slots for LoRAs: low-rank pairs as inputs of a graph, beside every weight that a LoRA may change.

    y = W x + b  becomes  y = W x + b + sum_k w_k up_k (down_k x)

with the pairs (down_k, up_k) of all layers in one input, and the weights w_k of every picture in another. So any set of
LoRAs is put in, weighed by picture and taken out between two calls, and one call paints pictures with unlike ones. No
family takes part in it: the layers are found in its module, and the sum is made behind each of them.
"""

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.errors import ExportError
from lssgen.manifest import Feed, LoraFactors, LoraWeights, SlotLayers
from lssgen.models.nets.recipe import Components, Recipe
from lssgen.models.nets.step import per_picture
from lssgen.ports import Port

FACTORS, WEIGHTS = "lora_factors", "lora_weights"


def with_slots(
    recipe: Recipe, components: Components, ranks: int, layers: SlotLayers, parts: Collection[str] = ()
) -> Recipe:
    """A graph that takes LoRAs.

    Args:
        recipe: The family's step, or what encodes its prompts.
        components: The checkpoint.
        ranks: Ranks of all LoRAs together that there is room for.
        layers: Kind of layers that have room.
        parts: Parts of the checkpoint whose layers have; empty: all of the graph's.

    Raises:
        ExportError: The network has no such layers.
    """
    parts = parts or recipe.components
    found = slotted(recipe.build(components), layers)
    shapes = {f"{name}.weight": tuple(one.weight.shape) for name, one in found if name.partition(".")[0] in parts}
    if not shapes:
        raise ExportError(
            f"the {recipe.name} graph has no layers that a LoRA could change; export without --lora-slots"
        )
    factors = LoraFactors(layers=shapes)
    feeds: dict[str, Feed] = {FACTORS: factors, WEIGHTS: LoraWeights()}
    inputs = (
        *recipe.inputs,
        Port(FACTORS, "float32", (ranks, factors.columns)),
        Port(WEIGHTS, "float32", ("batch", ranks)),
    )
    branched = next((port.name for port in recipe.inputs if "branches" in port.shape), None)

    @wraps(recipe.build)
    def build(parts: Components) -> nn.Module:
        return _taking_slots(recipe.build(parts), inputs, factors, branched)

    return replace(
        recipe,
        inputs=inputs,
        build=build,
        feeds={**recipe.feeds, **feeds},
        settings={**recipe.settings, "slots": sorted(shapes.items())},
    )


def slotted(module: nn.Module, layers: SlotLayers) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers of a module that have slots, by name."""
    return [(name, one) for name, one in module.named_modules() if _has_slots(one, layers)]  # pyright: ignore


def _has_slots(layer: nn.Module, layers: SlotLayers) -> bool:
    if isinstance(layer, nn.Conv2d):
        # Patches are cut out by convolutions whose kernel is their stride; trainers leave those alone.
        pixel = max(layer.kernel_size) == 1
        plain = layer.groups == 1 and max(layer.dilation) == 1 and isinstance(layer.padding, tuple)
        return plain and (pixel or (layers == "all" and layer.kernel_size != layer.stride))
    return isinstance(layer, nn.Linear)


def low_rank(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor, weights: Tensor) -> Tensor:
    """What the slots add to a layer's output.

    Args:
        layer: A linear layer, or a convolution.
        x: Its input, (n, ..., in) or (n, in, h, w).
        down: (ranks, in), the kernel flattened behind the channels.
        up: (ranks, out).
        weights: (n, ranks).
    """
    if isinstance(layer, nn.Conv2d):
        kernel = down.unflatten(1, (layer.in_channels, *layer.kernel_size))
        narrow = _weighed(F.conv2d(x, kernel, None, layer.stride, layer.padding), weights[:, :, None, None])
        return F.conv2d(narrow, up.T[:, :, None, None])
    narrow = x @ down.T
    return _weighed(narrow, weights.reshape(-1, *[1] * (x.ndim - 2), weights.shape[1])) @ up


def _weighed(narrow: Tensor, weights: Tensor) -> Tensor:
    # A choice, not a product alone: 0 times an infinity is NaN, and a LoRA that overflows must not reach the pictures
    # beside it, which are painted without.
    return torch.where(weights != 0, narrow * weights, 0.0)


def _taking_slots(module: nn.Module, inputs: tuple[Port, ...], factors: LoraFactors, branched: str | None) -> nn.Module:
    """The module, with one argument for every port, the factors and their weights last.

    In place, and not as a wrapper: its parameters keep their names, which are the checkpoint's.
    """
    bank = _Bank(factors)
    for name, layer in module.named_modules():
        if f"{name}.weight" in factors.layers:
            layer.register_forward_hook(bank.hook(f"{name}.weight"))
    names = [port.name for port in inputs]
    forward: Any = type(module).forward

    def taking(self: nn.Module, *given: Tensor) -> Any:
        own, (pairs, weights) = given[:-2], given[-2:]
        if branched is not None:
            weights = per_picture(weights, given[names.index(branched)].shape[0])
        with bank.filled(pairs, weights):
            return forward(self, *own)

    # A tracer reads the signature, to tell arguments apart.
    words = [Parameter(name, Parameter.POSITIONAL_ONLY) for name in ("self", *names)]
    taking.__signature__ = Signature(words)  # pyright: ignore[reportFunctionMemberAccess]
    module.__class__ = type(f"Slotted{type(module).__name__}", (type(module),), {"forward": taking})
    return module


class _Bank:
    """The pairs of a call, by layer, while the call lasts.

    Args:
        factors: Where they lie.
    """

    def __init__(self, factors: LoraFactors) -> None:
        self._places = factors.places
        self._pairs: Tensor | None = None
        self._weights: Tensor | None = None
        self._cut: dict[torch.dtype, Mapping[str, tuple[Tensor, Tensor]]] = {}
        self._used: set[str] = set()

    @contextmanager
    def filled(self, pairs: Tensor, weights: Tensor) -> Generator[None]:
        """Inside, the layers add these pairs; (ranks, columns), and (n, ranks) weights.

        Raises:
            ExportError: A layer was not called, so that a LoRA that changes it would not be heard.
        """
        self._pairs, self._weights = pairs, weights
        try:
            yield
            if unused := sorted(self._places.keys() - self._used):
                raise ExportError(
                    f"{len(unused)} layers ({unused[0]}, ...) are not called as modules, and cannot have slots for "
                    "LoRAs; export without --lora-slots, and merge LoRAs with --lora"
                )
        finally:
            self._pairs = self._weights = None
            self._cut.clear()
            self._used.clear()

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        """What follows the layer of a weight."""

        def added(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert self._weights is not None, "layers are called by the module that has the slots"
            self._used.add(name)
            down, up = self._of(given[0].dtype)[name]
            return output + low_rank(layer, given[0], down, up, self._weights.to(given[0].dtype))

        return added

    def _of(self, dtype: torch.dtype) -> Mapping[str, tuple[Tensor, Tensor]]:
        """The pairs of every layer, in a type; cast once for all layers that compute in it."""
        if dtype not in self._cut:
            assert self._pairs is not None
            spans = [span for first, second, end in self._places.values() for span in (second - first, end - second)]
            cut = iter(self._pairs.to(dtype).split(spans, 1))
            self._cut[dtype] = {name: (next(cut), next(cut)) for name in self._places}
        return self._cut[dtype]
