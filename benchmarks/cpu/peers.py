"""Other people's single-stage runs of the same checkpoint, beside lssgen's: each in processes of its own, in turn.

    python -m benchmarks.cpu.peers --work DIR --peers PYTHON [--rounds 3] [--threads 1] [--size 256] [--steps 20]

PYTHON is the interpreter of an environment in which optimum-onnx, optimum-intel and openvino-genai are installed; they
need older transformers and diffusers than lssgen does. A round starts a process for each of them, which
loads, paints once to warm up, and then several pictures; where there is one thread, the processor's time of one is
what counts. A peer that cannot load the model is recorded with its own words. Results go to
benchmarks/results/cpu_peers.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.cpu.models import bundle_of, checkpoint_of
from benchmarks.cpu.turns import conditions

RESULTS = Path(__file__).parents[1] / "results" / "cpu_peers.json"
PICTURES = 3

TIMED = """
import json, sys
from time import perf_counter, process_time
paint = make()
paint()
walls, cpus = [], []
for _ in range({pictures}):
    began, busy = perf_counter(), process_time()
    paint()
    walls.append(perf_counter() - began)
    cpus.append(process_time() - busy)
print(json.dumps({{"wall": sorted(walls)[len(walls) // 2], "cpu": sorted(cpus)[len(cpus) // 2]}}))
"""

ABSENT = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))

PEERS = {
    "optimum-onnx": """
def make():
    from pathlib import Path
    from optimum.onnxruntime import ORTStableDiffusion3Pipeline
    import onnxruntime
    folder = Path({work!r}) / "optimum-onnx"
    if not folder.exists():
        from diffusers import StableDiffusion3Pipeline
        from optimum.exporters.onnx.convert import onnx_export_from_model
        pipe = StableDiffusion3Pipeline.from_pretrained({checkpoint!r}, **{absent})
        onnx_export_from_model(pipe, folder, task="text-to-image")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = {threads}
    pipe = ORTStableDiffusion3Pipeline.from_pretrained(folder, session_options=options)
    pipe.set_progress_bar_config(disable=True)
    return lambda: pipe({prompt!r}, negative_prompt="", height={size}, width={size}, num_inference_steps={steps},
                        guidance_scale=4.0)
""",
    "openvino-genai": """
def make():
    from pathlib import Path
    import openvino, openvino_genai
    folder = Path({work!r}) / "openvino-genai"
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
    pipe = openvino_genai.Text2ImagePipeline(str(folder), "CPU", INFERENCE_NUM_THREADS={threads})
    return lambda: pipe.generate({prompt!r}, height={size}, width={size}, num_inference_steps={steps},
                                 guidance_scale=4.0)
""",
    "stable-diffusion.cpp": """
def make():
    from stable_diffusion_cpp import StableDiffusion
    pipe = StableDiffusion(diffusion_model_path={checkpoint!r} + "/transformer/diffusion_pytorch_model.safetensors")
    return lambda: pipe.generate_image(prompt={prompt!r}, width={size}, height={size}, sample_steps={steps})
""",
}
"""Python that makes a function which paints once, by the peer's name."""

OURS = """
def make():
    import lssgen
    pipe = lssgen.load({bundle!r}, engine={engine!r}, threads={threads})
    numbers = iter(range(100))
    words = {prompt!r}.split()
    def paint():
        turn = next(numbers) % len(words)
        return pipe(" ".join(words[turn:] + words[:turn]), negative_prompt="", height={size}, width={size},
                    num_inference_steps={steps}, guidance_scale=4.0, **{options!r})
    return paint
"""
PROMPT = "a red star above a blue circle on a white background"


def asked(python: str, code: str, threads: int) -> dict[str, float] | str:
    """What a contestant's process measured, or its last words."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        found: dict[str, float] = json.loads(lines[-1])
        return found
    words = [line for line in done.stderr.splitlines() if line.strip()]
    return words[-1][:400] if words else f"it ended with status {done.returncode}, without a word"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", default=sys.executable, help="python that has the peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    args = parser.parse_args()
    words = {
        "work": str(args.work.resolve() / "peers"), "checkpoint": str(checkpoint_of("demo", args.work)),
        "bundle": str(bundle_of("demo", args.work).folder.resolve()), "threads": args.threads, "size": args.size,
        "steps": args.steps, "prompt": PROMPT, "absent": ABSENT,
    }  # fmt: skip
    timed = TIMED.format(pictures=args.pictures)
    codes = {name: (args.peers, code.format(**words) + timed) for name, code in PEERS.items()}
    for engine in ("onnxruntime", "auto"):
        for way, options in (("staged", {}), ("one stage", {"start_sigma": 1.0})):
            code = OURS.format(**words, engine=engine, options=options)
            codes[f"lssgen {engine}, {way}"] = (sys.executable, code + timed)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in codes}
    refused: dict[str, str] = {}
    for number in range(args.rounds):
        for name, (python, code) in codes.items():
            if name in refused:
                continue
            found = asked(python, code, args.threads)
            if isinstance(found, str):
                refused[name] = found
            else:
                times[name].append(found)
        print(f"round {number + 1} of {args.rounds}", flush=True)
    ours = times["lssgen auto, staged"]
    rows = {
        name: {
            "cpu_s": median(one["cpu"] for one in every),
            "wall_s": median(one["wall"] for one in every),
            "staged_auto_is_times_as_fast": median(a["cpu"] / b["cpu"] for a, b in zip(every, ours, strict=True)),
        }
        for name, every in times.items()
        if every
    }
    report = {"conditions": conditions(args.threads), "size": args.size, "steps": args.steps, "rows": rows,
              "cannot_load": refused, "rounds": args.rounds}  # fmt: skip
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({"rows": rows, "cannot_load": refused}, indent=2))


if __name__ == "__main__":
    main()
