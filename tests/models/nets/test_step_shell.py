"""The shell around every network, with a network that can be seen through."""

import pytest
import torch
from torch import Tensor

from lssgen.models.nets.recipe import Wishes
from lssgen.models.nets.step import Step, rescale_guidance, sizes, step_recipe, text


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
    moved, memory = Step().advance(
        ramp, **given, row=row.expand(2, -1), guidance_weights=torch.tensor([[-1.0, -1.0], [2.0, 2.0]])
    )
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

    moved, memory = Step().advance(half, **state(1, 1), row=row[None], guidance_weights=torch.ones(1, 1))
    assert (moved.dtype, memory.dtype, seen) == (torch.float32, torch.float32, [torch.float32])


def test_rescaled_guidance_has_the_spread_of_the_positive_branch() -> None:
    outputs = torch.randn(2, 3, 4, 8, 8)
    guided = outputs[0] + 7 * (outputs[1] - outputs[0])
    rescaled = rescale_guidance(guided, outputs, torch.ones(3))
    torch.testing.assert_close(rescaled.std((1, 2, 3)), outputs[1].std((1, 2, 3)))
    torch.testing.assert_close(rescale_guidance(guided, outputs, torch.zeros(3)), guided)


def test_every_picture_of_a_batch_has_its_own_row_and_guidance() -> None:
    given = state(3, 2)
    rows, weights, phi = torch.randn(3, 9), torch.randn(2, 3), torch.tensor([0.0, 0.5, 1.0])
    together = Step().advance(shifted, **given, row=rows, guidance_weights=weights, guidance_rescale=phi)
    for index in range(3):
        one = slice(index, index + 1)
        mine = {"latent": given["latent"][one], "history": given["history"][:, one], "noise": given["noise"][one]}
        alone = Step().advance(
            shifted, **mine, row=rows[one], guidance_weights=weights[:, one], guidance_rescale=phi[one]
        )
        assert torch.equal(together[0][one], alone[0])
        assert torch.equal(together[1][:, one], alone[1])


def shifted(x: Tensor, label: Tensor) -> Tensor:
    """A network that treats every picture alike, whatever its company."""
    return torch.tanh(x) + label.reshape(-1, 1, 1, 1)


def test_inputs_come_in_the_order_of_the_arguments_each_with_its_source() -> None:
    wishes = Wishes(channels=4, history=2, skip_layers=True, skipped=(1,))
    fed = (text("words", "tokens", 8), sizes("told", "height_px", "width_px"))
    recipe = step_recipe("transformer", lambda _: Step(), wishes=wishes, fed=fed, layers=3)
    names = ["latent", "history", "noise", "row", "guidance_weights", "words", "told", "layer_gates"]
    assert [port.name for port in recipe.inputs] == list(recipe.feeds) == names
    assert recipe.inputs[3].shape == ("batch", 9)
    assert [port.name for port in recipe.outputs] == ["next_latent", "next_history"]
    assert recipe.axes == {
        "batch": "batch", "branches": "branches", "height": "height", "tokens": "tokens", "width": "width"
    }  # fmt: skip


def test_without_skip_layer_guidance_a_step_has_no_gates() -> None:
    recipe = step_recipe("transformer", lambda _: Step(), wishes=Wishes(channels=4), fed=(), layers=3)
    assert "layer_gates" not in recipe.feeds
