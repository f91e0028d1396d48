"""The shell around every family's network: one call is one step of a run, from x to x'."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lssgen.ports import Port

Predict = Callable[[Tensor, Tensor], Tensor]
"""A network call: input (n, C, h, w) float32 and label (n,) float32 -> output (n, C, h, w). n = branches * batch."""


def step_ports(
    *, channels: int, history: int, conditioning: tuple[Port, ...], layers: int = 0, extra: tuple[Port, ...] = ()
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a step graph, in the order that a family's `forward` takes them.

    Args:
        channels: Of the latent.
        history: K, the estimates it carries.
        conditioning: What comes from the text graph, and the size ports.
        layers: Gates of skip-layer guidance; 0: the graph has none.
        extra: `guidance` or `guidance_rescale`, for families that have them.
    """
    shape = ("batch", channels, "height", "width")
    latent = Port("latent", "float32", shape)
    inputs = (
        latent,
        Port("history", "float32", (history, *shape)),
        Port("noise", "float32", shape),
        Port("row", "float32", (7 + history,)),
        Port("guidance_weights", "float32", ("branches",)),
        *extra,
        *conditioning,
        *([Port("layer_gates", "float32", ("branches", layers))] if layers else []),
    )
    return inputs, (Port("next_latent", "float32", shape), Port("next_history", "float32", (history, *shape)))


class Step(nn.Module):
    """Input scaling, guidance branches, guidance combination and the solver's update, around any network.

    A family subclasses this, holds its network, and gives `forward` one argument per port of the graph. The
    state and every coefficient are float32, whatever the network computes in.

    Source: docs/bundle.md, "The step graph".
    """

    def advance(
        self,
        predict: Predict,
        latent: Tensor,
        history: Tensor,
        noise: Tensor,
        row: Tensor,
        guidance_weights: Tensor,
        guidance_rescale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the network once on all branches and move.

        Args:
            predict: The network; conditioning is already inside, flattened like its input.
            latent: x, (batch, C, height, width).
            history: (K, batch, C, height, width) earlier estimates, newest first.
            noise: (batch, C, height, width).
            row: (7 + K) label, c_in, h_x, h_f, keep, noise, blend[0..K].
            guidance_weights: (branches).
            guidance_rescale: (1) phi of guidance rescale, for families that have it.

        Returns:
            next_latent, shaped like latent, and next_history, shaped like history.
        """
        label, c_in, h_x, h_f, keep, noise_weight = row[:6].unbind()
        branches, batch = guidance_weights.shape[0], latent.shape[0]
        seen = (c_in * latent).unsqueeze(0).expand(branches, -1, -1, -1, -1).flatten(0, 1)
        outputs = predict(seen, label.expand(branches * batch)).float().unflatten(0, (branches, batch))
        output = weighted_sum(guidance_weights, outputs)
        if guidance_rescale is not None:
            output = rescale_guidance(output, outputs, guidance_rescale)
        estimate = h_x * latent + h_f * output
        estimates = torch.cat((estimate.unsqueeze(0), history))
        moved = keep * latent + weighted_sum(row[6:], estimates) + noise_weight * noise
        return moved, estimates[:-1]


def weighted_sum(weights: Tensor, stack: Tensor) -> Tensor:
    """Sum over k of weights[k] * stack[k]: (n), (n, batch, C, h, w) -> (batch, C, h, w)."""
    return (weights.reshape(-1, 1, 1, 1, 1) * stack).sum(0)


def rescale_guidance(output: Tensor, outputs: Tensor, phi: Tensor) -> Tensor:
    """Pull the guided output back to the spread of the positive branch.

    The positive branch is the last of one or two; networks with guidance rescale have no skip branch.

    Source: Lin et al. 2023, arXiv:2305.08891, section 3.4; unbiased deviation per picture, as in diffusers.
    """
    axes = (1, 2, 3)
    positive = outputs[-1].std(axes, keepdim=True)
    rescaled = output * (positive / output.std(axes, keepdim=True))
    return phi * rescaled + (1 - phi) * output


def flatten_branches(conditioning: Tensor) -> Tensor:
    """(branches, batch, ...) -> (branches * batch, ...), as the network sees it."""
    return conditioning.flatten(0, 1)
