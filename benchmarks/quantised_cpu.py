"""INT8 on a CPU: how much faster a quantised step is, on ONNX Runtime and OpenVINO, and what other quantisers give.

    python -m benchmarks.quantised_cpu --work DIR demo sd3-123m

For each model: a bundle in fp32, its ranges, the quantised bundle, and the step of every variant timed in turn, one
call of each a round, with the same inputs. Variants:

    onnxruntime fp32           the bundle
    onnxruntime int8           `lssgen calibrate quantise --format int8`
    onnxruntime static         ONNX Runtime's quantize_static of the same products, MinMax, on inputs of the same runs
    onnxruntime dynamic        ONNX Runtime's quantize_dynamic of the same products
    openvino f32, bf16         the bundle, by OpenVINO's own API, in these precisions
    openvino int8              the same quantised bundle, in f32 and bf16 beside the products
    openvino nncf              NNCF's quantize of the bundle for transformers, on inputs of the same runs

`sd3-123m` is a random SD3 with 6 layers of width 768. Errors are of the velocity: |x' - x'(fp32)| / |x'(fp32) - x|, at
a step in the middle of a run. OpenVINO and NNCF are measured where they are installed.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from benchmarks.saving import save
from lssgen.bundle import Bundle, read_bundle
from lssgen.calibration.gates import Gate
from lssgen.calibration.products import products_of
from lssgen.calibration.quality import Bound, Runs
from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.calibration.ranges import RangesJob, measure_ranges
from lssgen.demo import write_demo_bundle
from lssgen.engines.demand import Demand, profiles_of
from lssgen.engines.registry import open_backend
from lssgen.machine import cpu_name
from lssgen.manifest import Precision
from lssgen.models.quantisation import sensitivity_of
from lssgen.parity.samples import sample_inputs
from lssgen.ports import Array
from lssgen.runtime import Pipeline
from lssgen.runtime.recorder import RecordingBackend

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quantised_cpu.json"
ROUNDS, WARM_UP = 21, 2
PROMPTS = {
    "demo": (
        "a red star above a blue circle on a white background",
        "a small green triangle on a black background",
        "a yellow square left of a red circle on a white background",
        "a blue triangle below a green star on a black background",
    ),
    "sd3-123m": ("the red circle", "a cat in the rain", "1234", "ring"),
}
Inputs = Mapping[str, Array]
Call = Callable[[], Array]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["demo", "sd3-123m"])
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles, kept between runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--ours", action="store_true", help="leave the other quantisers out")
    parser.add_argument("--sizes", nargs="*", type=int, help="sides of the latent in cells; default: all")
    args = parser.parse_args(argv)
    for model in args.models:
        folder = args.work / model
        folder.mkdir(parents=True, exist_ok=True)
        bundle = bundle_of(model, folder)
        quantised = quantised_of(model, bundle, folder, args.threads)
        sizes = json.loads(RESULTS.read_text()).get(model, {}).get("sizes", {}) if RESULTS.exists() else {}
        found = {"conditions": conditions(args), **quality_of(quantised), "sizes": sizes}
        for size in bundle.manifest.resolutions:
            if args.sizes and size[0] // bundle.manifest.facts.cell_px not in args.sizes:
                continue
            rows = list(measured(model, bundle, quantised, size, folder, args))
            cell = bundle.manifest.facts.cell_px
            found["sizes"][f"{size[1] // cell}x{size[0] // cell}"] = rows
            print(json.dumps(rows, indent=1), flush=True)
        save(RESULTS, model, {**found, "failed": dict(FAILED)})
    print(markdown(json.loads(RESULTS.read_text())))
    return 0


def markdown(results: Mapping[str, Any]) -> str:
    """The table as the docs show it; latents are in cells."""
    lines = [
        "| model | latent | variant | step, ms | times its engine's best unquantised | error of the velocity |",
        "|---|---|---|---|---|---|",
    ]
    for model, found in results.items():
        for size, rows in found["sizes"].items():
            lines += [
                f"| {model} | {size} | {row['variant']} | {row['ms']:.4g} | {row['ratio']:.2f} | {row['error']:.1e} |"
                for row in rows
            ]
    return "\n".join(lines)


def bundle_of(model: str, folder: Path) -> Bundle:
    """The bundle in fp32."""
    target = folder / "bundle"
    if not (target / "manifest.json").exists():
        if model == "demo":
            write_demo_bundle(target)
        else:
            export_123m(folder / "checkpoint", target)
    return read_bundle(target)


def export_123m(checkpoint: Path, target: Path, precision: Precision = "fp32") -> None:
    """The random SD3 of 122.7 million parameters."""
    sys.path.insert(0, str(ROOT / "tests"))
    from factory import tiny_sd3

    from lssgen.export.config import ExportConfig
    from lssgen.export.export import export

    wide = {
        "num_layers": 6, "attention_head_dim": 64, "num_attention_heads": 12, "caption_projection_dim": 768,
        "pos_embed_max_size": 96, "sample_size": 64, "dual_attention_layers": (),
    }  # fmt: skip
    tiny_sd3(checkpoint, channels=16, **wide)
    # 32 and 64 cells, which are 256 and 512 px of a real VAE; the tiny one has four pixels a cell, not eight.
    sizes = ((128, 128), (256, 256))
    export(
        ExportConfig(
            model=str(checkpoint), output=target, resolutions=sizes, precision=precision, probe="none", threads=1
        )
    )


def run_options(bundle: Bundle) -> dict[str, Any]:
    """Options of the runs that are listened to."""
    small, large = bundle.manifest.resolutions[0], bundle.manifest.resolutions[-1]
    return {
        "height": large[0], "width": large[1], "min_resolution": min(small), "base_height": small[0],
        "base_width": small[1], "num_inference_steps": 8, "scaling_space": "latent",
    }  # fmt: skip


def quantised_of(model: str, bundle: Bundle, folder: Path, threads: int) -> Bundle:
    """The quantised bundle, compared and timed as the command does it."""
    target, backend = folder / "int8", open_backend("onnxruntime", threads=threads)
    if not (target / "manifest.json").exists():
        job = RangesJob(
            bundle=bundle,
            backend=backend,
            prompts=PROMPTS[model],
            output=folder / "ranges.safetensors",
            options=run_options(bundle),  # pyright: ignore[reportArgumentType]
        )
        statistics = measure_ranges(job)
        runs = Runs(prompts=PROMPTS[model][:2], options=run_options(bundle))  # pyright: ignore[reportArgumentType]
        gate = Gate(runs=runs, backend=backend, bound=Bound(25.0, 0.97), timed=backend)
        quantise(
            QuantiseJob(
                bundle=bundle, output=target, format="int8", engine="onnxruntime", statistics=statistics, gate=gate
            )
        )
    return read_bundle(target)


def quality_of(bundle: Bundle) -> dict[str, Any]:
    about = bundle.manifest.graphs["step"].quantisation
    assert about is not None
    assert about.measured is not None
    return {
        "products": about.products,
        "kept": len(about.kept),
        "smoothing": about.smoothing,
        "psnr_db": about.measured.psnr_db,
        "cosine": about.measured.cosine,
    }


def measured(
    model: str, bundle: Bundle, quantised: Bundle, size: tuple[int, int], folder: Path, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row a variant: milliseconds of a step, ratio to its engine's best unquantised precision, error."""
    step = bundle.manifest.graphs["step"]
    profile = profiles_of(bundle.manifest, Demand(resolutions=(size,)))["step"][0]
    inputs = sample_inputs(step.inputs, {axis: extent.best for axis, extent in profile.axes.items()})
    calls = dict(variants(model, bundle, quantised, inputs, folder, args.threads, ours=args.ours))
    times: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Array] = {}
    for number in range(WARM_UP + args.rounds):
        for name, call in calls.items():
            began = perf_counter()
            results[name] = call()
            if number >= WARM_UP:
                times[name].append(perf_counter() - began)
    exact, moved = results["onnxruntime fp32"], results["onnxruntime fp32"] - inputs["latent"]
    for name, each in times.items():
        engine = name.split()[0]
        plain = {other: rows for other, rows in times.items() if other in PLAIN and other.split()[0] == engine}
        best = min(plain, key=lambda other: median(plain[other]))
        yield {
            "variant": name,
            "ms": round(1e3 * median(each), 2),
            "best_unquantised": best,
            "ratio": round(median(b / a for a, b in zip(each, plain[best], strict=True)), 3),
            "error": float(np.linalg.norm(results[name] - exact) / np.linalg.norm(moved)),
        }


