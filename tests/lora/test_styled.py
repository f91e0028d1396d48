"""A LoRA goes into a bundle's weights as an export would merge it, without the checkpoint and without torch."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import load_external_data_for_model
from safetensors.numpy import save_file

from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle, verify
from lssgen.errors import BundleError, ModelError
from lssgen.lora.asked import Lora
from lssgen.lora.placed import placed_weights
from lssgen.lora.styled import styled
from lssgen.ports import Array

QUERY = "transformer.transformer_blocks.0.attn.to_q"
CLIP = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
PATCH = "transformer.pos_embed.proj"


def factors(bundle: Bundle, module: str, rank: int = 2, seed: int = 0) -> tuple[Array, Array]:
    """(rank, in, ...) and (out, rank, 1, ...) float32 factors for a weight of the bundle."""
    out, *inside = placed_weights(bundle)[f"{module}.weight"][0].shape
    draw = np.random.default_rng(seed).standard_normal
    up = draw((out, rank, *[1] * (len(inside) - 1)), np.float32)
    return draw((rank, *inside), np.float32), up


def lora_file(folder: Path, tensors: Mapping[str, Array], header: Mapping[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "style.safetensors", dict(header or {}))
    return folder / "style.safetensors"


def weight(bundle: Bundle, name: str) -> Array:
    """A weight as the graph has it, by ONNX's own reader, in the checkpoint's order."""
    placed = placed_weights(bundle)[name][0]
    entry = bundle.manifest.graphs[placed.graph]
    model = onnx.load(bundle.path(entry.file), load_external_data=False)
    load_external_data_for_model(model, str(bundle.folder))
    (value,) = (onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name == name)
    return value.T if placed.transposed else value


def kohya(module: str) -> str:
    component, _, rest = module.partition(".")
    return {"transformer": "lora_unet_", "text_encoder": "lora_te1_"}[component] + rest.replace(".", "_")


LAYOUTS = {
    "peft": lambda module: (f"{module}.lora_A.weight", f"{module}.lora_B.weight"),
    "peft raw": lambda module: (
        f"base_model.model.{module}.lora_A.default.weight",
        f"base_model.model.{module}.lora_B.default.weight",
    ),
    "diffusers old": lambda module: (f"{module}.lora.down.weight", f"{module}.lora.up.weight"),
    "kohya": lambda module: (f"{kohya(module)}.lora_down.weight", f"{kohya(module)}.lora_up.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("module", [QUERY, CLIP, PATCH])
def test_a_lora_adds_its_product_under_every_name(demo: Bundle, tmp_path: Path, layout: str, module: str) -> None:
    down, up = factors(demo, module)
    file = lora_file(tmp_path / "lora", dict(zip(LAYOUTS[layout](module), (down, up), strict=True)))
    made = styled(demo, Lora(file, 0.5), tmp_path / "styles")
    before = weight(demo, f"{module}.weight")
    added = 0.5 * np.einsum("or,r...->o...", up.reshape(len(up), -1), down)
    # float32 sums of two products, in another order.
    np.testing.assert_allclose(weight(made, f"{module}.weight"), before + added, atol=1e-5)
    other = "transformer.transformer_blocks.1.attn.to_q.weight"
    np.testing.assert_array_equal(weight(made, other), weight(demo, other))


def test_a_bundle_is_what_an_export_of_the_checkpoint_with_the_lora_holds(
    sd3: Path, sd3_bundle: Bundle, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    from lssgen.export.checkpoint import Checkpoint

    parts = ("transformer", "text_encoder")
    file = lora_file(
        tmp_path / "lora",
        {
            f"{module}.{part}": value
            for module in (QUERY, CLIP)
            for part, value in zip(
                ("lora_down.weight", "lora_up.weight", "alpha"),
                (*factors(sd3_bundle, module, 4), np.full((), 3, np.float32)),
                strict=True,
            )
        },
    )
    assert load_file(file)
    made = styled(sd3_bundle, Lora(file, -0.7), tmp_path / "styles")
    weights = Checkpoint(sd3).with_loras([Lora(file, -0.7)], parts, "transformer").weights(parts)
    for module in (QUERY, CLIP):
        name = f"{module}.weight"
        expected = weights.tensor(name, torch.float32).numpy()
        # float32 sums of four products, in another order.
        np.testing.assert_allclose(weight(made, name), expected, atol=1e-5)
    notes = [note for note in made.manifest.notes if "LoRA" in note]
    assert notes == ["LoRA style.safetensors is merged in with strength -0.7."]


def test_only_weights_change_and_the_bundle_it_came_from_stays(demo: Bundle, tmp_path: Path) -> None:
    base = read_bundle(copytree(demo.folder, tmp_path / "demo"))
    before = {path.name: path.read_bytes() for path in base.folder.iterdir()}
    down, up = factors(base, QUERY)
    file = lora_file(tmp_path / "lora", dict(zip(LAYOUTS["peft"](QUERY), (down, up), strict=True)))
    made = styled(base, Lora(file), tmp_path / "styles")
    verify(made)
    assert {path.name: path.read_bytes() for path in base.folder.iterdir()} == before
    differing = {name for name in before if made.path(name).read_bytes() != before[name]}
    assert differing == {"step.data", MANIFEST}
    assert made.manifest.graphs["step"].key != base.manifest.graphs["step"].key
    assert made.manifest.graphs["decode"] == base.manifest.graphs["decode"]
    written = made.path(MANIFEST).stat().st_mtime_ns
    assert styled(base, Lora(file), tmp_path / "styles").folder == made.folder
    assert made.path(MANIFEST).stat().st_mtime_ns == written
    assert styled(base, Lora(file, 0.5), tmp_path / "styles").folder != made.folder


def test_a_strength_of_zero_changes_no_weight(demo: Bundle, tmp_path: Path) -> None:
    file = lora_file(tmp_path / "lora", dict(zip(LAYOUTS["peft"](QUERY), factors(demo, QUERY), strict=True)))
    made = styled(demo, Lora(file, 0.0), tmp_path / "styles")
    assert made.path("step.data").read_bytes() == demo.path("step.data").read_bytes()


@pytest.mark.parametrize(
    ("header", "strength", "noted"),
    [({}, 1.0, "does not say its alpha"), ({"lora_alpha": "1"}, 0.5, ""), ({"ss_network_alpha": "4"}, 2.0, "")],
)
def test_the_strength_is_alpha_by_rank_wherever_it_is_said(
    demo: Bundle, tmp_path: Path, header: dict[str, str], strength: float, noted: str
) -> None:
    down, up = factors(demo, QUERY)
    file = lora_file(tmp_path / "lora", dict(zip(LAYOUTS["kohya"](QUERY), (down, up), strict=True)), header)
    made = styled(demo, Lora(file), tmp_path / "styles")
    name = f"{QUERY}.weight"
    np.testing.assert_allclose(weight(made, name), weight(demo, name) + strength * up @ down, atol=1e-5)
    assert any(noted in note for note in made.manifest.notes if "alpha" in note) == bool(noted)


def test_pefts_folder_says_its_strength(demo: Bundle, tmp_path: Path) -> None:
    down, up = factors(demo, QUERY)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(dict(zip(LAYOUTS["peft raw"](QUERY), (down, up), strict=True)), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    made = styled(demo, Lora(folder), tmp_path / "styles")
    name = f"{QUERY}.weight"
    np.testing.assert_allclose(weight(made, name), weight(demo, name) + 3 * up @ down, atol=1e-4)


# --- Refusals ---------------------------------------------------------------------------------------------------------

DOWN, UP = np.ones((2, 160), np.float32), np.ones((160, 2), np.float32)
PAIR = dict(zip(LAYOUTS["peft"](QUERY), (DOWN, UP), strict=True))
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({}, "cannot be read as a LoRA"),
    "another model": (dict(zip(LAYOUTS["peft"]("unet.down.0"), (DOWN, UP), strict=True)), "does not fit this bundle"),
    "another size": ({**PAIR, f"{QUERY}.lora_A.weight": DOWN[:, :7]}, "is for another model"),
    "factors": ({**PAIR, f"{QUERY}.lora_B.weight": UP[:, :1]}, "do not multiply"),
    "half": ({f"{QUERY}.lora_A.weight": DOWN}, "more than low-rank sums"),
    "DoRA": ({**PAIR, f"{QUERY}.lora_magnitude_vector.weight": np.ones(160, np.float32)}, "export the checkpoint with"),
    "LoHa": ({f"{QUERY}.hada_w1_a": DOWN}, "is a LoHa"),
    "NaN": ({**PAIR, f"{QUERY}.lora_A.weight": DOWN * np.nan}, "damaged"),
    "whole numbers": ({**PAIR, f"{QUERY}.lora_A.weight": DOWN.astype(np.int32)}, "damaged"),
    "too strong": ({**PAIR, f"{QUERY}.lora_A.weight": DOWN * 1e38, f"{QUERY}.lora_B.weight": UP * 1e38}, "too large"),
    "alpha": ({**PAIR, f"{QUERY}.alpha": np.ones(3, np.float32)}, "expected one number"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(demo: Bundle, tmp_path: Path, bad: str) -> None:
    tensors, said = BAD[bad]
    with pytest.raises(ModelError, match=said) as error:
        styled(demo, Lora(lora_file(tmp_path / "lora", tensors)), tmp_path / "styles")
    assert "\n" not in str(error.value)
    assert [path for path in (tmp_path / "styles").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"version https://git-lfs.github.com/spec/v1\n" * 3])
def test_a_damaged_file_is_refused(demo: Bundle, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "style.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as a LoRA"):
        styled(demo, Lora(tmp_path / "style.safetensors"), tmp_path / "styles")


def test_files_that_are_not_there_or_pickled_are_refused(demo: Bundle, tmp_path: Path) -> None:
    (tmp_path / "style.ckpt").write_bytes(b"x")
    for name, said in (("none.safetensors", "there is no LoRA"), ("style.ckpt", "is pickled")):
        with pytest.raises(ModelError, match=said):
            styled(demo, Lora(tmp_path / name), tmp_path / "styles")


def test_a_quantised_bundle_is_refused(demo: Bundle, tmp_path: Path) -> None:
    from dataclasses import replace

    from lssgen.manifest import Quantisation

    folder = copytree(demo.folder, tmp_path / "int8")
    step = replace(
        demo.manifest.graphs["step"], quantisation=Quantisation(format="int8", engine="onnxruntime", products=1)
    )
    manifest = replace(demo.manifest, graphs={**demo.manifest.graphs, "step": step})
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    with pytest.raises(BundleError, match="is quantised"):
        styled(read_bundle(folder), Lora(lora_file(tmp_path / "lora", PAIR)), tmp_path / "styles")


def test_a_graph_that_points_out_of_its_data_is_refused(demo: Bundle, tmp_path: Path) -> None:
    folder = copytree(demo.folder, tmp_path / "cut")
    os.truncate(folder / "step.data", 1000)
    with pytest.raises(BundleError, match=r"does not lie in step\.data"):
        styled(read_bundle(folder), Lora(lora_file(tmp_path / "lora", PAIR)), tmp_path / "styles")


def test_a_kill_leaves_no_half_bundle(demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lssgen.lora import styled as module

    file = lora_file(tmp_path / "lora", PAIR)
    with monkeypatch.context() as patch:
        patch.setattr(module, "manifest_json", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            styled(demo, Lora(file), tmp_path / "styles")
    verify(styled(demo, Lora(file), tmp_path / "styles"))


def test_it_needs_no_torch() -> None:
    code = "import sys, lssgen.lora.styled, lssgen.lora.deltas; print({'torch', 'diffusers', 'onnx'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
