"""One command for a machine with an NVIDIA GPU: is every backend right, and how fast is it?

    python -m benchmarks.gpu.check --work /big/disk/gpu-check

1. Correctness: every graph and whole runs on ONNX Runtime CUDA, TensorRT and TensorRT-RTX, each where it is installed
   and takes the device, against ONNX Runtime on the CPU: the demo model, and a tiny random model of every family.
   Every tensor inside the step graph, and inside a graph that is wrong, through Polygraphy where that is installed.
2. Latency: SD3-medium and SDXL in full size with random weights, in fp16 at 512 and 1024 px: a step alone, stages,
   gaps between steps, LSSGen against a single stage; the same network in torch, eager and compiled; device memory.
3. Few bits: the demo model and the full-size ones in fp16 become int8, fp8, nvfp4 and int8-weights, each where the GPU
   has it: a step against half precision, in turn, and how far the latents of whole runs are from it.
4. ONNX Runtime: where every node of a graph runs, what TF32 changes, what a launch costs and a CUDA graph would save.

What cannot be done here is skipped, and said. Results go to benchmarks/results/gpu_check.json, after every finding; the
exit status is 1 if something was wrong. `--bundle` checks bundles of your own instead, by all parts or by those that
`--parts` names; with `--seconds` no part begins after so many.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.gpu import latency, layers, parity, placement, quantised
from lssgen.bench.environment import machine_facts
from lssgen.bundle import MANIFEST, Bundle, read_bundle
from lssgen.durable import whole_file
from lssgen.engines.base import Backend
from lssgen.engines.cuda import Device
from lssgen.engines.onnxruntime import OrtBackend
from lssgen.engines.registry import open_backend
from lssgen.errors import LssgenError
from lssgen.jsons import read_json
from lssgen.manifest import Manifest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu_check.json"
ENGINES = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
FAMILIES = {
    "sd3": ("factory", "tiny_sd3"),
    "sd": ("factory_families", "tiny_sd"),
    "sdxl": ("factory_families", "tiny_sdxl"),
    "flux": ("factory_families", "tiny_flux"),
    "cogview4": ("factory_families", "tiny_cogview4"),
}
"""Functions below tests/ that write a tiny checkpoint of each family."""

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cuda-bindings", "torch", "diffusers")
FULL_SIZE = ("sd3-medium", "sdxl")
PARTS = ("parity", "placement", "latency", "formats")
WORST = 5
"""Number of tensors of a graph that are told of."""


@dataclass(slots=True)
class Record:
    """What was found.

    Attributes:
        path: File that it is written to.
        ends: Time after which no part begins, as of `monotonic`.
        machine: Machine that it was found on.
        verdicts: Results of part 1.
        layers: Tensors inside graphs that are furthest off, in engines that keep every tensor. Whether that is too far
            only a person can say: what is rounded may be small.
        timings: Results of part 2, by model.
        contests: Results of part 3.
        placed, launched: Results of part 4.
        memory: Bytes on the device after the runs, by model and engine.
        skipped: Parts that were left out, and why.
    """

    path: Path
    ends: float
    machine: dict[str, object]
    verdicts: list[parity.Verdict] = field(default_factory=list)
    layers: list[parity.Verdict] = field(default_factory=list)
    timings: dict[str, list[latency.Timing]] = field(default_factory=dict)
    contests: list[quantised.Contest] = field(default_factory=list)
    placed: list[placement.Placed] = field(default_factory=list)
    launched: list[placement.Launched] = field(default_factory=list)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def skip(self, what: str, why: object) -> None:
        self.skipped.append(f"{what}: {why}")
        self.say(f"skipped   {what}: {why}")

    def say(self, line: str) -> None:
        """Show a line, and write what is there so far."""
        print(line, flush=True)
        found = {name: value for name, value in asdict(self).items() if name not in ("path", "ends")}
        with whole_file(self.path) as draft:
            draft.write_text(json.dumps(found, indent=2) + "\n")

    def late(self, what: str) -> bool:
        """Whether the time is over, which is noted."""
        if monotonic() < self.ends:
            return False
        self.skip(what, "the time is over")
        return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu-check"), help="folder for checkpoints and bundles")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="check this bundle; may be repeated")
    parser.add_argument("--step", type=Path, action="append", default=[], help="time a step of full_size_quantise")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="with --bundle: parts to do")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=ENGINES)
    parser.add_argument("--full-size", nargs="*", choices=FULL_SIZE, default=FULL_SIZE, help="none: correctness only")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no part after so many")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    record = Record(args.output, monotonic() + args.seconds, machine())
    backends = dict(opened(args.engines, record))
    if not backends:
        record.skip("everything", "no engine takes a GPU of this machine")
    elif args.bundle or args.step:
        for bundle in map(read_bundle, args.bundle):
            examine(bundle, args.work, backends, record, args.parts)
        for folder in args.step:
            bundle = Bundle(folder, read_json(folder / MANIFEST, Manifest))  # it lacks what every run needs
            examine(bundle, args.work, backends, record, ("latency", "placement"))
    else:
        for bundle in small_bundles(args.work, record):
            whole = bundle.manifest.facts.name == "demo" and bundle.manifest.graphs["step"].precision == "fp16"
            examine(bundle, args.work, backends, record, PARTS if whole else ("parity", "placement"))
        for model in args.full_size:
            race(model, args.work, backends, record)
    record.say(table(record))
    return 1 if any(verdict.state == "WRONG" for verdict in record.verdicts) else 0


def machine() -> dict[str, object]:
    """Date, processor, card, driver and versions."""
    found: dict[str, object] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **machine_facts()}
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    try:
        found |= Device().describe()
    except LssgenError as error:
        found["device"] = str(error)
    return found


def opened(engines: Sequence[str], record: Record) -> Iterator[tuple[str, Callable[[], Backend]]]:
    """The engines that take this machine's GPU. Each check opens its own, so that memory starts from nothing."""
    for engine in engines:
        try:
            open_backend(engine)
        except LssgenError as error:
            record.skip(engine, error)
        else:
            yield engine, lambda engine=engine: open_backend(engine)