FAILED: dict[str, str] = {}
"""Quantisers that do not take the graph, and what they say."""

PLAIN = ("onnxruntime fp32", "openvino f32", "openvino bf16")


def variants(
    model: str, bundle: Bundle, quantised: Bundle, inputs: Inputs, folder: Path, threads: int, *, ours: bool
) -> Iterator[tuple[str, Call]]:
    plain, coded = (one.path(one.manifest.graphs["step"].file) for one in (bundle, quantised))
    yield "onnxruntime fp32", ort_call(plain, inputs, threads)
    yield "onnxruntime int8", ort_call(coded, inputs, threads)
    for kind in () if ours else ("static", "dynamic"):
        try:
            made = ort_quantised(kind, model, bundle, folder, threads)
        except Exception as error:  # of its own shape inference, among others
            FAILED[f"onnxruntime {kind}"] = " ".join(str(error).split())[:200]
            continue
        yield f"onnxruntime {kind}", ort_call(made, inputs, threads)
    try:
        import openvino
    except ImportError:
        return
    yield "openvino f32", openvino_call(openvino, plain, inputs, threads, "f32")
    yield "openvino bf16", openvino_call(openvino, plain, inputs, threads, "bf16")
    yield "openvino int8", openvino_call(openvino, coded, inputs, threads, "f32")
    yield "openvino int8+bf16", openvino_call(openvino, coded, inputs, threads, "bf16")
    if ours:
        return
    try:
        import nncf
    except ImportError:
        return
    yield (
        "openvino nncf",
        openvino_call(openvino, nncf_quantised(nncf, openvino, model, bundle, folder), inputs, threads, "f32"),
    )


