"""Export full-size models without loading their weights: seconds, peak memory, and whether the graphs are right.

    python -m benchmarks.full_size_export --work /big/disk sd3-medium sd15 sdxl sd3.5-large flux-dev z-image-turbo

For each model a checkpoint with random weights is written (16-bit, the size of the published one), its step graph, and
where it has one its text graph with T5 or a language model, are exported in a process of their own, checked, and
deleted again. Checks:

- every initialiser is a tensor of the checkpoint, every tensor of the network is in the graph, and a sample of them is
  read back from the data file and compared, element by element;
- the whole graph at a small size, computed piece by piece in ONNX Runtime and rounded as the graph says, equals torch
  in float32, as far as its precision allows;
- SD 1.5, in float32: the whole step, in one session of ONNX Runtime, equals torch.

Results go to benchmarks/results/full_size_export.json. Seconds of CPU are the process's own and do not depend on what
else the machine does; seconds of wall clock do.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from benchmarks.saving import save
from lssgen.machine import cpu_name
from lssgen.models.families import family_of

RESULTS = Path(__file__).parent / "results" / "full_size_export.json"
GOALS = {
    "sd15": (120, 1.5),
    "sdxl": (120, 1.5),
    "sd3-medium": (120, 1.5),
    "sd3.5-large": (300, 2.0),
    "flux-dev": (300, 2.0),
    "flux2-klein-4b": (300, 2.0),
    "flux2-klein-9b": (600, 2.0),
    "flux2-dev": (1500, 2.0),
    "qwen-image": (600, 2.0),
    "z-image-turbo": (300, 2.0),
}
"""Seconds and peak GB on two cores."""

NETWORKS = {
    "sd15": "unet",
    "sdxl": "unet",
    "sd3-medium": "transformer",
    "sd3.5-large": "transformer",
    "flux-dev": "transformer",
    "flux2-klein-4b": "transformer",
    "flux2-klein-9b": "transformer",
    "flux2-dev": "transformer",
    "qwen-image": "transformer",
    "z-image-turbo": "transformer",
}
LANGUAGE = (
    "sd3-medium",
    "sd3.5-large",
    "flux-dev",
    "flux2-klein-4b",
    "flux2-klein-9b",
    "flux2-dev",
    "qwen-image",
    "z-image-turbo",
)
"""Models whose text encoders are large enough to be measured."""

PRECISIONS = {"qwen-image": "bf16"}
"""Precision of the step, where it is not fp16."""

TOKENS = {"tokens": 77, "t5_tokens": 77, "asked_tokens": 77 + 34}
STAGED = ("_traced", "optimise", "_save")
SAMPLED = 12
SINGLE_TOLERANCE = 1e-4
"""A whole network in float32: some hundred layers that each differ by about 1e-6."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(GOALS), help=", ".join(GOALS))
    parser.add_argument("--work", type=Path, default=Path("full-size"), help="folder for the checkpoints; emptied")
    parser.add_argument("--text", action="store_true", help="text encoders too: T5-XXL, Qwen3, Mistral")
    parser.add_argument("--child", nargs=4, metavar=("MODEL", "GRAPH", "PRECISION", "TASK"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(TASKS[args.child[3]](args.work, *args.child[:3])))
        return 0
    for model in args.models:
        save(RESULTS, model, measured(args.work / model, model, text=args.text))
        shutil.rmtree(args.work / model, ignore_errors=True)
    return 0


def measured(folder: Path, model: str, *, text: bool) -> dict[str, Any]:
    """Everything about one model; each graph in a child process, so that peaks are its own."""
    graphs = [("step", PRECISIONS.get(model, "fp16"), [NETWORKS[model]])]
    if text and model in LANGUAGE:
        graphs.append(("text", "bf16", ["text_encoder", "text_encoder_2", "text_encoder_3"]))
    found: dict[str, Any] = {
        "conditions": conditions(),
        "goal": dict(zip(("seconds", "peak_gb"), GOALS[model], strict=True)),
    }
    for graph, precision, parts in graphs:
        shutil.rmtree(folder, ignore_errors=True)
        size = write(folder, model, parts)
        found[graph] = {"precision": precision, "checkpoint_gb": round(size / 1e9, 2)}
        found[graph].update(child(folder, model, graph, precision, "export"))
        found[graph].update(child(folder, model, graph, precision, "check_names"))
        found[graph].update(child(folder, model, graph, precision, "probe"))
        for file in folder.glob(f"{graph}.*"):
            file.unlink()
    if model == "sd15":
        child(folder, model, "step", "fp32", "export")
        found["step"].update(child(folder, model, "step", "fp32", "check_step"))
    return found


def write(folder: Path, model: str, parts: Sequence[str]) -> int:
    import torch

    from benchmarks.checkpoints import MODELS, write_checkpoint

    pipeline, there = MODELS[model]
    # FLUX.2's VAE says in its weights how latents are normalised.
    wanted = (*parts, *family_of({"_class_name": pipeline}).whole)
    return write_checkpoint(model, folder, tuple(part for part in wanted if part in there), torch.float16)


def child(folder: Path, model: str, graph: str, precision: str, task: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.full_size_export", "--work", str(folder), "--child"]
    start = time.perf_counter()
    done = subprocess.run([*command, model, graph, precision, task], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{model} {graph} {precision} {task}: {found}", flush=True)
    return {**found, "seconds": round(time.perf_counter() - start, 1)} if task == "export" else found


def export(folder: Path, _model: str, graph: str, precision: str) -> dict[str, Any]:
    """The export as `lssgen-export` does it, start of the interpreter and imports included in the parent's seconds."""
    recipe, parts = recipe_of(folder, graph, precision)
    from lssgen.export import writer

    stages: dict[str, float] = {}
    for name in STAGED:
        setattr(writer, name, _timed(getattr(writer, name), name.strip("_"), stages))
    written = writer.write_graph(
        recipe.build(parts),
        samples(recipe, height=16, width=24, batch=3, branches=2),
        [port.name for port in recipe.outputs],
        {port.name: port.shape for port in (*recipe.inputs, *recipe.outputs)},
        folder / f"{graph}.onnx",
        parts.checkpoint.weights(recipe.components),
    )
    return {
        "cpu_seconds": cpu_seconds(),
        "peak_gb": peak_gb(),
        "stages_cpu_seconds": stages,
        "data_gb": round(sum(path.stat().st_size for path in written.files[1:]) / 1e9, 2),
        "transposed": len(written.transposed),
    }


def check_names(folder: Path, _model: str, graph: str, precision: str) -> dict[str, Any]:
    """Names against checkpoint keys, and a sample of values against the checkpoint."""
    import onnx_ir as ir
    import torch

    from lssgen.export.data import TORCH_TYPES

    recipe, parts = recipe_of(folder, graph, precision)
    weights = parts.checkpoint.weights(recipe.components).fit(recipe.build(parts))
    loaded = ir.load(folder / f"{graph}.onnx")
    transposed = set(json.loads(loaded.metadata_props["lssgen.transposed"]))
    found = {name: value for name, value in loaded.graph.initializers.items() if name in weights}
    for name in list(found)[:: max(1, len(found) // SAMPLED)]:
        value = found[name]
        expected = weights.tensor(name, TORCH_TYPES[value.dtype])
        expected = (expected.T if name in transposed else expected).contiguous()
        stored = value.const_value.tobytes()
        if stored != bytes(expected.flatten().view(torch.uint8).numpy()):
            raise SystemExit(f"{name} in the graph is not the checkpoint's")
    constants = [value.const_value for name, value in loaded.graph.initializers.items() if name not in weights]
    return {
        "nodes": len(loaded.graph),
        "weights": len(found),
        "unused_keys": sorted(set(weights) - set(found)),
        "largest_constant_bytes": max(constant.nbytes for constant in constants),
    }


def probe(folder: Path, _model: str, graph: str, precision: str) -> dict[str, Any]:
    """The whole graph at a small size against torch, layer by layer, as `lssgen-export --probe small` does it."""
    from lssgen.export.on_demand import weights_on_demand
    from lssgen.export.probe import probe_graph

    recipe, parts = recipe_of(folder, graph, "fp32")
    inputs = samples(recipe, height=16, width=24, batch=1, branches=2)
    with weights_on_demand(recipe.build(parts), parts.checkpoint.weights(recipe.components)) as exact:
        (made,) = probe_graph(graph, folder / f"{graph}.onnx", exact, [({}, inputs)], recipe.outputs, precision)
    return {"probe_error": made.error, "probe_peak_gb": peak_gb(), "probe_cpu_seconds": cpu_seconds()}


def check_step(folder: Path, model: str, graph: str, precision: str) -> dict[str, Any]:
    """The whole step in ONNX Runtime against torch."""
    import numpy as np
    import onnxruntime
    import torch

    recipe, parts = recipe_of(folder, graph, precision)
    inputs = samples(recipe, height=16, width=16, batch=1, branches=2)
    session = onnxruntime.InferenceSession(folder / f"{graph}.onnx")
    made = session.run(["next_latent"], {name: value.numpy() for name, value in inputs.items()})[0]
    del session
    module = recipe.build(parts).eval()
    parts.checkpoint.weights(recipe.components).load_into(module)
    with torch.no_grad():
        expected = module(*inputs.values())[0].numpy()
    # What the network adds, not the latent that goes through.
    moved = expected - inputs["latent"].numpy()
    error = float(np.linalg.norm(made - expected) / np.linalg.norm(moved))
    if not error <= SINGLE_TOLERANCE:
        raise SystemExit(f"the step of {model} differs from torch by {error}")
    return {"whole_step_error": error, "whole_step_precision": precision, "whole_step_latent": [16, 16]}


TASKS = {"export": export, "check_names": check_names, "probe": probe, "check_step": check_step}


def recipe_of(folder: Path, graph: str, precision: str) -> tuple[Any, Any]:
    """A graph's recipe and the checkpoint's parts, as `lssgen-export` finds them."""
    from lssgen.export.checkpoint import Checkpoint, Parts
    from lssgen.export.workshop import DTYPES
    from lssgen.models.families import family_of
    from lssgen.models.nets.recipe import Wishes

    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.index)
    channels, _ = family.latent(checkpoint.config(family.network))
    wishes = Wishes(channels=channels, max_sequence_length=family.max_sequence_length, history=family.history)
    parts = Parts(checkpoint, DTYPES[precision])
    recipes = import_module(family.nets).blueprint(parts, wishes).recipes
    return next(recipe for recipe in recipes if recipe.name == graph), parts


def samples(recipe: Any, *, height: int, width: int, batch: int, branches: int) -> dict[str, Any]:
    from lssgen.export.probe import torch_inputs
    from lssgen.parity.samples import axis_sizes

    return torch_inputs(recipe, axis_sizes(height, width, 8, batch=batch, branches=branches, tokens=TOKENS))


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return round(used.ru_utime + used.ru_stime, 1)


def peak_gb() -> float:
    """Of this process. Not ru_maxrss: that starts with what the parent had when it made this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["VmHWM"].split()[0]) * 1024 / 1e9, 3)


def _timed(function: Any, name: str, stages: dict[str, float]) -> Any:
    def timed(*args: Any) -> Any:
        start = time.process_time()
        result = function(*args)
        stages[name] = round(time.process_time() - start, 1)
        return result

    return timed


def conditions() -> dict[str, Any]:
    packages = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    sys.exit(main())
