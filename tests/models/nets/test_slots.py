"""Slots for LoRAs in every family's step: they add what merging adds, picture by picture, and nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factory import tiny_sd3
from factory_chroma import tiny_chroma
from factory_families import tiny_cogview4, tiny_flux, tiny_sd, tiny_sdxl
from factory_flux2 import tiny_klein
from factory_qwen import tiny_qwen, tiny_qwen21
from factory_zimage import tiny_zimage
from slotting import lora_for, relative
from torch import nn

from lssgen.errors import ExportError
from lssgen.export.config import ExportConfig
from lssgen.export.export import Design, design
from lssgen.export.on_demand import weights_on_demand
from lssgen.export.probe import torch_inputs
from lssgen.lora.asked import Lora
from lssgen.lora.packed import Slots, pack
from lssgen.manifest import LoraFactors, LoraWeights, SlotLayers
from lssgen.models.nets.recipe import Recipe
from lssgen.models.nets.slots import FACTORS, WEIGHTS, slotted
from lssgen.parity.samples import axis_sizes
from lssgen.ports import Array

CHECKPOINTS: Mapping[str, Callable[[Path], Path]] = {
    "sd": tiny_sd,
    "sdxl": tiny_sdxl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "cogview4": tiny_cogview4,
    "flux2": tiny_klein,
    "zimage": tiny_zimage,
    "chroma": tiny_chroma,
    "qwen": tiny_qwen,
    "qwen21": tiny_qwen21,
}
SLOTS, RANK = 2, 3


def outline_of(folder: Path, loras: tuple[Lora, ...] = (), slots: int = SLOTS, layers: SlotLayers = "all") -> Design:
    config = ExportConfig(model=str(folder), output=folder / "bundle", resolutions=((64, 64),), loras=loras)
    return design(replace(config, lora_slots=slots, lora_rank=RANK, lora_layers=layers) if slots else config)


def step_of(outline: Design) -> Recipe:
    (found,) = (recipe for recipe in outline.recipes if recipe.name == "step")
    return found


def computed(outline: Design, inputs: Mapping[str, torch.Tensor]) -> Array:
    """(batch, C, h, w) next latents by a step's module."""
    from lssgen.export.checkpoint import Parts

    recipe = step_of(outline)
    module = recipe.build(Parts(outline.model.checkpoint, torch.float32)).eval()
    with torch.no_grad(), weights_on_demand(module, outline.model.checkpoint.weights(recipe.components)) as exact:
        return exact(*(inputs[port.name] for port in recipe.inputs))[0].numpy()


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_a_picture_with_a_lora_is_that_of_the_merged_weights_and_its_neighbour_is_not_touched(
    family: str, tmp_path: Path
) -> None:
    folder = CHECKPOINTS[family](tmp_path / "checkpoint")
    outline = outline_of(folder)
    recipe = step_of(outline)
    factors = recipe.feeds[FACTORS]
    assert isinstance(factors, LoraFactors)
    file = lora_for(factors.layers, tmp_path / "style.safetensors", RANK)
    sizes = axis_sizes(
        16, 24, outline.facts.cell_px, batch=2, branches=2, tokens=outline.blueprint.token_axes
    )  # fmt: skip
    inputs = torch_inputs(recipe, sizes)
    rows = torch.zeros_like(inputs[FACTORS])
    rows[1 : 1 + RANK] = torch.from_numpy(pack(file, {"step": Slots(factors, "fp32")}, SLOTS * RANK).rows["step"])
    weights = torch.zeros_like(inputs[WEIGHTS])
    weights[1, 1 : 1 + RANK] = 0.7
    got = computed(outline, {**inputs, FACTORS: rows, WEIGHTS: weights})
    plain = computed(outline_of(folder, slots=0), inputs)
    merged = computed(outline_of(folder, (Lora(file, 0.7),), slots=0), inputs)
    assert relative(merged, plain) > 1e-2, "the LoRA matters"
    # To the bit, but where all pictures share a row (Qwen-Image 2.1's modulation of text, which is told t = 0): with a
    # LoRA in it every picture has its own, and float32 sums of more rows come in another order.
    assert relative(got[0], plain[0]) <= (1e-6 if family == "qwen21" else 0)
    # float32 sums in another order: W x + B (A x) in place of (W + B A) x.
    assert relative(got[1], merged[1]) < 1e-5


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_every_matrix_of_the_network_has_slots_and_wide_convolutions_where_asked_for(
    family: str, tmp_path: Path
) -> None:
    from lssgen.export.checkpoint import Parts

    folder = CHECKPOINTS[family](tmp_path / "checkpoint")
    outline = outline_of(folder, slots=0)
    module = step_of(outline).build(Parts(outline.model.checkpoint, torch.float32))
    matrices = {f"{name}.weight" for name, one in module.named_modules() if isinstance(one, nn.Linear)}
    wide = {f"{name}.weight" for name, _ in slotted(module, "all")} - {
        f"{name}.weight" for name, _ in slotted(module, "linear")
    }
    few, all_ = (step_of(outline_of(folder, layers=layers)).feeds[FACTORS] for layers in ("linear", "all"))
    assert isinstance(few, LoraFactors)
    assert isinstance(all_, LoraFactors)
    assert matrices <= few.layers.keys()
    assert all(shape[2:] in ((), (1, 1)) for shape in few.layers.values())
    assert all_.layers.keys() == few.layers.keys() | wide
    assert bool(wide) == (family in ("sd", "sdxl"))


def test_an_infinity_in_a_neighbours_lora_stays_with_it() -> None:
    from lssgen.models.nets.slots import low_rank

    layer = nn.Linear(2, 2)
    down, up = torch.tensor([[torch.inf, 1.0], [1.0, 1.0]]), torch.ones(2, 2)
    weights = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    added = low_rank(layer, torch.ones(2, 3, 2), down, up, weights)
    torch.testing.assert_close(added[0], torch.full((3, 2), 4.0))
    assert not torch.isfinite(added[1]).any()


def test_a_layer_that_is_not_called_as_a_module_is_refused() -> None:
    from lssgen.models.nets.recipe import Recipe
    from lssgen.models.nets.slots import with_slots
    from lssgen.ports import Port

    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
            return x @ self.layer.weight + branches.sum()

    recipe = Recipe(
        name="step",
        components=("layer",),
        inputs=(Port("x", "float32", ("batch", 2)), Port("guidance_weights", "float32", ("branches", "batch"))),
        outputs=(Port("y", "float32", ("batch", 2)),),
        build=lambda _: Bypassed(),
        runs="stage",
    )
    slots = with_slots(recipe, None, 2, "linear")  # type: ignore[arg-type]
    assert [type(feed) for feed in slots.feeds.values()] == [LoraFactors, LoraWeights]
    with pytest.raises(ExportError, match=r"1 layers \(layer\.weight, \.\.\.\) are not called as modules"):
        slots.build(None)(torch.ones(1, 2), torch.ones(1, 1), torch.ones(2, 4), torch.ones(1, 2))  # type: ignore[arg-type]
