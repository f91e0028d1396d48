"""Inputs to try a graph with: the sizes of its axes, and seeded arrays of those sizes."""

from collections.abc import Mapping, Sequence

import numpy as np

from lssgen.ports import Array, Port

STEP: Mapping[int, float] = {0: 600.0, 1: 1.0, 3: 1.0, 4: 1.0, 6: -0.1}
"""A row of a plan in the middle of a run: label, c_in, h_f, keep and blend[0]; see `lssgen.plan.table`."""

MIX = (0.25, 0.75, 0.5)
"""Weights of a transition: of the latent, of the noise, and of the noise in the frequencies of a state that is kept."""

CONSTANTS: Mapping[str, float] = {"guidance": 3.5, "guidance_rescale": 0.5}
"""Ports that hold one number of a usual size."""


def sample_inputs(
    ports: Sequence[Port],
    axes: Mapping[str, int],
    seed: int = 0,
    *,
    vocabulary: Mapping[str, int] | None = None,
    choices: Mapping[str, tuple[float, ...]] | None = None,
) -> dict[str, Array]:
    """An array for every input port: normal numbers, ids, grey levels, and a step in the middle of a run.

    Args:
        ports: Inputs of a graph.
        axes: Size of every dynamic axis that they name.
        seed: Equal seeds give equal inputs.
        vocabulary: How many ids an integer port may choose from; 2, which suits masks too, where it is not listed.
        choices: Numbers that a floating-point port may hold; normal ones where it is not listed.
    """
    rng = np.random.default_rng(seed)
    vocabulary, choices = vocabulary or {}, choices or {}
    return {
        port.name: _sample(port, shape_of(port, axes), rng, vocabulary.get(port.name, 2), choices.get(port.name, ()))
        for port in ports
    }


def axis_sizes(
    height: int, width: int, cell_px: int, *, batch: int, branches: int, tokens: Mapping[str, int]
) -> dict[str, int]:
    """Size of every axis that a port may name.

    Args:
        height, width: Size of the latent in cells.
        cell_px: Pixels along a cell.
        batch: Number of pictures.
        branches: Number of guidance branches that a picture has.
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


def used_axes(ports: Sequence[Port], sizes: Mapping[str, int]) -> dict[str, int]:
    """Those sizes that the ports name."""
    named = dict.fromkeys(axis for port in ports for axis in port.shape if isinstance(axis, str))
    return {axis: sizes[axis] for axis in named}


def shape_of(port: Port, axes: Mapping[str, int]) -> tuple[int, ...]:
    """The port's shape with these sizes of its axes."""
    return tuple(axes[axis] if isinstance(axis, str) else axis for axis in port.shape)


def _sample(
    port: Port, shape: tuple[int, ...], rng: np.random.Generator, ids: int, choices: tuple[float, ...]
) -> Array:
    match port.name, port.dtype:
        case "row", _:
            rows = np.array([[STEP.get(column, 0.0) for column in range(shape[1])]] * shape[0], port.dtype)
            if choices:
                rows[:, -len(choices) :] = choices
            rows[:, 0] -= 50 * np.arange(shape[0])  # a graph that mixed the pictures' labels up would show
            return rows
        case "guidance_weights", _:  # they add up to one, as in a run: -1, 2 for two branches
            # Weights of both signs, as beyond 1 in real guidance: a graph that averaged its branches would show.
            weights = [-1.0] * (shape[0] - 1) + [float(shape[0])]
            return np.array([weights] * shape[1], port.dtype).T.copy()
        case "mix", _:
            return np.array([MIX[: shape[1]]] * shape[0], port.dtype)
        case "layer_gates", _:
            # One layer of the last branch left out, as skip-layer guidance does: all ones would not show a gate that is
            # ignored.
            gates = np.ones(shape, port.dtype)
            gates[-1, shape[1] // 2] = 0
            return gates
        case "lora_factors", _:
            # Of a size that factors have: normal numbers would grow from layer to layer.
            return rng.integers(-1, 2, shape, np.int8) * np.asarray(0.05, port.dtype)
        case "lora_weights", _:
            weights = np.ones(shape, port.dtype)
            weights[:, ::2] = 0.5
            weights[0, shape[1] // 2 :] = 0  # the first picture is painted without some: one for all would show
            return weights
        case name, _ if name in CONSTANTS:
            return np.full(shape, CONSTANTS[name], port.dtype)
        case _, "uint8":
            return rng.integers(0, 256, shape, np.uint8)
        case _, "int64":
            made = rng.integers(0, ids, shape)
            made[..., 0] = 1  # of a mask: its first token counts
            return made
        case _ if choices:
            return rng.choice(np.array(choices, port.dtype), shape)
        case _:
            return rng.standard_normal(shape).astype(port.dtype)
