"""The shell around every family's network: one call is one step of a run, from x to x'."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lssgen.manifest import (
    Feed,
    Gates,
    GuidanceRescale,
    GuidanceScale,
    GuidanceWeights,
    Noise,
    Reference,
    Row,
    Sizes,
    SizeValue,
    State,
    Text,
)
from lssgen.models.nets.recipe import Components, Recipe, Wishes
from lssgen.ports import Port

Predict = Callable[[Tensor, Tensor], Tensor]
"""A network call: input (n, C, h, w) float32 and label (n,) float32 -> output (n, C, h, w). n = branches * batch."""


Fed = tuple[Port, Feed]
"""An input of a step, and where its value comes from."""


def text(name: str, *shape: int | str) -> Fed:
    """Conditioning by the output of that name of the text graph; shape of one picture's in one branch."""
    return Port(name, "float32", ("branches", "batch", *shape)), Text(output=name)


def sizes(name: str, *values: SizeValue) -> Fed:
    """Conditioning on these sizes."""
    return Port(name, "float32", ("branches", "batch", len(values))), Sizes(values=values)


REFERENCES = "reference_tokens"
"""Axis that counts the tokens of reference pictures."""

GUIDANCE: Fed = (Port("guidance", "float32", ("batch",)), GuidanceScale())
"""The scale itself, for networks that take it."""

RESCALE: Fed = (Port("guidance_rescale", "float32", ("batch",)), GuidanceRescale())
"""The share phi of guidance rescale."""


