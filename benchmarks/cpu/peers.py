"""Other people's single-stage runs of the same checkpoint, beside lssgen's: each in processes of its own, in turn.

    python -m benchmarks.cpu.peers --work DIR --peers PYTHON [--models demo] [--sizes 256] [--score 60]

PYTHON is the interpreter of an environment in which optimum-onnx, optimum-intel and openvino-genai are installed; they
need older transformers and diffusers than lssgen does. torch.compile is measured here. A round starts a process for
each contestant, which loads, paints once to warm up, and then pictures that count: by the clock, or with one thread by
the processor's time. A peer that cannot load the model is recorded with its own words. With --score, pictures of
held-out prompts are judged instead. Results go to benchmarks/results/cpu_peers.json.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.cpu.goals import RUNS, STAGES, WAYS
from benchmarks.cpu.models import bundle_of, checkpoint_of
from benchmarks.cpu.turns import clock_of, conditions
from benchmarks.demo_quality import held_out_prompts, wilson
from benchmarks.saving import save
from lssgen.bench.cases import wordings

RESULTS = Path(__file__).parents[1] / "results" / "cpu_peers.json"

TIMED = """
import json, sys
from time import perf_counter, process_time
paint, prompts = make(), {prompts!r}
paint(prompts[0])
walls, cpus = [], []
for prompt in prompts[1:]:
    began, busy = perf_counter(), process_time()
    paint(prompt)
    walls.append(perf_counter() - began)
    cpus.append(process_time() - busy)