def examine(
    bundle: Bundle, work: Path, backends: dict[str, Callable[[], Backend]], record: Record, parts: Sequence[str]
) -> None:
    """One bundle, by the parts that are asked for."""
    does: dict[str, Callable[[Backend], None]] = {
        "parity": lambda backend: check(bundle, open_backend("onnxruntime"), backend, record),
        "placement": lambda backend: look_at_placement(bundle, backend, record),
        "latency": lambda backend: clock(bundle, backend, record),
        "formats": lambda backend: contest(bundle, work, backend, record),
    }
    for part in parts:
        for name, open_one in backends.items():
            what = f"{part} of {bundle.folder.name} on {name}"
            if record.late(what):
                continue
            try:
                does[part](open_one())
            except Exception as error:  # whatever it is, the other parts shall be done
                record.skip(what, f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}")


def look_at_placement(bundle: Bundle, backend: Backend, record: Record) -> None:
    """Part 4 for one model."""
    if not isinstance(backend, OrtBackend):
        return
    for found in placement.placements(bundle, backend):
        record.placed.append(found)
        record.say(f"placed    {found.what}: {found.note or found.nodes}, elsewhere {found.elsewhere}")
    for launch in placement.launches(bundle, backend):
        record.launched.append(launch)
        record.say(f"launched  {launch.what}: {launch.ms}, errors {launch.error} {launch.note}")


def clock(bundle: Bundle, backend: Backend, record: Record) -> None:
    """Part 2 for one model on one backend."""
    name = bundle.manifest.facts.name
    timings = record.timings.setdefault(f"{name} {bundle.manifest.graphs['step'].precision}", [])
    before, _ = Device().memory()
    alone = latency.step_timings(bundle, backend)
    for timing in (*alone, *(latency.run_timings(bundle, backend, alone) if "text" in bundle.manifest.graphs else ())):
        timings.append(timing)
        record.say(f"timed     {timing.engine}: {name}: {timing.what}: {timing.ms:.3f} ms {timing.note}")
    record.memory.setdefault(name, {})[backend.name] = before - Device().memory()[0]


def check(bundle: Bundle, reference: Backend, backend: Backend, record: Record) -> None:
    """Part 1 for one bundle on one backend."""
    before = len(record.verdicts)
    for verdicts in (parity.graph_verdicts, parity.run_verdicts):
        for verdict in verdicts(bundle, reference, backend):
            record.verdicts.append(verdict)
            detail = verdict.note or f"error {verdict.error:.1e}, bound {verdict.bound:.0e}"
            record.say(f"{verdict.state:<9} {verdict.engine}: {verdict.what}: {detail}")
    if backend.name == "tensorrt":  # Polygraphy has one of the two libraries in a process
        wrong = {verdict.graph for verdict in record.verdicts[before:] if verdict.state == "WRONG"}
        for graph in sorted(wrong & set(bundle.manifest.graphs) | {"step"}):
            look_inside(bundle, graph, record)


def look_inside(bundle: Bundle, graph: str, record: Record) -> None:
    """The tensors of a graph that TensorRT computes worst."""
    try:
        found = layers.graph_layers(bundle, graph)[:WORST]
    except Exception as error:  # Polygraphy has its own, and this is a hint and no verdict
        record.skip(f"layers of {bundle.manifest.facts.name} {graph}", error)
        return
    record.layers += found
    for verdict in found:
        record.say(f"layer     {verdict.engine}: {verdict.what}: error {verdict.error:.1e}")


def contest(bundle: Bundle, work: Path, backend: Backend, record: Record) -> None:
    """Part 3 for one model on one backend."""
    for found in quantised.contests(bundle, backend, work):
        record.contests.append(found)
        said = found.note or f"{found.computed}: {found.speedup}, latents {found.psnr_db} dB, {found.kept} kept"
        record.say(f"few bits  {found.engine}: {found.what}: {said}")
        if record.late(f"more formats of {bundle.folder.name} on {backend.name}"):
            return