def references(width: int) -> tuple[Fed, ...]:
    """Reference pictures: tokens of so many numbers, and their places."""
    return (
        (Port("references", "float32", ("batch", REFERENCES, width)), Reference(what="tokens")),
        (Port("reference_places", "int64", (REFERENCES, 3)), Reference(what="places")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a step takes besides what its family's does.

    Attributes:
        components: Parts of the checkpoint whose weights the graph holds, too.
        fed: Inputs, after the family's.
        columns: Number of columns of the row after those of the history.
    """

    components: tuple[str, ...] = ()
    fed: tuple[Fed, ...] = ()
    columns: int = 0

    @property
    def sample(self) -> tuple[float, ...]:
        """Those columns in a probe: zeros would hide what they turn off."""
        return (0.7, *(0.0,) * (self.columns - 2), 1.0)[: self.columns]


NOTHING = Beside()


def step_recipe(
    network: str,
    build: Callable[[Components], nn.Module],
    *,
    wishes: Wishes,
    fed: Sequence[Fed],
    layers: int = 0,
    choices: Mapping[str, tuple[float, ...]] | None = None,
    beside: Beside = NOTHING,
) -> Recipe:
    """The "step" graph of a family.

    Args:
        network: Part of the checkpoint that holds the network.
        build: The module; its `forward` takes the ports in their order.
        wishes: Channels of the latent, history, and whether there are gates.
        fed: Inputs of the family: text, sizes, guidance.
        layers: Number of gates of skip-layer guidance; they come last, and only where they are wished for.
        choices: As in `Recipe`.
        beside: Whatever else goes in.
    """
    shape = ("batch", wishes.channels, "height", "width")
    history = Port("history", "float32", (wishes.history, *shape))
    state: list[Fed] = [
        (Port("latent", "float32", shape), State(output="next_latent", start="latent")),
        (history, State(output="next_history")),
        (Port("noise", "float32", shape), Noise()),
        (Port("row", "float32", ("batch", 7 + wishes.history + beside.columns)), Row()),
        (Port("guidance_weights", "float32", ("branches", "batch")), GuidanceWeights()),
    ]
    gates: list[Fed] = [(Port("layer_gates", "float32", ("branches", layers)), Gates(skipped=wishes.skipped))]
    inputs = [*state, *fed, *beside.fed, *(gates if wishes.skip_layers and layers else [])]
    return Recipe(
        name="step",
        components=(network, *beside.components),
        inputs=tuple(port for port, _ in inputs),
        outputs=(Port("next_latent", "float32", shape), Port("next_history", "float32", history.shape)),
        build=build,
        runs="stage",
        feeds={port.name: feed for port, feed in inputs},
        choices={**(choices or {}), **({"row": beside.sample} if beside.columns else {})},
    )


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

        Every picture of the batch has its own row and its own guidance, so that neighbours may be at unlike steps of
        unlike schedules.

        Args:
            predict: The network; conditioning is already inside, flattened like its input.
            latent: x, (batch, C, height, width).
            history: (K, batch, C, height, width) earlier estimates, newest first.
            noise: (batch, C, height, width).
            row: (batch, 7 + K) label, c_in, h_x, h_f, keep, noise, blend[0..K].
            guidance_weights: (branches, batch).
            guidance_rescale: (batch) phi of guidance rescale, for families that have it.

        Returns:
            next_latent, shaped like latent, and next_history, shaped like history.
        """
        c_in, h_x, h_f, keep, noise_weight = (column.reshape(-1, 1, 1, 1) for column in row[:, 1:6].unbind(1))
        branches, batch = guidance_weights.shape[0], latent.shape[0]
        seen = (c_in * latent).unsqueeze(0).expand(branches, -1, -1, -1, -1).flatten(0, 1)
        # Branches vary slowest, as in `flatten_branches`.
        label = row[:, 0].unsqueeze(0).expand(branches, -1).flatten(0, 1)
        # float before the branches are subtracted, whose difference guidance multiplies, with its rounding.
        outputs = predict(seen, label).float().unflatten(0, (branches, batch))
        output = self.settled(weighted_sum(guidance_weights, outputs), outputs)
        if guidance_rescale is not None:
            output = rescale_guidance(output, outputs, guidance_rescale)
        estimate = h_x * latent + h_f * output
        estimates = torch.cat((estimate.unsqueeze(0), history))
        moved = keep * latent + weighted_sum(row[:, 6:].transpose(0, 1), estimates) + noise_weight * noise
        return moved, estimates[:-1]

    def settled(self, output: Tensor, outputs: Tensor) -> Tensor:
        """What becomes of the guided output, where a family's guidance does more than weigh its branches.

        Args:
            output: (batch, C, height, width) float32, the weighted sum of the branches.
            outputs: (branches, batch, C, height, width) float32 of every branch, the positive one last.
        """
        del outputs
        return output


def weighted_sum(weights: Tensor, stack: Tensor) -> Tensor:
    """Sum over k of weights[k] * stack[k], picture by picture: (n, batch), (n, batch, C, h, w) -> (batch, C, h, w)."""
    return (weights[:, :, None, None, None] * stack).sum(0)


def rescale_guidance(output: Tensor, outputs: Tensor, phi: Tensor) -> Tensor:
    """Pull the guided output back to the spread of the positive branch.

    The positive branch is the last of one or two; networks with guidance rescale have no skip branch.

    Args:
        output: (batch, C, h, w) after guidance.
        outputs: (branches, batch, C, h, w) of every branch.
        phi: (batch) share of the rescaled output.

    Source: Lin et al. 2023, arXiv:2305.08891, section 3.4; unbiased deviation per picture, as in diffusers.
    """
    axes = (1, 2, 3)
    positive = outputs[-1].std(axes, keepdim=True)
    rescaled = output * (positive / output.std(axes, keepdim=True))
    phi = phi.reshape(-1, 1, 1, 1)
    return phi * rescaled + (1 - phi) * output


def flatten_branches(conditioning: Tensor) -> Tensor:
    """(branches, batch, ...) -> (branches * batch, ...), as the network sees it."""
    return conditioning.flatten(0, 1)


def per_picture(value: Tensor, branches: int) -> Tensor:
    """(batch, ...) -> (branches * batch, ...): the same in every branch."""
    return value.unsqueeze(0).expand(branches, *(-1 for _ in value.shape)).flatten(0, 1)
