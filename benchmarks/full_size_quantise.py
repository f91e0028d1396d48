"""Quantise full-size step graphs without their weights in memory: seconds, peak memory, bytes.

    python -m benchmarks.full_size_quantise --work /big/disk sd3-medium flux-dev

The step of a published architecture is exported in fp16. Its weights stand in one block of random numbers, each at a
place of its own, so that 24 GB of checkpoint need not be written; the quantised graph is written whole. Statistics come
from a file, as a GPU host would have measured it: here, with made-up ranges. Each format is a process of its own.
Results go to benchmarks/results/full_size_quantise.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args
from zlib import crc32

import numpy as np

from benchmarks.full_size_export import NETWORKS, conditions, cpu_seconds, peak_gb, recipe_of, samples
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "full_size_quantise.json"
FORMATS = ("int8", "fp8", "nvfp4")
GOAL_GB = 2.5
BLOCK_BYTES = 1 << 28
PROMPTS, STEPS = 32, 20
SIZES = ((512, 512), (1024, 1024))
TEXT_TOKENS = 333
"""77 of CLIP and 256 of T5."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["sd3-medium", "flux-dev"], help=", ".join(NETWORKS))
    parser.add_argument("--work", type=Path, default=Path("full-size"), help="folder for graphs; emptied")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "TASK", "FORMAT"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        model, task, form = args.child
        print(json.dumps(prepare(args.work, model) if task == "prepare" else quantise(args.work, form)))
        return 0
    for model in args.models:
        folder = args.work / model
        shutil.rmtree(folder, ignore_errors=True)
        found: dict[str, Any] = {
            "conditions": conditions(),
            "goal_gb": GOAL_GB,
            "graph": child(folder, model, "prepare"),
        }
        for form in args.formats:
            found[form] = child(folder, model, "quantise", form)
            shutil.rmtree(folder / form, ignore_errors=True)
        record(model, found)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def child(folder: Path, model: str, task: str, form: str = "-") -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.full_size_quantise",
        "--work",
        str(folder),
        "--child",
        model,
        task,
        form,
    ]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["seconds"] = round(time.perf_counter() - start, 1)
    print(f"{model} {task} {form}: {found}", flush=True)
    return found


def prepare(folder: Path, model: str) -> dict[str, Any]:
    """A bundle with the model's step, weights standing in a block, and a statistics file."""
    from benchmarks.checkpoints import MODELS, write_checkpoint

    checkpoint = folder / "checkpoint"
    sparse_checkpoint(checkpoint, model, write_checkpoint, MODELS)
    written = export_step(checkpoint, folder / "bundle")
    bundle = bundle_around(folder / "bundle", model, written)
    write_ranges(bundle, folder / "ranges.safetensors")
    return {"parameters": written["parameters"], "nodes": written["nodes"]}


def sparse_checkpoint(folder: Path, model: str, write: Any, models: Any) -> None:
    """A checkpoint with the headers of the real one, whose numbers are holes in the file."""
    import torch

    from benchmarks import checkpoints

    def holes(path: Path, tensors: Mapping[str, Any]) -> None:
        names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
        header, offset = {}, 0
        for name, tensor in tensors.items():
            header[name] = {
                "dtype": names[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + tensor.nbytes],
            }
            offset += tensor.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)

    del models
    checkpoints.write_shard = holes
    write(model, folder, (NETWORKS[model],), torch.float16)


def write_block(path: Path) -> None:
    """The random numbers that all weights are places in, the same every time."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(BLOCK_BYTES >> 24):
            file.write((rng.standard_normal(1 << 23, np.float32) * 0.02).astype(np.float16).tobytes())


def export_step(checkpoint: Path, target: Path) -> dict[str, Any]:
    """The step's graph, as the export writes it; its weights are places in one block of random numbers."""
    import onnx_ir as ir

    from lssgen.bundle import sha256_of
    from lssgen.export import writer

    target.mkdir(parents=True)
    count = {"parameters": 0}

    def in_block(model: Any, path: Path, values: Sequence[Any], transposed: set[str], weights: Any) -> dict[str, str]:
        del transposed, weights
        write_block(path.with_suffix(".data"))
        for value in values:
            size = int(np.prod(value.shape.numpy())) * int(value.dtype.itemsize)
            count["parameters"] += int(np.prod(value.shape.numpy()))
            place = crc32(str(value.name).encode()) % max(1, BLOCK_BYTES - size) // 64 * 64
            value.const_value = ir.ExternalTensor(
                "step.data", place, size, value.dtype, shape=value.shape, name=value.name, base_dir=path.parent
            )
        ir.save(model, path)
        return {path.name: sha256_of(path)}

    writer._save = in_block  # pyright: ignore[reportPrivateUsage]
    recipe, parts = recipe_of(checkpoint, "step", "fp16")
    ports = {port.name: port.shape for port in (*recipe.inputs, *recipe.outputs)}
    made = writer.write_graph(
        recipe.build(parts),
        samples(recipe, height=16, width=24, batch=3, branches=2),
        [port.name for port in recipe.outputs],
        ports,
        target / "step.onnx",
        parts.checkpoint.weights(recipe.components),
    )
    nodes = len(ir.load(target / "step.onnx").graph)
    return {**count, "nodes": nodes, "inputs": made.inputs, "outputs": made.outputs, "sha256": made.sha256}


