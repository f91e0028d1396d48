"""Engines whose weights are exchanged, on doubles: TensorRT's own refit has not been run."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from attention import write_graph
from cuda_double import CudaDouble
from machine import Machine, Make
from safetensors.numpy import load_file, save_file

from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle
from lssgen.engines import cuda as cuda_module
from lssgen.engines.demand import Demand
from lssgen.engines.onnxruntime import OrtBackend, OrtOptions
from lssgen.engines.trt.cache import Entry
from lssgen.engines.trt.library import Flavour
from lssgen.engines.trt.options import BuildOptions
from lssgen.engines.trt.order import Order, build_engines
from lssgen.engines.trt.refit import allowed, structure_of
from lssgen.errors import BackendError, BuildError
from lssgen.manifest import Precision, Probe

STEP = """
<ir_version: 10, opset_import: ["" : 22]>
step (float[batch,4,height,width] latent) => (float[batch,4,height,width] next_latent) {
  x = Cast<to=TYPE>(latent)
  y = Conv<kernel_shape=[1,1]>(x, kernel, bias)
  one = Constant<value_float=1.0>()
  one_t = CastLike(one, y)
  z = Add(y, one_t)
  next_latent = Cast<to=1>(z)
}
"""
WEIGHTS = {"kernel": (4, 4, 1, 1), "bias": (4,)}
Style = Callable[..., Bundle]


@pytest.fixture
def machine(make: Make) -> Machine:
    """Its order asks for engines that can be refitted."""
    return refittable(make(built=False))


@pytest.fixture
def style(toy: Path, tmp_path: Path) -> Style:
    """Makes bundles of one graph that differ in their weights, as LoRAs make them; `bias` is its size."""

    def made(name: str, *, precision: Precision = "fp32", text: str = STEP, bias: float = 1.0) -> Bundle:
        folder = tmp_path / name
        folder.mkdir()
        step = write_graph(folder, name, text, WEIGHTS, precision, seed=ord(name))
        numbers = np.fromfile(folder / step.data[0], np.float32 if precision == "fp32" else np.float16)
        numbers[-4:] = np.arange(1, 5) * bias
        numbers.tofile(folder / step.data[0])
        manifest = replace(read_bundle(toy).manifest, graphs={"step": step}, tokenizers=())
        (folder / MANIFEST).write_bytes(manifest_json(manifest))
        return Bundle(folder, manifest)

    return made


def refittable(machine: Machine, *, streaming: bool = False) -> Machine:
    machine.order = replace(machine.order, options=BuildOptions(refit=True, weight_streaming=streaming))
    return machine


def built(machine: Machine, bundle: Bundle) -> Entry:
    return build_engines(bundle, machine.order)["step"]


def plan(entry: Entry) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(entry.plan.read_bytes())
    return said


@pytest.mark.parametrize(("flavour", "streaming"), [("tensorrt-rtx", False), ("tensorrt", False), ("tensorrt", True)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_of_other_weights_is_a_copy_with_these(
    make: Make, style: Style, flavour: Flavour, streaming: bool, precision: Precision
) -> None:
    machine = refittable(make(flavour, built=False), streaming=streaming)
    first, second = (built(machine, style(name, precision=precision)) for name in "ab")
    assert (first.report.refitted_from, second.report.refitted_from) == ("", first.key)
    assert Path(plan(second)["onnx"]).name == "b.onnx"
    assert second.report.probes[0].error <= second.report.probes[0].bound < first.report.probes[0].bound


def test_a_report_says_what_was_refitted_from_what_and_how_well(machine: Machine, style: Style) -> None:
    first, second = (built(machine, style(name, precision="fp16")) for name in "ab")
    assert f"; refitted from {first.key}; " in str(second.report)
    assert str(second.report).endswith(" from ONNX Runtime")


def test_what_is_refitted_runs(machine: Machine, style: Style) -> None:
    built(machine, style("a"))
    machine.bundle = style("b")
    expected, ran = run(machine, OrtBackend(OrtOptions(threads=1))), run(machine, machine.backend())
    np.testing.assert_array_equal(ran, expected)  # the double computes with ONNX Runtime


def run(machine: Machine, backend: Any) -> Any:
    network = backend.open(machine.bundle, Demand())["step"]
    ins, outs = (backend.empty((1, 4, 4, 4), "float32") for _ in range(2))
    ins.write(np.random.default_rng(0).standard_normal((1, 4, 4, 4)).astype(np.float32))
    network.bind({"latent": ins, "next_latent": outs})()
    return outs.read()


def test_there_and_back_again_changes_nothing(machine: Machine, style: Style) -> None:
    a, b = style("a"), style("b")
    first = built(machine, a)
    before = first.plan.read_bytes()
    built(machine, b)
    assert built(machine, a) == first
    assert first.plan.read_bytes() == before


def test_a_refitted_engine_is_never_refitted_again(machine: Machine, style: Style) -> None:
    a, b, c = map(style, "abc")
    first, second = built(machine, a), built(machine, b)
    assert built(machine, c).report.refitted_from == first.key
    shutil.rmtree(first.folder)
    again = built(machine, a)
    assert (again.key, again.report.refitted_from) == (first.key, "")
    assert plan(second)["refittable"] is False


@pytest.mark.parametrize(("old", "new"), [("Add(y", "Mul(y"), ("float=1.0", "float=2.0")])
def test_another_structure_is_built(machine: Machine, style: Style, old: str, new: str) -> None:
    built(machine, style("a"))
    assert built(machine, style("b", text=STEP.replace(old, new))).report.refitted_from == ""


def test_other_profiles_are_built(machine: Machine, style: Style) -> None:
    built(machine, style("a"))
    machine.order = replace(machine.order, demand=replace(machine.order.demand, batches=(2,)))
    assert built(machine, style("b")).report.refitted_from == ""


def test_nothing_is_refitted_unless_asked_for(make: Make, style: Style) -> None:
    machine = make(built=False)
    first, second = (built(machine, style(name)) for name in "ab")
    assert Order(flavour="tensorrt").options.refit is False
    assert (plan(first)["refittable"], first.report.probes, second.report.refitted_from) == (False, (), "")


FAULTS = {
    "_loses": (("bias",), r"its outputs are 0\.\d+ \(relative\) away from those of ONNX Runtime, more than the \d"),
    "_forgets": (True, r"its outputs are [\d.]+ \(relative\) away"),
    "_needs": (("kernel",), "the weights kernel are missing"),
}
"""What the double's refitter does wrong, and what is said about it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refit_that_fails_is_thrown_away_and_the_engine_built(
    machine: Machine, style: Style, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = built(machine, style("a"))
    wrong, said = FAULTS[fault]
    setattr(machine.library.module.Refitter, fault, wrong)
    second = built(machine, style("b"))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    pattern = f"step, refitted from engine {first.key}, is thrown away and will be built from scratch: .*{said}"
    assert re.match(pattern, record.getMessage())
    assert (second.report.refitted_from, plan(second)["zero"]) == ("", [])


