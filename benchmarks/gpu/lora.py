"""What slots for LoRAs cost on a GPU: a step with them beside the same step without, and how long another LoRA takes.

    python -m benchmarks.gpu.lora --work /big/disk/gpu-check [--model sdxl] [--ranks 16,64] [--engine onnxruntime-cuda]

The full-size model with random weights in fp16, as `benchmarks.gpu.check` exports it, and with slots of every number of
ranks; each form's steps in turn, three times, of which the fastest counts. Results go to
benchmarks/results/gpu_lora.json, which keeps those of other models and engines.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.cpu.lora import changes, facts_of
from benchmarks.gpu.check import full_size_bundle, full_size_config
from benchmarks.gpu.latency import step_timings
from benchmarks.saving import save
from lssgen.bench.environment import machine_facts
from lssgen.bundle import MANIFEST, Bundle, read_bundle
from lssgen.engines.registry import open_backend
from lssgen.export.export import export

RESULTS = Path(__file__).parents[1] / "results" / "gpu_lora.json"

TURNS = 3


def slotted(model: str, ranks: int, work: Path) -> Bundle:
    """The full-size model with slots; exported once, after the one without."""
    folder = work / "bundles" / f"{model}-ranks{ranks}"
    if not (folder / MANIFEST).exists():
        export(full_size_config(model, work, output=folder, lora_slots=1, lora_rank=ranks), print)
    return read_bundle(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="sdxl")
    parser.add_argument("--ranks", type=lambda text: list(map(int, text.split(","))), default=[16, 64])
    parser.add_argument("--engine", default="onnxruntime-cuda")
    args = parser.parse_args()
    bundles = {"plain": full_size_bundle(args.model, args.work)}
    bundles |= {f"{ranks} ranks": slotted(args.model, ranks, args.work) for ranks in args.ranks}
    fastest: dict[str, dict[str, float]] = {}
    for _ in range(TURNS):
        for form, bundle in bundles.items():
            for timing in step_timings(bundle, open_backend(args.engine)):
                known = fastest.setdefault(timing.what, {})
                known[form] = min(timing.ms, known.get(form, timing.ms))
                print(form, asdict(timing), flush=True)
    report = {
        "machine": dict(machine_facts()),
        "engine": args.engine,
        "forms": {form: facts_of(bundle) for form, bundle in bundles.items()},
        "step_ms": fastest,
        "times_as_long": {
            what: {form: ms / forms["plain"] for form, ms in forms.items()} for what, forms in fastest.items()
        },
        "another_lora": changes(
            bundles[f"{args.ranks[0]} ranks"], args.work / "loras" / args.model, open_backend(args.engine)
        ),
    }
    save(RESULTS, f"{args.model} {args.engine}", report)
    print(json.dumps(report["times_as_long"], indent=2))
    print(json.dumps(report["another_lora"], indent=2))


if __name__ == "__main__":
    main()