def ort_call(path: Path, inputs: Inputs, threads: int) -> Call:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(["next_latent"], dict(inputs))[0])


def openvino_call(openvino: Any, model: Any, inputs: Inputs, threads: int, precision: str) -> Call:
    core = openvino.Core()
    read = core.read_model(str(model)) if isinstance(model, Path) else model
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    # Sizes are pinned: a stage's are, and OpenVINO chooses other kernels for them.
    read = read.clone()
    read.reshape({name: list(value.shape) for name, value in inputs.items()})
    request = core.compile_model(read, "CPU", hints).create_infer_request()

    def call() -> Array:
        request.infer(dict(inputs))
        return np.array(request.get_tensor("next_latent").data)

    return call


def recorded(model: str, bundle: Bundle, threads: int) -> list[dict[str, Array]]:
    """Inputs of the step in real runs, at every stage."""
    found: list[dict[str, Array]] = []

    def hear(graph: str, inputs: Inputs) -> None:
        if graph == "step":
            found.append(dict(inputs))

    with Pipeline(bundle, RecordingBackend(open_backend("onnxruntime", threads=threads), hear)) as pipeline:
        for number, prompt in enumerate(PROMPTS[model][:2]):
            pipeline(prompt, **{**run_options(bundle), "seed": number})
    return found


def ort_quantised(kind: str, model: str, bundle: Bundle, folder: Path, threads: int) -> Path:
    """ONNX Runtime's own quantisation of the same products."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    step = bundle.path(bundle.manifest.graphs["step"].file)
    target = folder / f"ort-{kind}.onnx"
    if target.exists():
        return target
    nodes = [product.node.name for product in products_of(ir.load(step), sensitivity_of(bundle.manifest.family))]
    if kind == "dynamic":
        quantize_dynamic(
            step, target, nodes_to_quantize=nodes, op_types_to_quantize=["MatMul"], per_channel=True,
            weight_type=QuantType.QInt8, use_external_data_format=True, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
        return target
    calls = iter(recorded(model, bundle, threads))

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(calls, None)

    quantize_static(
        step, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, nodes_to_quantize=nodes, op_types_to_quantize=["MatMul"],
        calibrate_method=CalibrationMethod.MinMax, use_external_data_format=True,
    )  # fmt: skip
    return target


def nncf_quantised(nncf: Any, openvino: Any, model: str, bundle: Bundle, folder: Path) -> Any:
    target = folder / "nncf.xml"
    if not target.exists():
        read = openvino.Core().read_model(str(bundle.path(bundle.manifest.graphs["step"].file)))
        calls = recorded(model, bundle, 1)
        data = nncf.Dataset(calls)
        made = nncf.quantize(read, data, subset_size=len(calls), model_type=nncf.ModelType.TRANSFORMER)
        openvino.save_model(made, str(target), compress_to_fp16=False)
    return openvino.Core().read_model(str(target))


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    names = ("onnxruntime", "openvino", "nncf", "onnx-ir", "numpy")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "threads": args.threads,
        "rounds": args.rounds,
        "python": platform.python_version(),
        **{name: version for name in names if (version := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