def race(model: str, work: Path, backends: dict[str, Callable[[], Backend]], record: Record) -> None:
    """Part 2 for one model."""
    try:
        bundle = full_size_bundle(model, work)
    except (ImportError, OSError, LssgenError) as error:
        record.skip(f"latency of {model}", error)
        return
    examine(bundle, work, backends, record, ("placement", "latency", "formats"))
    timings = record.timings.setdefault(f"{bundle.manifest.facts.name} fp16", [])
    sizes = tuple(
        (height // bundle.manifest.facts.cell_px, width // 8) for height, width in bundle.manifest.resolutions
    )
    try:
        for timing in latency.torch_timings(model, sizes):
            timings.append(timing)
            record.say(f"timed     {timing.engine}: {model}: {timing.what}: {timing.ms:.3f} ms")
    except (ImportError, RuntimeError, AssertionError) as error:  # no CUDA in this torch, or no room
        record.skip(f"{model} in torch", error)


def small_bundles(work: Path, record: Record) -> Iterator[Bundle]:
    """The demo model, and a tiny random model of every family, in fp32 and fp16."""
    try:
        from lssgen.export.config import ExportConfig
        from lssgen.export.export import export
    except ImportError as error:
        record.skip("the demo model and the families", f"lssgen[export] is not installed ({error})")
        return
    sys.path.insert(0, str(ROOT / "tests"))
    for precision in ("fp32", "fp16"):
        checkpoints: dict[str, Callable[[], str]] = {"demo": lambda: "demo"}
        for family, (module, function) in FAMILIES.items():
            folder = work / "checkpoints" / family
            checkpoints[family] = lambda m=module, f=function, to=folder: str(written(m, f, to))
        for name, checkpoint in checkpoints.items():
            sizes = ((128, 128), (256, 256)) if name == "demo" else ((64, 64), (128, 128))
            try:
                output = work / "bundles" / f"{name}-{precision}"
                # Slots for LoRAs in the families, so that they are compared too; as in the demo model, none are usual.
                slots = 0 if name == "demo" else 1
                config = ExportConfig(
                    model=checkpoint(),
                    output=output,
                    resolutions=sizes,
                    precision=precision,  # type: ignore[arg-type]
                    lora_slots=slots,
                    lora_layers="all",
                )
                yield export(config)
            except (ImportError, AttributeError, LssgenError) as error:
                record.skip(f"{name} in {precision}", error)


def written(module: str, function: str, folder: Path) -> Path:
    """A tiny checkpoint, written once."""
    if not folder.exists():
        getattr(import_module(module), function)(folder)
    return folder


def full_size_bundle(model: str, work: Path) -> Bundle:
    """A bundle of a full-size model with random weights, exported once."""
    from lssgen.export.export import export

    return export(full_size_config(model, work), lambda line: print(line, flush=True))


def full_size_config(model: str, work: Path, **changes: Any) -> Any:
    """How such a bundle is exported, from a checkpoint that is written once."""
    import torch

    from benchmarks.checkpoints import MODELS, write_checkpoint
    from lssgen.export.config import ExportConfig

    sys.path.insert(0, str(ROOT / "tests"))
    tokenizers = import_module("factory")
    checkpoint = work / "checkpoints" / model
    parts = tuple(part for part in MODELS[model][1] if part not in ("scheduler", "text_encoder_3"))
    if not (checkpoint / "model_index.json").exists():
        write_checkpoint(model, checkpoint, parts, torch.float16)
        for name in ("tokenizer", "tokenizer_2"):
            if f"text_encoder{name.removeprefix('tokenizer')}" in parts:
                tokenizers.clip_tokenizer(checkpoint / name, pad=tokenizers.CLIP_END)
    config = ExportConfig(
        model=str(checkpoint),
        output=work / "bundles" / model,
        resolutions=((512, 512), (1024, 1024)),
        precision="fp16",
        t5=False,
    )
    return replace(config, **changes)


def table(record: Record) -> str:
    """The record for people."""
    lines = ["", " ".join(f"{key} {value};" for key, value in record.machine.items())]
    states = [verdict.state for verdict in record.verdicts]
    lines.append(", ".join(f"{states.count(state)} {state}" for state in ("ok", "WRONG", "skipped")))
    for model, timings in record.timings.items():
        if not timings:
            continue
        engines = list(dict.fromkeys(timing.engine for timing in timings))
        width = max(len(timing.what) for timing in timings)
        lines += ["", f"{model}, ms".ljust(width) + "".join(f"{engine:>18}" for engine in engines)]
        for what in dict.fromkeys(timing.what for timing in timings):
            ms: dict[str, Any] = {timing.engine: timing.ms for timing in timings if timing.what == what}
            cells = (f"{ms[engine]:18.2f}" if engine in ms else " " * 18 for engine in engines)
            lines.append(what.ljust(width) + "".join(cells))
    for model, sizes in record.memory.items():
        lines += [f"device memory of {model} on {engine}: {size / 1e9:.2f} GB" for engine, size in sizes.items()]
    lines += ["", *(f"skipped: {line}" for line in record.skipped)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