def test_a_lost_bias_is_found_though_the_precision_would_forgive_it(
    machine: Machine, style: Style, caplog: pytest.LogCaptureFixture
) -> None:
    built(machine, style("a", precision="fp16", bias=0.005))
    machine.library.module.Refitter._loses = ("bias",)
    built(machine, style("b", precision="fp16", bias=0.005))
    (message,) = caplog.messages
    error = float(message.split("outputs are ")[1].split()[0])
    assert 1e-3 < error < 3e-2  # what the export's probe lets pass


def test_a_build_that_lost_a_bias_is_built_again_without_refit(
    machine: Machine, style: Style, caplog: pytest.LogCaptureFixture
) -> None:
    machine.library.module.Builder._loses = ("bias",)
    first = built(machine, style("a"))
    assert "step, built with --refit, is thrown away and built again without: its outputs are 0." in caplog.text
    assert (plan(first)["refittable"], plan(first)["zero"], first.report.structure) == (False, [], "")
    machine.library.module.Builder._loses = ()
    assert built(machine, style("b")).report.refitted_from == ""  # the first cannot give its structure


def test_weights_that_are_compiled_in_must_be_the_same(
    machine: Machine, style: Style, caplog: pytest.LogCaptureFixture
) -> None:
    machine.library.module.Refitter._keeps = ("bias",)
    first = built(machine, style("a"))
    assert built(machine, style("b")).report.refitted_from == first.key
    assert not caplog.messages
    assert built(machine, style("c", bias=2.0)).report.refitted_from == ""
    assert "weights that were compiled in, and cannot be exchanged, are others now" in caplog.text