def bundle_around(folder: Path, model: str, step: Mapping[str, Any]) -> Any:
    """A bundle that holds the step, and nothing worth mentioning besides."""
    from lssgen.bundle import MANIFEST, Bundle, manifest_json
    from lssgen.manifest import FORMAT, Graph, Manifest, Quantity, Source
    from lssgen.plan.facts import Defaults, ModelFacts, NetworkCost

    family = "flux" if model.startswith("flux") else "sd3"
    named = {axis for port in step["inputs"] for axis in port.shape if isinstance(axis, str)}
    quantities = {axis: axis if axis in get_args(Quantity) else "tokens" for axis in sorted(named)}
    graph = Graph(
        file="step.onnx",
        data=("step.data",),
        sha256=step["sha256"],
        key=model,
        precision="fp16",
        inputs=step["inputs"],
        outputs=step["outputs"],
        runs="stage",
        axes=quantities,  # pyright: ignore[reportArgumentType]
    )
    facts = ModelFacts(
        name=model,
        channels=16,
        align=2,
        patch=2,
        scheduler="FlowMatchEulerDiscreteScheduler",
        scheduler_config={},
        start="timestep",
        defaults=Defaults(height=1024, width=1024, num_inference_steps=20, guidance_scale=1.0),
        cost=NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0),
    )
    manifest = Manifest(
        format=FORMAT,
        lssgen="benchmark",
        family=family,
        facts=facts,
        source=Source(model=model),
        resolutions=SIZES,
        history=3,
        graphs={"step": graph},
        tokenizers=(),
        token_axes={axis: TEXT_TOKENS for axis, quantity in quantities.items() if quantity == "tokens"},
    )
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    return Bundle(folder, manifest)


def write_ranges(bundle: Any, path: Path) -> None:
    """A statistics file of the bundle's taps, with made-up numbers of the usual sizes."""
    import onnx_ir as ir

    from lssgen.calibration.observe import Seen, histogram
    from lssgen.calibration.products import products_of
    from lssgen.calibration.statistics import BUCKETS, About, Statistics, write_statistics
    from lssgen.calibration.taps import add_taps
    from lssgen.models.quantisation import sensitivity_of

    manifest = bundle.manifest
    model = ir.load(bundle.path("step.onnx"))
    taps = add_taps(model, products_of(model, sensitivity_of(manifest.family)))
    about = About(
        lssgen="benchmark",
        family=manifest.family,
        model=manifest.source.model,
        step=dict(manifest.graphs["step"].sha256),
        stages=tuple((height // 8, width // 8) for height, width in SIZES),
        steps=(STEPS, STEPS),
        prompts=("made up",) * PROMPTS,
        seed=0,
        settings="",
        engine="none",
        precision="fp16",
        done=PROMPTS,
        taps=taps,
    )
    rng = np.random.default_rng(0)
    statistics = Statistics(about)
    counts = histogram(rng.standard_normal((64, 64)))
    for tap in taps:
        for stage in range(len(SIZES)):
            for bucket in range(BUCKETS):
                high = (4 + 20 * rng.random(tap.channels) ** 8).astype(np.float32)
                calls = PROMPTS * STEPS // BUCKETS
                squares, power = np.full(tap.channels, float(calls)), np.full(len(tap.products), float(calls))
                statistics.seen[tap.tensor, stage, bucket] = Seen(-high, high, squares, power, counts, calls)
    write_statistics(statistics, path)


def quantise(folder: Path, form: str) -> dict[str, Any]:
    """One format, by the call behind `lssgen calibrate quantise`."""
    from lssgen.bundle import MANIFEST, Bundle
    from lssgen.calibration.quantise import QuantiseJob
    from lssgen.calibration.quantise import quantise as make
    from lssgen.calibration.statistics import read_statistics
    from lssgen.jsons import read_json
    from lssgen.manifest import Manifest

    bundle = Bundle(folder / "bundle", read_json(folder / "bundle" / MANIFEST, Manifest))
    statistics = read_statistics(folder / "ranges.safetensors")
    job = QuantiseJob(
        bundle=bundle,
        output=folder / form,
        format=form,  # pyright: ignore[reportArgumentType]
        engine="tensorrt-rtx",
        statistics=statistics,
        text=False,
    )
    made = make(job)
    about = made.manifest.graphs["step"].quantisation
    assert about is not None
    return {
        "products": about.products,
        "kept": len(about.kept),
        "attention": about.attention,
        "gb": round(made.stored_bytes("step") / 1e9, 2),
        "statistics_mb": round((folder / "ranges.safetensors").stat().st_size / 1e6, 1),
        "cpu_seconds": cpu_seconds(),
        "peak_gb": peak_gb(),
    }


def record(model: str, found: Mapping[str, Any]) -> None:
    save(RESULTS, model, found)
    print(f"{os.getpid()}: {model} recorded", flush=True)


if __name__ == "__main__":
    sys.exit(main())
