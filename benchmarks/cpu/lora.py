"""What slots for LoRAs cost: a step with them beside the same step without, and how long another LoRA takes.

    python -m benchmarks.cpu.lora --work DIR [--models demo,sd3-123m] [--ranks 16,64] [--engines onnxruntime,openvino]
                                  [--rounds 9] [--threads 1]

Every model is exported without slots, which is also what a merged LoRA costs, and with slots of every number of ranks.
The steps of one size take turns, two branches each, with a LoRA in the slots; ratios are of one round. Then a LoRA of
the first number of ranks is read from its file, put in from memory, and chosen again while it is there. Results go to
benchmarks/results/cpu_lora.json, which keeps those of other models.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from benchmarks.cpu.contestants import engine_of, lssgen_step
from benchmarks.cpu.models import SIZES, ZEROS, bundle_of, config_of
from benchmarks.cpu.turns import clock_of, conditions, in_turn, times_as_fast
from benchmarks.saving import save
from lssgen.bundle import MANIFEST, Bundle, read_bundle
from lssgen.engines.base import Backend
from lssgen.export.export import export
from lssgen.manifest import LoraFactors
from lssgen.runtime.loras import LoraBank

RESULTS = Path(__file__).parents[1] / "results" / "cpu_lora.json"

CLIP_TOKENS = 77

REPEATS = 20


def slotted(model: str, ranks: int, work: Path) -> Bundle:
    """Bundle of a model with slots; exported once."""
    folder = work / "bundles" / f"{model}-ranks{ranks}"
    if not (folder / MANIFEST).exists():
        export(replace(config_of(model, work, folder), lora_slots=1, lora_rank=ranks), print)
    return read_bundle(folder)


def facts_of(bundle: Bundle) -> dict[str, Any]:
    """Size of the step's graph, without weights."""
    entry = bundle.manifest.graphs["step"]
    graph = onnx.load(bundle.path(entry.file), load_external_data=False).graph
    slots = bundle.manifest.feeds(LoraFactors)
    return {
        "nodes": len(graph.node),
        "graph_bytes": bundle.path(entry.file).stat().st_size,
        "factor_bytes": sum(4 * port.shape[0] * port.shape[1] for port in entry.inputs if port.name == "lora_factors"),  # pyright: ignore
        "layers": len(slots[0].layers) if slots else 0,  # pyright: ignore[reportAttributeAccessIssue]
    }


def steps(model: str, bundles: Mapping[str, Bundle], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A step's time in every form, at every size on every engine, relative to that without slots."""
    rows: list[dict[str, Any]] = []
    tokens = CLIP_TOKENS + ZEROS[model]
    for size in SIZES[model]:
        for engine in args.engines:
            works = {name: lssgen_step(engine, one, size, tokens, args.threads) for name, one in bundles.items()}
            times = in_turn(works, args.rounds)
            clock = clock_of(args.threads)
            rows += [
                {
                    "size_px": size,
                    "engine": engine,
                    "form": name,
                    "step_ms": 1e3 * median(getattr(times[name], clock)),
                    "times_as_long": 1 / times_as_fast(times, name, "plain", clock),
                }
                for name in bundles
            ]
            print(json.dumps(rows[-len(bundles) :], indent=2))
    return rows


def changes(bundle: Bundle, folder: Path, backend: Backend) -> dict[str, Any]:
    """Time until another LoRA is in the slots: read from its file, from memory, and while it is there."""
    files = [_random_lora(bundle, folder / f"{number}.safetensors", number) for number in range(2)]
    read: list[float] = []
    put: list[float] = []
    chosen: list[float] = []
    for _ in range(REPEATS):
        bank = LoraBank(bundle, backend)
        bank.buffer("step").read_part(0, 1)
        began = perf_counter()
        bank.place(bank.read([str(files[0])], 1))
        bank.buffer("step").read_part(0, 1)  # waits
        read.append(perf_counter() - began)
        bank.read([str(files[1])], 1)
        began = perf_counter()
        bank.place(other := bank.read([str(files[1])], 1))
        bank.buffer("step").read_part(0, 1)
        put.append(perf_counter() - began)
        began = perf_counter()
        bank.place(other)
        bank.weights(other, 0)
        chosen.append(perf_counter() - began)
    return {
        "file_bytes": files[0].stat().st_size,
        "from_file_ms": 1e3 * median(read),
        "from_memory_ms": 1e3 * median(put),
        "while_there_us": 1e6 * median(chosen),
    }


def _random_lora(bundle: Bundle, path: Path, seed: int) -> Path:
    """A LoRA of all layers that fills the slots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed).standard_normal
    ranks = LoraBank(bundle, engine_of("onnxruntime", 1)).ranks
    tensors: dict[str, np.ndarray] = {}
    for feed in bundle.manifest.feeds(LoraFactors):
        assert isinstance(feed, LoraFactors)
        for name, (out, *inside) in feed.layers.items():
            layer = name.removesuffix(".weight")
            tensors[f"{layer}.lora_A.weight"] = draw((ranks, *inside), np.float32)
            tensors[f"{layer}.lora_B.weight"] = draw((out, ranks, *[1] * (len(inside) - 1)), np.float32)
    save_file(tensors, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(SIZES))
    parser.add_argument("--ranks", type=lambda text: list(map(int, text.split(","))), default=[16, 64])
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["onnxruntime", "openvino"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    ort = engine_of("onnxruntime", args.threads)
    for model in args.models:
        bundles = {"plain": bundle_of(model, args.work)}
        bundles |= {f"{ranks} ranks": slotted(model, ranks, args.work) for ranks in args.ranks}
        report = {
            "conditions": conditions(args.threads),
            "rounds": args.rounds,
            "forms": {name: facts_of(one) for name, one in bundles.items()},
            "steps": steps(model, bundles, args),
            "another_lora": changes(bundles[f"{args.ranks[0]} ranks"], args.work / "loras" / model, ort),
        }
        save(RESULTS, model, report)
        print(json.dumps(report["another_lora"], indent=2))


if __name__ == "__main__":
    main()
