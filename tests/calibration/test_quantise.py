"""A quantised bundle: made whole or not at all, past its gates, and run by the ordinary runtime."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from calibrating import PROMPTS, RUNS

from lssgen.bundle import MANIFEST, Bundle, files, read_bundle, verify
from lssgen.calibration import gates as module
from lssgen.calibration.gates import Gate
from lssgen.calibration.products import products_of
from lssgen.calibration.quality import Bound, Quality, Runs, compared
from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.calibration.search import Choice, Work, choose, worst_first
from lssgen.calibration.speed import Speed
from lssgen.calibration.statistics import Statistics
from lssgen.engines.demand import Demand, profiles_of
from lssgen.engines.registry import open_backend
from lssgen.errors import BuildError, CalibrationError
from lssgen.manifest import Measured, Quantisation
from lssgen.models.quantisation import sensitivity_of
from lssgen.runtime import Pipeline


def job(bundle: Bundle, statistics: Statistics, folder: Path, **changes: Any) -> QuantiseJob:
    plain = QuantiseJob(
        bundle=bundle, output=folder / "made", format="int8", engine="onnxruntime", statistics=statistics, source="abc"
    )
    return replace(plain, **changes)


def gate(**changes: Any) -> Gate:
    backend = open_backend("onnxruntime", threads=1)
    runs = Runs(prompts=PROMPTS[:1], options={**RUNS, "num_inference_steps": 3})
    return replace(Gate(runs=runs, backend=backend, bound=Bound(20, 0.9)), **changes)


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Speed]:
    """What the stop watch will say; no test waits for it."""
    found = {"128x128": Speed(1.5, 1.4, 1.6), "256x256": Speed(1.5, 1.4, 1.6)}
    monkeypatch.setattr(module, "step_speedups", lambda *_: found)
    return found


def test_it_says_what_it_is_and_paints(
    demo: Bundle, statistics: Statistics, tmp_path: Path, speed: dict[str, Speed]
) -> None:
    quantise(job(demo, statistics, tmp_path, gate=gate(timed=open_backend("onnxruntime", threads=1))))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    bundle = read_bundle(tmp_path / "made")
    verify(bundle)
    about, text = (bundle.manifest.graphs[name].quantisation for name in ("step", "text"))
    assert about is not None
    assert (about.format, about.engine, about.products, about.kept) == ("int8", "onnxruntime", 57, ())
    assert (about.attention, about.smoothing, about.statistics, about.by) == (0, 0.8, "abc", "lssgen")
    assert about.measured is not None
    assert min(about.measured.psnr_db) > 20
    assert (about.measured.speedup, about.measured.slower) == (dict.fromkeys(speed, 1.5), False)
    assert text is not None
    assert (text.format, text.products > 10) == ("int8-weights", True)
    assert bundle.manifest.graphs["decode"] == demo.manifest.graphs["decode"]
    assert bundle.manifest.graphs["step"].probes == ()
    assert sum(map(bundle.stored_bytes, ("step", "text"))) < 0.7 * sum(map(demo.stored_bytes, ("step", "text")))
    with Pipeline(bundle, open_backend("onnxruntime", threads=1)) as pipeline:
        assert pipeline("a red circle", num_inference_steps=2).images[0].size == (256, 256)


def test_a_quantised_large_stage_may_have_an_unquantised_small_one(
    demo: Bundle, statistics: Statistics, tmp_path: Path
) -> None:
    bundle = quantise(job(demo, statistics, tmp_path, from_px=256, text=False, gate=Gate()))
    manifest = read_bundle(bundle.folder).manifest
    assert [manifest.step_at(*size) for size in ((16, 16), (32, 32))] == ["step_small", "step"]
    assert manifest.graphs["step_small"] == demo.manifest.graphs["step"]
    sizes = {name: [profile.axes["height"].best for profile in profiles] for name, profiles in
             profiles_of(manifest, Demand(graphs=("step", "step_small"))).items()}  # fmt: skip
    assert sizes == {"step": [32], "step_small": [16]}
    runs = gate().runs
    assert runs is not None
    backend = open_backend("onnxruntime", threads=1)
    quality = compared(runs.latents(demo, backend), runs.latents(bundle, backend))
    assert quality.psnr_db[0] == 200  # the small stage is the same, to the bit
    assert 20 < quality.psnr_db[1] < 100


@pytest.mark.slow  # ten graphs, each painted by
def test_real_runs_leave_the_small_stage_as_it_was_where_the_bound_asks_for_it(
    demo: Bundle, statistics: Statistics, tmp_path: Path
) -> None:
    """Of a small stage with ranges eight times as wide, which a graph for both must hold: 18 dB more noise in both.

    The bound is what the large stage reaches alone, and then what both do.
    """
    for (_, stage, _), seen in statistics.seen.items():
        if stage == 0:
            seen.low, seen.high = 8 * seen.low, 8 * seen.high
    reached = [
        _measured(quantise(job(demo, statistics, tmp_path / str(px), from_px=px, text=False, gate=gate())))
        for px in (0, 256)
    ]
    both, large = (min(measured.psnr_db) for measured in reached)
    assert both < large - 6
    asked = gate(bound=Bound(large - 0.1, 0.9))
    made = quantise(job(demo, statistics, tmp_path / "chosen", text=False, gate=asked))
    assert (made.manifest.small_step, made.manifest.small_cells) == ("step_small", 256)
    assert made.manifest.graphs["step_small"] == demo.manifest.graphs["step"]
    assert _measured(made).psnr_db == reached[1].psnr_db
    verify(made)
    asked = gate(bound=Bound(both - 0.1, 0.9))
    whole = quantise(job(demo, statistics, tmp_path / "whole", text=False, gate=asked))
    assert (whole.manifest.small_step, _measured(whole).psnr_db) == ("", reached[0].psnr_db)
    assert set(whole.manifest.graphs) == set(demo.manifest.graphs)


def _measured(bundle: Bundle) -> Measured:
    about = bundle.manifest.graphs["step"].quantisation
    assert about is not None
    assert about.measured is not None
    return about.measured


def test_a_manifest_whose_small_step_is_none_is_damaged(demo: Bundle) -> None:
    from lssgen.soundness import first_fault

    manifest = replace(demo.manifest, small_step="decode", small_cells=256)
    assert "small_step is 'decode', which is not a graph with the ports of the step" in first_fault(manifest)
    step = demo.manifest.graphs["step"]
    for small in (replace(step, runs="prompt"), replace(step, axes={**step.axes, "height": "width"})):
        damaged = replace(
            demo.manifest, graphs={**demo.manifest.graphs, "small": small}, small_step="small", small_cells=9
        )
        assert "which is not a graph with the ports of the step" in first_fault(damaged)


def test_a_manifest_whose_quantisation_counts_less_than_nothing_is_damaged(demo: Bundle) -> None:
    from lssgen.soundness import first_fault

    step = demo.manifest.graphs["step"]
    for change, said in (
        ({"products": -5}, "products of graph 'step' is -5"),
        ({"attention": -1}, "attention of graph 'step' is -1"),
    ):
        about = replace(Quantisation(format="int8", engine="onnxruntime", products=1), **change)
        graphs = {**demo.manifest.graphs, "step": replace(step, quantisation=about)}
        assert said in first_fault(replace(demo.manifest, graphs=graphs))
    few = replace(demo.manifest, graphs={**demo.manifest.graphs, "small": step}, small_step="small", small_cells=-1)
    assert "small_cells is -1" in first_fault(few)


@pytest.mark.parametrize(
    ("large", "said"),
    [
        (Speed(0.9, 0.8, 0.95), r"not faster than .* 1.10 times \(1.05 to 1.20\) at 128x128, 0.90 times .*--force"),
        (
            Speed(1.1, 0.9, 1.3),
            r"not clearly faster than the fp32 one on onnxruntime: .*; .*on a quiet machine",
        ),
    ],
)
def test_what_is_not_clearly_faster_is_refused_unless_forced(
    demo: Bundle, statistics: Statistics, tmp_path: Path, speed: dict[str, Speed], large: Speed, said: str
) -> None:
    speed |= {"128x128": Speed(1.1, 1.05, 1.2), "256x256": large}
    slow = job(demo, statistics, tmp_path, gate=Gate(timed=open_backend("onnxruntime", threads=1)))
    with pytest.raises(CalibrationError, match=said):
        quantise(slow)
    assert list(tmp_path.iterdir()) == []
    forced = quantise(replace(slow, gate=replace(slow.gate, force=True))).manifest.graphs["step"].quantisation
    assert forced is not None
    assert forced.measured is not None
    assert forced.measured.slower


@pytest.mark.slow  # six graphs
def test_a_bound_out_of_reach_leaves_nothing(demo: Bundle, statistics: Statistics, tmp_path: Path) -> None:
    runs = Runs(prompts=PROMPTS[:1], options={"height": 128, "width": 128, "num_inference_steps": 2})
    with pytest.raises(CalibrationError, match=r"with 28 of 57 products in high precision, and the bound is 190 dB"):
        quantise(job(demo, statistics, tmp_path, text=False, gate=gate(runs=runs, bound=Bound(190, 0.9))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text_db", "step_db", "stays"),
    [
        (20, 60, True),  # the text encoders alone are too far off
        (26, 27, True),  # they leave too little of the bound
        (60, 20, False),  # they are not to blame
        (28.5, 60, False),  # all together pass
    ],
)
def test_text_encoders_go_back_where_they_alone_are_too_far_off(
    demo: Bundle,
    statistics: Statistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_db: float,
    step_db: float,
    stays: bool,
) -> None:
    """Noise of so many dB for each graph in few bits; a bound of 25 dB, of which both together may use up all."""
    latent = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 32, 32)).astype(np.float32)

    def latents(_: Runs, bundle: Bundle, __: Any) -> list[list[Any]]:
        coded = {name for name in ("text", "step") if bundle.manifest.graphs[name].quantisation}
        verify(bundle)
        power = sum(10 ** (-db / 10) for name, db in (("text", text_db), ("step", step_db)) if name in coded)
        return [[latent + np.float32(power**0.5) * np.where(latent > 0, 1, -1)]]

    monkeypatch.setattr(Runs, "latents", latents)
    asked = job(demo, statistics, tmp_path, gate=gate(bound=Bound(25, 0.9)))
    if step_db < 25:
        with pytest.raises(CalibrationError, match="with 28 of 57 products in high precision"):
            quantise(asked)
        assert list(tmp_path.iterdir()) == []
        return
    made = quantise(asked)
    verify(read_bundle(made.folder))
    assert (made.manifest.graphs["text"] == demo.manifest.graphs["text"]) is stays
    assert made.manifest.small_step == ""
    assert {path.name for path in made.folder.iterdir()} == {MANIFEST, *files(made.manifest)}


def test_an_engine_that_does_not_open_says_why(
    demo: Bundle, statistics: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend("onnxruntime", threads=1)
    opened = type(backend).open

    def refusing(self: Any, bundle: Bundle, demand: Demand) -> Any:
        if bundle.folder != demo.folder:
            raise BuildError("this engine takes no codes")
        return opened(self, bundle, demand)

    monkeypatch.setattr(type(backend), "open", refusing)
    runs = Runs(prompts=PROMPTS[:1], options={"height": 128, "width": 128, "num_inference_steps": 2})
    with pytest.raises(BuildError, match="this engine takes no codes"):
        quantise(job(demo, statistics, tmp_path, gate=gate(runs=runs, backend=backend)))
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_bundle_is_not_quantised_again(demo: Bundle, statistics: Statistics, tmp_path: Path) -> None:
    once = quantise(job(demo, statistics, tmp_path, gate=Gate()))
    with pytest.raises(CalibrationError, match="is quantised already; take the bundle that it was made from"):
        quantise(job(once, statistics, tmp_path, output=tmp_path / "twice"))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"statistics": None}, CalibrationError, "int8 needs the ranges of activations: run lssgen calibrate ranges"),
        (
            {"format": "fp8"},
            CalibrationError,
            "engine onnxruntime does not compute in fp8; it takes int8, int8-weights",
        ),
        (
            {"format": "fp8", "engine": "tensorrt-rtx", "targets": ("sm86",)},
            BuildError,
            "sm86.* has no products in fp8; fp8 fits sm89, sm120, sm121",
        ),
        (
            {"format": "nvfp4", "engine": "tensorrt", "targets": ("sm89", "sm120")},
            BuildError,
            "sm89.* has no products in nvfp4; nvfp4 fits sm100, sm103, sm120, sm121",
        ),
        ({"ends": 3}, CalibrationError, r"none of the step's 57 products would be in int8.*--keep-blocks"),
        (
            {"targets": ("sm89",)},
            CalibrationError,
            r"targets \(sm89\) are GPUs, and onnxruntime runs on the CPU; .*--for: tensorrt, tensorrt-rtx",
        ),
        ({"from_px": 512}, CalibrationError, "no stage of the statistics is at least 512 px; lower --from-size"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    demo: Bundle, statistics: Statistics, tmp_path: Path, changes: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        quantise(replace(job(demo, statistics, tmp_path), **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_refused(demo: Bundle, tmp_path: Path) -> None:
    """Of weights alone there are no ranges that would tell."""
    folder = tmp_path / "damaged"
    shutil.copytree(demo.folder, folder)
    step = demo.manifest.graphs["step"]
    (product, *_) = products_of(ir.load(folder / step.file), sensitivity_of("sd3"))
    weight = product.weight.const_value
    assert isinstance(weight, ir.ExternalTensor)
    with (folder / step.data[0]).open("r+b") as file:
        file.seek((weight.offset or 0) + 400)
        file.write(np.float32("nan").tobytes())
    plain = QuantiseJob(
        bundle=read_bundle(folder), output=tmp_path / "made", format="int8-weights", engine="tensorrt", text=False
    )
    with pytest.raises(CalibrationError, match=f"weight {product.weight.name} holds NaN or infinity.*export it again"):
        quantise(plain)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_data_file_of_several_graphs_stays_where_one_of_them_does(
    demo: Bundle, statistics: Statistics, tmp_path: Path
) -> None:
    step, decode = (demo.manifest.graphs[name] for name in ("step", "decode"))
    shared = replace(decode, data=(*decode.data, *step.data), sha256={**step.sha256, **decode.sha256})
    bundle = Bundle(demo.folder, replace(demo.manifest, graphs={**demo.manifest.graphs, "decode": shared}))
    made = quantise(job(bundle, statistics, tmp_path, text=False, format="int8-weights"))
    verify(read_bundle(made.folder))


def test_half_precision_is_refused_for_engines_of_cpus(demo: Bundle, statistics: Statistics, tmp_path: Path) -> None:
    graphs = {**demo.manifest.graphs, "step": replace(demo.manifest.graphs["step"], precision="fp16")}
    half = Bundle(demo.folder, replace(demo.manifest, graphs=graphs))
    with pytest.raises(CalibrationError, match=r"in fp32 graphs only, and bundle .* is in fp16; export the model with"):
        quantise(job(half, statistics, tmp_path))


@pytest.mark.slow  # rounding to blocks by ordinary arithmetic
def test_nvfp4_is_rehearsed_where_its_operators_are_missing(
    demo: Bundle, statistics: Statistics, tmp_path: Path
) -> None:
    made = quantise(job(demo, statistics, tmp_path, format="nvfp4", engine="tensorrt-rtx", gate=gate()))
    about = made.manifest.graphs["step"].quantisation
    assert about is not None
    assert about.measured is not None
    assert about.attention == 5
    assert all(20 < psnr < 45 for psnr in about.measured.psnr_db)  # four bits: far from the 40 dB and more of eight


def of(psnr: float) -> Quality:
    return Quality((psnr,), (1.0,))


ORDER = [f"{index:02}" for index in range(64)]
WORK = Work(stages={0: 1.0}, products=dict.fromkeys(ORDER, 1 / 64))
STAGED = Work(stages={0: 1.0, 512: 0.9, 1024: 0.7}, products=dict.fromkeys(ORDER, 1 / 64))
SNR = {name: float(index) for index, name in enumerate(ORDER)}
BOUND = Bound(25, 0.9)


@pytest.mark.parametrize("needed", [0, 1, 3, 10, 31])
def test_the_search_returns_few_more_products_than_are_needed(needed: int) -> None:
    tried: list[int] = []

    def attempt(choice: Choice) -> tuple[Quality, dict[str, float]]:
        assert choice.returned == set(ORDER[: len(choice.returned)])
        tried.append(len(choice.returned))
        return of(30.0 if len(choice.returned) >= needed else 10.0), SNR

    choice, quality = choose(WORK, attempt, BOUND)
    assert needed <= len(choice.returned) <= max(needed + 2, 4 if needed else 0)
    assert quality == of(30.0)
    assert len(tried) <= 9  # a try is a graph and a few runs


def test_the_search_gives_up_where_half_of_the_products_do_not_help() -> None:
    with pytest.raises(CalibrationError, match=r"with 32 of 64 products in high precision, and.*choose a wider format"):
        choose(WORK, lambda _: (of(1.0), SNR), BOUND)
    said = r"with 32 of 64 products in high precision in stages from 1024 px on, and the bound is 25 dB"
    with pytest.raises(CalibrationError, match=said):
        choose(STAGED, lambda _: (of(1.0), SNR), BOUND)


@pytest.mark.parametrize(
    ("needed", "found"),
    [
        # Products to return until the bound is reached, by where quantised stages begin; and what is chosen.
        ({0: 0, 512: 0, 1024: 0}, (0, 0)),
        ({0: 2, 512: 0, 1024: 0}, (0, 2)),  # 2 of 64 cost less than the small stages
        ({0: 20, 512: 0, 1024: 0}, (512, 0)),  # 20 of 64 cost more
        ({0: 64, 512: 64, 1024: 0}, (1024, 0)),
        ({0: 64, 512: 64, 1024: 5}, (1024, 6)),
        ({0: 64, 512: 5, 1024: 0}, (512, 6)),
    ],
)
def test_the_search_leaves_small_stages_out_where_that_keeps_more_work_in_few_bits(
    needed: dict[int, int], found: tuple[int, int]
) -> None:
    def attempt(choice: Choice) -> tuple[Quality, dict[str, float]]:
        return of(30.0 if len(choice.returned) >= needed[choice.from_px] else 10.0), SNR

    choice, _ = choose(STAGED, attempt, BOUND)
    assert (choice.from_px, len(choice.returned)) == found


def test_the_noisiest_product_goes_back_first() -> None:
    assert worst_first({"a": 30.0, "b": 10.0, "c": 20.0}) == ["b", "c", "a"]