print(json.dumps({{"wall": sorted(walls)[len(walls) // 2], "cpu": sorted(cpus)[len(cpus) // 2]}}))
"""

PAINTED = """
import numpy as np
paint = make()
np.save({file!r}, np.stack([np.asarray(paint(prompt)) for prompt in {prompts!r}]))
print("{{}}")
"""

ZEROS: Mapping[str, int] = {"demo": 0, "sd3-123m": 77}
"""Rows of zeros that stand for T5's tokens: of the larger model as many as OpenVINO GenAI has, which cannot be told.
Everybody else is (`max_sequence_length`)."""

ABSENT = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))

OPENVINO = """
def make():
    from pathlib import Path
    import openvino
    folder = Path({work!r}) / "openvino-genai" / {model!r}
    if not folder.exists():
        from diffusers import StableDiffusion3Pipeline
        from openvino_tokenizers import convert_tokenizer
        from optimum.exporters.openvino.convert import export_from_model
        pipe = StableDiffusion3Pipeline.from_pretrained({checkpoint!r}, **{absent})
        export_from_model(pipe, folder, task="text-to-image", stateful=False)
        from transformers import CLIPTokenizerFast
        for name in ("tokenizer", "tokenizer_2"):
            tokenizer = CLIPTokenizerFast.from_pretrained({checkpoint!r}, subfolder=name)
            openvino.save_model(convert_tokenizer(tokenizer), folder / name / "openvino_tokenizer.xml")
    how = dict(INFERENCE_NUM_THREADS={threads}) if {threads} else dict()
    how["PERFORMANCE_HINT"] = "LATENCY"
"""
GENAI = (
    OPENVINO
    + """
    import openvino_genai
    pipe = openvino_genai.Text2ImagePipeline(str(folder), "CPU", **how)
"""
)
"""OpenVINO GenAI's pipeline. By itself it has a cache on, TaylorSeer, which extrapolates a part of the steps instead of
computing them: 8 of 20. It is measured without, which is what all others compute, and with. It cannot be told how many
rows of zeros stand for T5's tokens, and has more of them than the demo model was trained with."""

PEERS = {
    "torch bf16 compiled": """
def make():
    import torch
    from benchmarks.cpu.contestants import torch_run
    if {threads}:
        torch.set_num_threads({threads})
    run = torch_run("torch bf16 compiled", __import__("pathlib").Path({checkpoint!r}), {size}, {steps}, {zeros})
    return lambda prompt: run(prompt, 1)
""",
    "optimum-onnx": """
def make():
    from pathlib import Path
    from optimum.onnxruntime import ORTStableDiffusion3Pipeline
    import onnxruntime
    folder = Path({work!r}) / "optimum-onnx" / {model!r}
    if not folder.exists():
        from diffusers import StableDiffusion3Pipeline
        from optimum.exporters.onnx.convert import onnx_export_from_model
        pipe = StableDiffusion3Pipeline.from_pretrained({checkpoint!r}, **{absent})
        onnx_export_from_model(pipe, folder, task="text-to-image", do_validation=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = {threads}
    pipe = ORTStableDiffusion3Pipeline.from_pretrained(folder, session_options=options)
    pipe.set_progress_bar_config(disable=True)
    return lambda prompt: pipe(prompt, negative_prompt="", height={size}, width={size}, num_inference_steps={steps},
                               guidance_scale=4.0, max_sequence_length={zeros}).images[0]
""",
    "optimum-intel": OPENVINO
    + """
    from optimum.intel import OVStableDiffusion3Pipeline
    pipe = OVStableDiffusion3Pipeline.from_pretrained(folder, device="CPU", ov_config=how)
    pipe.set_progress_bar_config(disable=True)
    return lambda prompt: pipe(prompt, negative_prompt="", height={size}, width={size}, num_inference_steps={steps},
                               guidance_scale=4.0, max_sequence_length={zeros}).images[0]
""",
    "openvino-genai": GENAI
    + """
    config = pipe.get_generation_config()
    config.taylorseer_config = None
    pipe.set_generation_config(config)
    return lambda prompt: pipe.generate(prompt, height={size}, width={size}, num_inference_steps={steps},
                                        guidance_scale=4.0).data[0]
""",
    "openvino-genai, with its step cache": GENAI
    + """
    return lambda prompt: pipe.generate(prompt, height={size}, width={size}, num_inference_steps={steps},
                                        guidance_scale=4.0).data[0]
""",
    "stable-diffusion.cpp": """
def make():
    from stable_diffusion_cpp import StableDiffusion
    pipe = StableDiffusion(diffusion_model_path={checkpoint!r} + "/transformer/diffusion_pytorch_model.safetensors")
    return lambda prompt: pipe.generate_image(prompt=prompt, width={size}, height={size}, sample_steps={steps})[0]
""",
}
"""Python that makes a function which paints once, by the peer's name."""

OURS = """
def make():
    import lssgen
    pipe = lssgen.load({bundle!r}, engine={engine!r}, threads={threads})
    return lambda prompt: pipe(prompt, negative_prompt="", height={size}, width={size}, num_inference_steps={steps},
                               guidance_scale=4.0, **{options!r}).images[0]
"""
PROMPT = "a red star above a blue circle on a white background"

HERE = ("torch bf16 compiled",)
"""Peers that run in lssgen's own environment."""


def asked(python: str, code: str, threads: int) -> dict[str, float] | str:
    """What a contestant's process measured, or its last words."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        found: dict[str, float] = json.loads(lines[-1])
        return found
    words = [line for line in done.stderr.splitlines() if line.strip()]
    return words[-1][:400] if words else f"it ended with status {done.returncode}, without a word"


def codes_of(model: str, size: int, steps: int, args: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Interpreter and code of every contestant."""
    words: dict[str, Any] = {
        "work": str(args.work.resolve() / "peers"), "checkpoint": str(checkpoint_of(model, args.work).resolve()),
        "bundle": str(bundle_of(model, args.work, ZEROS[model]).folder.resolve()), "threads": args.threads,
        "size": size, "steps": steps, "zeros": ZEROS[model], "absent": ABSENT, "model": model,
    }  # fmt: skip
    found = {
        name: (sys.executable if name in HERE else args.peers, code.format(**words)) for name, code in PEERS.items()
    }
    shared = {**STAGES[model], **({} if model == "demo" else {"min_resolution": size // 2})}
    for engine in ("onnxruntime", "auto"):
        for way, sigma in WAYS.items():
            code = OURS.format(**words, engine=engine, options={**shared, "start_sigma": sigma})
            found[f"lssgen {engine}, {way}"] = (sys.executable, code)
    return {name: code for name, code in found.items() if name in (args.only or (name,))}


def measured(codes: dict[str, tuple[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    """All contestants, in turn."""
    timed = TIMED.format(prompts=wordings(PROMPT, 1 + args.pictures))
    times: dict[str, list[dict[str, float]]] = {name: [] for name in codes}
    refused: dict[str, str] = {}
    for number in range(args.rounds):
        for name, (python, code) in codes.items():
            if name in refused:
                continue
            found = asked(python, code + timed, args.threads)
            if isinstance(found, str):
                refused[name] = found
                print(f"{name}: {found}", flush=True)
            else:
                times[name].append(found)
        print(f"round {number + 1} of {args.rounds}", flush=True)
    clock = clock_of(args.threads)
    ways = {f"lssgen auto, {way}": times.get(f"lssgen auto, {way}", []) for way in WAYS}
    rows = {
        name: {
            "cpu_s": median(one["cpu"] for one in every),
            "wall_s": median(one["wall"] for one in every),
            "is_outrun_by": {
                ours: median(a[clock] / b[clock] for a, b in zip(every, mine, strict=True))
                for ours, mine in ways.items()
                if mine
            },
        }
        for name, every in times.items()
        if every
    }
    return {"rows": rows, "cannot_load": refused}


SCORED = (
    "optimum-onnx",
    "optimum-intel",
    "openvino-genai",
    "openvino-genai, with its step cache",
    *(f"lssgen auto, {way}" for way in WAYS),
)
"""Contestants whose pictures of the demo model are judged: those that are nearest to each other in time."""


def scored(codes: dict[str, tuple[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    """Shares of held-out prompts that the demo model paints wholly right."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo_model"))
    from score import score

    prompts = list(held_out_prompts(args.score))
    found: dict[str, Any] = {}
    for name, (python, code) in codes.items():
        file = args.work.resolve() / "peers" / "pictures.npy"
        said = asked(python, code + PAINTED.format(file=str(file), prompts=prompts), args.threads)
        if isinstance(said, str):
            continue
        right = [bool(score(image, prompt).right) for image, prompt in zip(np.load(file), prompts, strict=True)]
        share = float(np.mean(right))
        found[name] = {"share": share, "interval": wilson(share, len(right)), "prompts": len(right)}
        print(name, found[name], flush=True)
    return found


def _refused_too(key: str, found: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, and who else cannot load the model: nobody who was asked now can."""
    known = json.loads(RESULTS.read_text())[key]
    return {**known, "cannot_load": {**known["cannot_load"], **found["cannot_load"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", default=sys.executable, help="python that has the peers")
    parser.add_argument("--models", nargs="*", default=list(RUNS))
    parser.add_argument("--sizes", nargs="*", type=int, default=[])
    parser.add_argument("--only", nargs="*", default=[], help="contestants; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--score", type=int, default=0, metavar="N", help="judge N pictures instead of timing any")
    args = parser.parse_args()
    if args.score:
        codes = codes_of("demo", *RUNS["demo"][0], args)
        judged = scored({name: codes[name] for name in SCORED}, args)
        save(RESULTS, "score", {**conditions(args.threads), "rows": judged})
        return
    for model in args.models:
        for size, steps in RUNS[model]:
            if args.sizes and size not in args.sizes:
                continue
            print(f"{model} at {size} px, {steps} steps", flush=True)
            found = measured(codes_of(model, size, steps, args), args)
            about = {"steps": steps, "rounds": args.rounds, "pictures": args.pictures}
            part = {**about, "conditions": conditions(args.threads), **found}
            save(RESULTS, f"{model} {size}", part if found["rows"] else _refused_too(f"{model} {size}", found))
            print(json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main()
