"""The shell around every network, with a network that can be seen through."""

import pytest
import torch
from torch import Tensor

from lssgen.models.nets.step import Step, rescale_guidance, step_ports


def ramp(x: Tensor, label: Tensor) -> Tensor:
    """Branch and picture number show in the output: n-th entry of the batch gives n + label + x."""
    return torch.arange(len(x)).reshape(-1, 1, 1, 1) + label.reshape(-1, 1, 1, 1) + x


def state(batch: int, history: int) -> dict[str, Tensor]:
    shape = (batch, 2, 3, 4)
    return {"latent": torch.randn(shape), "history": torch.randn(history, *shape), "noise": torch.randn(shape)}


@pytest.mark.parametrize("history", [1, 3])
def test_step_is_the_recurrence_of_its_row(history: int) -> None:
    given = state(2, history)
    blend = torch.linspace(-0.5, 0.7, 1 + history)
    row = torch.cat((torch.tensor([10.0, 0.5, 0.25, 0.75, 0.9, 0.1]), blend))
    moved, memory = Step().advance(ramp, **given, row=row, guidance_weights=torch.tensor([-1.0, 2.0]))
    pictures = torch.arange(2).reshape(-1, 1, 1, 1)
    output = -1 * (pictures + 10 + 0.5 * given["latent"]) + 2 * (2 + pictures + 10 + 0.5 * given["latent"])
    h0 = 0.25 * given["latent"] + 0.75 * output
    wanted = 0.9 * given["latent"] + blend[0] * h0 + 0.1 * given["noise"]
    for weight, estimate in zip(blend[1:], given["history"], strict=True):
        wanted = wanted + weight * estimate
    torch.testing.assert_close(moved, wanted)
    torch.testing.assert_close(memory, torch.cat((h0[None], given["history"][:-1])))


def test_state_is_float32_whatever_the_network_computes_in() -> None:
    row = torch.tensor([500.3, 1.0, 0, 1.0, 1.0, 0, -1.0, 0])
    seen: list[torch.dtype] = []

    def half(x: Tensor, label: Tensor) -> Tensor:
        seen.append(label.dtype)
        return x.half()

    moved, memory = Step().advance(half, **state(1, 1), row=row, guidance_weights=torch.ones(1))
    assert (moved.dtype, memory.dtype, seen) == (torch.float32, torch.float32, [torch.float32])


def test_rescaled_guidance_has_the_spread_of_the_positive_branch() -> None:
    outputs = torch.randn(2, 3, 4, 8, 8)
    guided = outputs[0] + 7 * (outputs[1] - outputs[0])
    rescaled = rescale_guidance(guided, outputs, torch.ones(1))
    torch.testing.assert_close(rescaled.std((1, 2, 3)), outputs[1].std((1, 2, 3)))
    torch.testing.assert_close(rescale_guidance(guided, outputs, torch.zeros(1)), guided)


def test_ports_are_the_arguments_in_order() -> None:
    inputs, outputs = step_ports(channels=4, history=2, conditioning=(), layers=3)
    names = [port.name for port in inputs]
    assert names == ["latent", "history", "noise", "row", "guidance_weights", "layer_gates"]
    assert inputs[3].shape == (9,)
    assert [port.name for port in outputs] == ["next_latent", "next_history"]
