"""Inputs for a graph: the sizes of its axes, and seeded tensors of those sizes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lssgen.engines.base import Port
from lssgen.models.nets.recipe import Recipe


def axis_sizes(
    height: int, width: int, cell_px: int, *, batch: int, branches: int, tokens: Mapping[str, int]
) -> dict[str, int]:
    """Size of every axis that a port may name.

    Args:
        height, width: Of the latent, in cells.
        cell_px: Pixels along a cell.
        batch, branches: As they say.
        tokens: Sizes of the axes that count tokens.
    """
    return {
        "batch": batch,
        "branches": branches,
        "height": height,
        "width": width,
        "next_height": 2 * height,
        "next_width": 2 * width,
        "picture_height": cell_px * height,
        "picture_width": cell_px * width,
        **tokens,
    }


def used_axes(ports: tuple[Port, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """Those sizes that the ports name."""
    named = dict.fromkeys(axis for port in ports for axis in port.shape if isinstance(axis, str))
    return {axis: sizes[axis] for axis in named}


def sample_inputs(recipe: Recipe, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """A tensor for every input port: normal numbers, ids, grey levels, and a step in the middle of a run.

    Args:
        recipe: Of the graph.
        sizes: Of its axes; every axis an input names must be there.
        seed: Equal seeds give equal inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    return {port.name: _sample(port, recipe, sizes, generator) for port in recipe.inputs}


def _sample(port: Port, recipe: Recipe, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.shape]
    match port.name, port.dtype:
        case "row", _:
            columns = {0: 600.0, 1: 1.0, 3: 1.0, 4: 1.0, 6: -0.1}  # label, c_in, h_f, keep, blend[0]
            return torch.tensor([columns.get(at, 0.0) for at in range(shape[0])])
        case "guidance_weights", _:
            # Weights add up to one, as in a run: -1, 2 for two branches.
            return torch.tensor([-1.0] * (shape[0] - 1) + [float(shape[0])])
        case "guidance", _:
            return torch.full(shape, 3.5)
        case "guidance_rescale", _:
            return torch.full(shape, 0.5)
        case "mix", _:
            return torch.tensor([0.25, 0.75])
        case "layer_gates", _:
            gates = torch.ones(shape)
            gates[-1, shape[1] // 2] = 0
            return gates
        case _, "uint8":
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        case _, "int64":
            high = recipe.vocabulary.get(port.name, 2)
            return torch.randint(0, high, shape, generator=generator)
        case name, _ if name in recipe.choices:
            choices = torch.tensor(recipe.choices[name])
            return choices[torch.randint(0, len(choices), shape, generator=generator)]
        case _:
            return torch.randn(shape, generator=generator)
