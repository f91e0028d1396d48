"""FLUX.1 dev, Krea and schnell: bundle against diffusers."""

from functools import partial
from pathlib import Path
from typing import Any

import factory_families as factory
import pytest
import torch
from exported import (
    CLOSE,
    INDEXING,
    NEGATIVE,
    ONE_PASS,
    PROMPT,
    SINGLE,
    THREE,
    TWO,
    Exported,
    exported,
    grey_levels,
    latents,
    operators,
    painted,
)
from loop import Case, relative, staged
from torch import Tensor
from torch.nn import functional as F

from lssgen.errors import ExportError
from lssgen.export.config import ExportConfig
from lssgen.export.export import export

pytestmark = pytest.mark.slow  # an export of half a minute, as SD and SD3 have every time

RUNS: dict[str, dict[str, Any]] = {
    "single stage": SINGLE,
    "two stages, a batch": TWO | {"guidance_scale": 3.5},
    "three stages, shortened": THREE | {"guidance_scale": 2.0},
    "a batch with a negative prompt": TWO | {"guidance_scale": 3.5, "true_cfg_scale": 2.0},
    "a size that is floored": TWO | {"height": 72, "width": 104},
    "by pixels": TWO | {"scaling_space": "pixel"},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
}


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(factory.tiny_flux, tmp_path_factory.mktemp("flux"))


@torch.no_grad()
def wanted(flux: Exported, options: dict[str, Any], seeds: tuple[int, ...]) -> Tensor:
    options = {"guidance_scale": 1.0, "true_cfg_scale": 1.0} | options
    scale, true_scale = options.pop("guidance_scale"), options.pop("true_cfg_scale")
    branches = [flux.pipe.encode_prompt(text) for text in ((NEGATIVE, PROMPT) if true_scale > 1 else (PROMPT,))]
    net = flux.pipe.transformer

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        del size
        batch, _, h, w = x.shape
        ids = torch.cartesian_prod(torch.zeros(1), torch.arange(h // 2.0), torch.arange(w // 2.0))
        tokens = F.unfold(x, 2, stride=2).transpose(1, 2)
        outputs = [
            net(
                tokens,
                text.expand(batch, -1, -1),
                pooled.expand(batch, -1),
                t / 1000,
                ids,
                text_ids,
                torch.full((batch,), scale) if net.config.guidance_embeds else None,
            ).sample
            for text, pooled, text_ids in branches
        ]
        return [F.fold(output.transpose(1, 2), (h, w), 2, stride=2) for output in outputs]

    case = Case(pipe=flux.pipe, predict=predict, channels=4, align=2, grid="even", upsampler=flux.upsampler)
    return staged(case, seeds=seeds, guidance_scale=true_scale, **options)


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(flux: Exported, name: str) -> None:
    seeds = (7, 8) if "batch" in name else (3,)
    result = painted(flux.run, RUNS[name], seeds, NEGATIVE if "negative" in name else "")
    assert relative(latents(result), wanted(flux, RUNS[name], seeds)) < CLOSE


@pytest.mark.parametrize("prompt", ["", PROMPT, "circle " * 300])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(flux: Exported, prompt: str) -> None:
    with torch.no_grad():
        text, pooled, _ = flux.pipe.encode_prompt(prompt)
    came = flux.text(prompt)
    assert relative(came["prompt_embeds"], text) < ONE_PASS
    assert relative(came["pooled_prompt_embeds"], pooled) < ONE_PASS


def test_pictures_equal_diffusers_to_a_grey_level(flux: Exported) -> None:
    result, vae = painted(flux.run, SINGLE, (5,)), flux.pipe.vae
    with torch.no_grad():
        picture = vae.decode(latents(result) / vae.config.scaling_factor + vae.config.shift_factor).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


def test_the_graph_has_no_index_arithmetic(flux: Exported) -> None:
    assert not operators(flux, "step") & INDEXING


def test_flux_refuses_to_do_without_t5(flux: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot do without"):
        export(ExportConfig(model=str(flux.folder), output=tmp_path, t5=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single stage", "two stages, a batch", "a batch with a negative prompt"])
def test_schnell_equals_a_torch_loop(schnell: Exported, name: str) -> None:
    seeds = (7, 8) if "batch" in name else (3,)
    result = painted(schnell.run, RUNS[name], seeds, NEGATIVE if "negative" in name else "")
    assert relative(latents(result), wanted(schnell, RUNS[name], seeds)) < CLOSE


@pytest.fixture(scope="session")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(partial(factory.tiny_flux, guided=False), tmp_path_factory.mktemp("schnell"))