def test_a_damaged_engine_gives_nothing(machine: Machine, style: Style, caplog: pytest.LogCaptureFixture) -> None:
    first = built(machine, style("a"))
    first.plan.write_bytes(first.plan.read_bytes().replace(b"a.onnx", b"x.onnx"))
    assert built(machine, style("b")).report.refitted_from == ""
    assert f"{first.plan} is damaged" in caplog.text


def test_a_crash_leaves_nothing_half_written(machine: Machine, style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    first, b = built(machine, style("a")), style("b")
    with monkeypatch.context() as patch:
        patch.setattr(machine.library.module.Refitter, "refit_cuda_engine", crash)
        with pytest.raises(RuntimeError):
            built(machine, b)
    assert [path.name for path in machine.order.folder.iterdir() if path.suffix != ".lock"] == [first.key]
    assert built(machine, b).report.refitted_from == first.key


def crash(*_: object) -> bool:
    raise RuntimeError("the driver went away")


def test_every_graph_of_a_bundle_is_examined_and_a_run_is_as_before(make: Make) -> None:
    plain = make("tensorrt-rtx")
    expected = plain.paint(plain.backend()).latents
    machine = refittable(plain)
    np.testing.assert_array_equal(machine.paint(machine.backend()).latents, expected)
    entries = build_engines(machine.bundle, machine.order)
    assert {name: len(entry.report.probes) for name, entry in entries.items()} == dict.fromkeys(plain.entries, 1)


def test_without_a_driver_refit_is_refused_in_words(
    machine: Machine, style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_module, "bindings", lambda: CudaDouble(driver=0))
    said = "not built ahead of time: TensorRT-RTX asks .* no NVIDIA driver answers .* Leave --refit out, or build on"
    with pytest.raises(BackendError, match=said):
        built(machine, style("a"))


def test_targets_without_the_gpu_at_hand_are_refused(machine: Machine, style: Style) -> None:
    machine.cuda.capability = (8, 6)
    with pytest.raises(BuildError, match=r"GPU of this machine, sm86, is none of sm89; add --target sm86"):
        built(machine, style("a"))


def test_without_onnx_runtime_there_is_nothing_to_compare_with(
    machine: Machine, style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("lssgen.parity.pieces", "lssgen.ort"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r'onnxruntime is needed: pip install "lssgen\[onnxruntime\]" onnx-ir'):
        built(machine, style("a"))


@pytest.mark.slow
def test_exports_of_one_architecture_share_their_structure(sd3: Path, tmp_path: Path) -> None:
    """With a LoRA, and with other weights altogether."""
    tensors = load_file(sd3 / NETWORK)
    query = next(name for name in tensors if name.endswith("attn.to_q.weight"))
    high, wide = tensors[query].shape
    lora = {"lora_A": np.ones((2, wide), np.float32), "lora_B": np.ones((high, 2), np.float32)}
    name = f"transformer.{query.removesuffix('.weight')}"
    save_file({f"{name}.{half}.weight": value for half, value in lora.items()}, tmp_path / "lora.safetensors")
    other = copytree(sd3, tmp_path / "other")
    save_file({name: 2 * value for name, value in tensors.items()}, other / NETWORK)
    steps = [exported(sd3, tmp_path / "a"), exported(sd3, tmp_path / "b", tmp_path / "lora.safetensors")]
    steps.append(exported(other, tmp_path / "c"))
    assert len({step.read_bytes() for step in steps}) > 1  # weight files have names of their own
    assert len({structure_of(step) for step in steps}) == 1


NETWORK = "transformer/diffusion_pytorch_model.safetensors"


def exported(checkpoint: Path, folder: Path, *loras: Path) -> Path:
    from lssgen.export.config import ExportConfig
    from lssgen.export.export import export
    from lssgen.lora.asked import Lora

    added = tuple(Lora(path, 1.0) for path in loras)
    bundle = export(
        ExportConfig(
            model=str(checkpoint), output=folder, resolutions=((64, 64),), probe="none", threads=1, loras=added
        )
    )
    return bundle.path(bundle.manifest.graphs["step"].file)


@pytest.mark.parametrize(("error", "most"), [(0.0, 4.5e-4), (1e-3, 1.5e-3), (2e-2, 3e-2)])
def test_a_copy_may_be_half_again_as_far_off_as_what_was_built(error: float, most: float) -> None:
    probe = Probe(axes={}, error=error, bound=3e-2, finite=True, peak=1.0)
    assert allowed(probe) == pytest.approx(most)
