"""lssgen-run: paint pictures from a bundle. Needs no torch."""

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
from tqdm import tqdm

from lssgen import paths
from lssgen.bundle import MANIFEST, read_bundle, sha256_of
from lssgen.commands.common import run, whole
from lssgen.commands.engine_options import add_build_options, bounds_from_args, build_from_args
from lssgen.commands.plan import as_table
from lssgen.commands.plan_options import add_plan_options, given_options, size_from_text
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import ENGINES, open_backend
from lssgen.errors import ExportError, PromptError
from lssgen.runtime.demand import demand_of
from lssgen.runtime.options import PLAN_WORDS, Options, request_from_options
from lssgen.runtime.origin import read_picture
from lssgen.runtime.pictures import FORMATS, refuse_unwritable, write_file, write_picture
from lssgen.runtime.pipeline import Pipeline, find_bundle
from lssgen.runtime.prompt_file import PromptFolders, read_prompt_file
from lssgen.runtime.record import RECORD, PictureRecord, options_from_file, parameters_of, record_of, write_record
from lssgen.runtime.results import BatchTimes, OnProgress, Picture, Progress


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lssgen-run", description="Paint pictures from an exported bundle. Needs no torch."
    )
    parser.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="what to paint; several prompts are painted in turn"
    )
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        help="folder that lssgen-export wrote; default: the demo model, exported on first use",
    )
    parser.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help='what the pictures should not show; "" is encoded, while SDXL hears zeros where none is given',
    )
    parser.add_argument("--seed", type=int, metavar="N", help="picture i is painted with seed + i; default: 0")
    parser.add_argument("--num-images", type=int, metavar="N", help="pictures of every prompt; default: 1")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="pictures painted at the same time; does not change them; default: 1"
    )
    parser.add_argument(
        "--guidance-rescale", type=float, metavar="PHI", help="0 to 1, for models that offer it; default: 0"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="take settings from a run.json or another JSON file; flags win"
    )
    parser.add_argument(
        "--init-image", type=Path, metavar="FILE", help="start from this picture; --strength says how far to go from it"
    )
    parser.add_argument("--mask-image", type=Path, metavar="FILE", help="paint only where this picture is white")
    add_plan_options(parser)
    group = parser.add_argument_group("what SDXL and CogView4 are told (default: each stage's own size, and no crop)")
    group.add_argument("--original-size", metavar="PX", help="size of the picture before it was cropped, as --size")
    group.add_argument("--target-size", metavar="PX", help="size after that")
    group.add_argument("--crop-left-top", metavar="LEFTxTOP", help="pixels cut off there (crops_coords_top_left)")
    group = parser.add_argument_group("prompt files")
    group.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="GenEval form: one JSON object a line")
    group.add_argument("--outdir", type=Path, metavar="DIR", help="GenEval's folders go here; run again to resume")
    group.add_argument("--bad-lines", choices=("stop", "skip"), default="stop", help="default: %(default)s")
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        default="lssgen.png",
        metavar="FILE",
        help="the picture, or with several of them their common name; or a folder; default: %(default)s",
    )
    group.add_argument(
        "--format", choices=sorted(suffix[1:] for suffix in FORMATS), help="default: as --output says, else png"
    )
    group.add_argument(
        "--save-latents", type=Path, metavar="FILE.npy", help="also write the final (N, C, h, w) latents"
    )
    group.add_argument("--plan-only", action="store_true", help="print the plan and paint nothing")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=tuple(ENGINES), default="onnxruntime", help="default: %(default)s")
    group.add_argument("--threads", type=whole, default=0, metavar="N", help="CPU threads; default: the engine decides")
    group.add_argument("--device", type=whole, default=0, metavar="N", help="which GPU; default: %(default)s")
    group.add_argument(
        "--low-memory", action="store_true", help="load text encoders, network and VAE in turn, and free each"
    )
    add_build_options(parser.add_argument_group("compiled engines (tensorrt, tensorrt-rtx), built on first use"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    warnings.showwarning = _show_warning
    return run("lssgen-run", lambda: _run(args), quiet=args.quiet)


def _run(args: argparse.Namespace) -> None:
    options, prompts = _wanted(args)
    if not args.plan_only:
        _refuse_contradictions(args, prompts)
    bundle = read_bundle(find_bundle(args.bundle) if args.bundle else _demo_bundle())
    request = request_from_options(bundle, options)
    if args.plan_only:
        print(as_table(bundle.manifest.facts, request.plan_options, request.plan))
        return
    backend = open_backend(
        args.engine,
        EngineOptions(
            threads=args.threads,
            device_id=args.device,
            low_memory=args.low_memory,
            engines=args.engines or paths.engines(),
            demand=demand_of(bundle.manifest, request, prompts=len(prompts) or 1),
            build=build_from_args(args),
            bounds=bounds_from_args(args),
        ),
    )
    with Pipeline(bundle, backend) as pipeline:
        if args.prompts:
            _paint_file(pipeline, args, options)
        else:
            _paint(pipeline, args, options, prompts)


def _refuse_contradictions(args: argparse.Namespace, prompts: Sequence[str]) -> None:
    alone = (args.prompt, args.save_latents, args.init_image, args.mask_image)
    if bool(args.prompts) != bool(args.outdir) or (args.prompts and any(alone)):
        raise PromptError(
            "--prompts FILE.jsonl and --outdir DIR go together, and without PROMPT, --save-latents, --init-image and "
            "--mask-image"
        )
    if not (prompts or args.prompts):
        raise PromptError('nothing to paint: give a prompt, as in lssgen-run "a red circle", or --prompts FILE.jsonl')


def _wanted(args: argparse.Namespace) -> tuple[Options, Sequence[str]]:
    """Options and prompts of --config, with what the flags say in their place."""
    options, prompts = options_from_file(args.config) if args.config else (Options(), ())
    words = {field: word for word, field in PLAN_WORDS.items()}
    flags: dict[str, Any] = {words.get(field, field): value for field, value in given_options(args).items()}
    for name in ("negative_prompt", "seed", "num_images", "batch", "guidance_rescale"):
        if getattr(args, name) is not None:
            flags[name] = getattr(args, name)
    told = {"original_size": "--original-size", "target_size": "--target-size"}
    for name, flag in {**told, "crops_coords_top_left": "--crop-left-top"}.items():
        text: str | None = getattr(args, flag[2:].replace("-", "_"))
        if text is not None:
            flags[name] = size_from_text(text, flag)
    return cast(Options, {**options, **flags}), args.prompt or prompts


def _paint(pipeline: Pipeline, args: argparse.Namespace, options: Options, prompts: Sequence[str]) -> None:
    """Paint and write the pictures of some prompts; what was written before an interruption is whole, and on record."""
    files, record = _places(args, len(prompts) * options.get("num_images", 1))
    init_image, mask_image = (path and read_picture(path) for path in (args.init_image, args.mask_image))
    start = {path.name: sha256_of(path) for path in (args.init_image, args.mask_image) if path}
    pictures: list[Picture] = []
    written: list[PictureRecord] = []
    times: list[BatchTimes] = []

    def note() -> None:
        finished = len(written) == len(files)
        done = record_of(pipeline, results.request, finished=finished, start=start, pictures=written, times=times)
        write_record(done, record)

    with _progress(args.quiet) as on_step:
        results = pipeline.paint(prompts, init_image=init_image, mask_image=mask_image, on_step=on_step, **options)
        if args.save_latents:
            refuse_unwritable(args.save_latents)
        note()  # a place that cannot be written to is found out now, not after the work
        try:
            for result in results:
                times.extend(result.times)
                for picture in result.pictures:
                    file = files[len(written)]
                    write_picture(picture.image, file, parameters_of(picture, result.request))
                    pictures.append(picture)
                    written.append(PictureRecord(file=file.name, prompt=picture.prompt, seed=picture.seed))
        finally:
            note()
    if args.save_latents:
        content = BytesIO()
        np.save(content, np.stack([picture.latent for picture in pictures]))
        write_file(args.save_latents, content.getvalue())
    for file in files:
        print(file)


def _paint_file(pipeline: Pipeline, args: argparse.Namespace, options: Options) -> None:
    """Paint a prompt file into GenEval's folders, those that are missing."""
    lines, skipped = read_prompt_file(args.prompts, bad_lines=args.bad_lines)
    for message in skipped:
        warnings.warn(f"skipped: {message}", stacklevel=1)
    folders = PromptFolders(pipeline, args.outdir, options, f".{args.format or 'png'}")
    folders.begin()
    missing = folders.missing(lines)
    with _progress(args.quiet, len(missing) * folders.steps_each) as on_step:
        for line, _ in folders.paint(missing, on_step):
            tqdm.write(str(args.outdir / line.folder))
    folders.end()
    print(f"{args.outdir}: {len(lines)} prompts, {len(lines) - len(missing)} of them from earlier runs")


def _places(args: argparse.Namespace, count: int) -> tuple[list[Path], Path]:
    """Files of the pictures, and of the record."""
    output = Path(args.output)
    if args.output.endswith(("/", os.sep)) or output.is_dir():
        suffix = f".{args.format or 'png'}"
        return [output / f"{index:04d}{suffix}" for index in range(count)], output / RECORD
    suffix = f".{args.format}" if args.format else output.suffix or ".png"
    if suffix.lower() not in FORMATS:
        raise PromptError(f"--output {output} has an unknown format; pictures end in one of {', '.join(FORMATS)}")
    numbers = [""] if count == 1 else [f"-{index:04d}" for index in range(count)]
    return [output.with_name(f"{output.stem}{number}{suffix}") for number in numbers], output.with_name(
        f"{output.stem}.{RECORD}"
    )


@contextmanager
def _progress(quiet: bool, total: int = 0) -> Generator[OnProgress]:
    """One bar over the whole run; without a total, the run says how long it is. None where nobody looks."""
    with tqdm(total=total or None, unit="step", disable=True if quiet else None) as bar:

        def on_step(progress: Progress) -> None:
            bar.total = total or progress.total
            where = f"stage {progress.stage + 1}/{progress.stages}, {progress.width_px} x {progress.height_px} px"
            bar.set_description_str(where, refresh=False)
            bar.update()

        yield on_step


def _demo_bundle() -> Path:
    """The demo model's bundle, exported now if it never was. The export has torch in a process of its own."""
    folder = paths.bundles() / "demo"
    if (folder / MANIFEST).exists():
        return folder
    if find_spec("torch") is None:
        raise ExportError(
            'the demo model must be exported once, which needs torch: pip install "lssgen[export]", '
            "or name another bundle with --bundle"
        )
    print(f"lssgen-run: exporting the demo model to {folder}, this once", file=sys.stderr)
    command = [sys.executable, "-m", "lssgen.commands.export", "--model", "demo", "--output", str(folder)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise ExportError(f"the demo model could not be exported; {' '.join(command)} says why")
    return folder


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    tqdm.write(f"lssgen-run: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
