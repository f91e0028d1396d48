"""Inputs for a graph that is being made: the sizes of its axes, and seeded tensors of those sizes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lssgen.models.nets.recipe import Recipe
from lssgen.parity import samples
from lssgen.ports import Port


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
    """A tensor for every input port of a recipe, as `lssgen.parity.samples` makes them."""
    made = samples.sample_inputs(recipe.inputs, sizes, seed, vocabulary=recipe.vocabulary, choices=recipe.choices)
    return {name: torch.from_numpy(value) for name, value in made.items()}
