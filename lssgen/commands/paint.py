"""A run's pictures, latents, previews and record, written as they come; nothing is kept."""

import argparse
import json
import logging
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import numpy as np
from PIL import Image
from tqdm import tqdm

from lssgen.bundle import Bundle, sha256_of
from lssgen.commands.hook_options import hooks_given
from lssgen.commands.places import Places
from lssgen.commands.process import undisturbed
from lssgen.durable import whole_file
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import needs_gpu
from lssgen.errors import PromptError, ServingError
from lssgen.files import as_text
from lssgen.manifest import Picture as Feed
from lssgen.progress import Follower, followed
from lssgen.runtime.options import Asked, Options, Request
from lssgen.runtime.origin import read_mask, read_picture
from lssgen.runtime.pictures import refuse_unwritable, write_picture
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.prompt_file import PromptFolders, PromptLine, read_prompt_file
from lssgen.runtime.record import PictureRecord, parameters_of, read_record, record_of, write_record
from lssgen.runtime.results import BatchTimes, OnPreview, Painting, Picture, Preview, Progress
from lssgen.runtime.sampler import Floats

_LOG = logging.getLogger("lssgen")


NOTED_EVERY_S = 5.0
"""Seconds between two writings of the record; what a kill takes from it at most."""


def pictures_given(args: argparse.Namespace) -> dict[str, Path]:
    """Files of the pictures that a run starts from or is conditioned on, by their names for the record."""
    own = {path.name: path for path in (args.init_image, args.mask_image, args.prompt_embeds) if path}
    own |= {f"{name}={path.name}": path for name, path in args.condition}
    return own | {f"reference {number}": path for number, path in enumerate(args.reference, start=1)}


def paint(pipeline: Pipeline, args: argparse.Namespace, asked: Asked, prompts: Sequence[str], places: Places) -> None:
    """Paint some prompts; what was written before an interruption is whole, and on record."""
    with following(args.quiet) as follow:
        painting = pipeline.paint(
            prompts,
            prompt_embeds=args.prompt_embeds,
            init_image=args.init_image and read_picture(args.init_image),
            mask_image=args.mask_image and read_mask(args.mask_image),
            conditions=_conditions(pipeline.bundle, args.condition),
            references=[read_picture(path) for path in args.reference],
            on_step=follow.step,
            on_preview=_preview_writer(prompts, asked, places) if places.previews else None,
            **asked,
        )
        # Known now: nothing is painted before the first result is asked for.
        follow.request = painting.request
        _write(pipeline, painting, places, _Given(prompts, pictures_given(args)))
    for file in places.pictures:
        print(file)


def _conditions(bundle: Bundle, named: Sequence[tuple[str, Path]]) -> dict[str, Image.Image]:
    """The pictures that condition the network.

    Raises:
        PromptError: A name comes twice, or a file cannot be read as a picture, or as a mask where it is one.
    """
    masks = {feed.name for feed in bundle.manifest.feeds(Feed) if isinstance(feed, Feed) and feed.read_as == "mask"}
    found: dict[str, Image.Image] = {}
    for name, path in named:
        if name in found:
            raise PromptError(f"--condition {name} was given twice")
        found[name] = read_mask(path) if name in masks else read_picture(path)
    return found


@dataclass(frozen=True, slots=True)
class _Given:
    """What a run is given: prompts, and files of pictures by their names for the record."""

    prompts: Sequence[str]
    pictures: Mapping[str, Path]


def _write(pipeline: Pipeline, painting: Painting, places: Places, given: _Given) -> None:
    """Paint and write. The record tells at every moment what is there, but for a killed run's last seconds."""
    if places.latents:
        refuse_unwritable(places.latents)
    start = {as_text(name): sha256_of(path) for name, path in given.pictures.items()}
    written: list[PictureRecord] = []
    times: list[BatchTimes] = []

    def note() -> None:
        record = record_of(
            pipeline,
            painting.request,
            finished=len(written) == len(places.pictures),
            suffix=places.pictures[0].suffix,
            start=start,
            prompts=given.prompts,
            pictures=written,
            times=times,
        )
        write_record(record, places.record)

    _tell_of_others(places)
    note()  # a place that cannot be written to is found out now, not after the work
    noted = monotonic()
    try:
        with _latents(places, painting, pipeline.bundle.manifest.facts.channels) as keep:
            for result in painting:
                times.extend(result.times)
                for picture in result.pictures:
                    index = len(written)
                    keep(index, picture.latent)
                    # Together: a picture that is there is on record.
                    with undisturbed():
                        write_picture(picture.image, places.pictures[index], parameters_of(picture, painting.request))
                        written.append(_noted(picture, places.pictures[index]))
                if monotonic() - noted > NOTED_EVERY_S:
                    note()
                    noted = monotonic()
    finally:
        note()


def _tell_of_others(places: Places) -> None:
    """Say that an earlier run's pictures stay where this one writes, on no record any more."""
    try:
        before = read_record(places.record)
    except PromptError:
        return
    own = {as_text(picture.name) for picture in places.pictures}
    stay = [one.file for one in before.pictures if one.file not in own and places.record.with_name(one.file).exists()]
    if stay:
        few = ", ".join(stay[:3]) + (", ..." if len(stay) > 3 else "")
        _LOG.warning(
            "%s is this run's from now on; %d pictures of the run before stay: %s",
            places.record,
            len(stay),
            few,
        )


@contextmanager
def _latents(places: Places, painting: Painting, channels: int) -> Generator[Callable[[int, Floats], None]]:
    """Takes the final (C, h, w) latents one by one into a file that is there when all are in it, if it is asked for."""
    if places.latents is None:
        yield _drop
        return
    last = painting.request.plan.stages[-1]
    shape = (len(places.pictures), channels, last.height, last.width)
    opened = _as_safetensors if places.latents.suffix == ".safetensors" else _as_npy
    with whole_file(places.latents) as draft:
        latents = opened(draft, shape)  # written to the disk, not held in memory
        yield latents.__setitem__
        # Before the rename: a mapping's pages may still be in memory only.
        latents.flush()


def _as_npy(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
    return np.lib.format.open_memmap(path, "w+", np.float32, shape)


def _as_safetensors(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
    """A file with one tensor, "latents".

    Source: the format, huggingface/safetensors, README: length of the header in 8 bytes, header, tensors.
    """
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * prod(shape)]}
    header = json.dumps({"latents": entry}).encode()
    # As safetensors' own writer, so that the numbers are aligned.
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return np.memmap(path, "<f4", "r+", offset=8 + len(header), shape=shape)


def _drop(index: int, latent: Floats) -> None:
    del index, latent


def _noted(picture: Picture, file: Path) -> PictureRecord:
    return PictureRecord(file=as_text(file.name), prompt=picture.prompt, seed=picture.seed, checked=picture.checked)


def _preview_writer(prompts: Sequence[str], options: Options, places: Places) -> OnPreview:
    """Writes the pictures of the stages before the last one."""
    each, seed = options.get("num_images", 1), options.get("seed", 0)

    def write(preview: Preview) -> None:
        for index, image in enumerate(preview.images, start=preview.first):
            said = {"prompt": prompts[index // each], "seed": seed + index, "stage": preview.stage + 1}
            write_picture(image, places.preview(index, preview.stage), said)

    return write


def paint_file(
    pipeline: Pipeline, args: argparse.Namespace, words: EngineOptions, asked: Asked, request: Request
) -> None:
    """Paint a prompt file into GenEval's folders, those that are missing."""
    lines, skipped = read_prompt_file(args.prompts, bad_lines=args.bad_lines)
    for message in skipped:
        warnings.warn(f"skipped: {message}", stacklevel=1)
    suffix = f".{args.format or 'png'}"
    with PromptFolders(pipeline, args.outdir, asked, suffix) as folders:
        missing = folders.missing(lines)
        if args.ray:
            _paint_on_ray(pipeline, args, words, folders.options, missing, suffix)
        else:
            with following(args.quiet, len(missing) * folders.steps_each) as follow:
                follow.request = request
                for line, _ in folders.paint(missing, follow.step):
                    tqdm.write(str(args.outdir / line.folder))
    print(f"{args.outdir}: {len(lines)} prompts, {len(lines) - len(missing)} of them from earlier runs")


def _paint_on_ray(
    pipeline: Pipeline,
    args: argparse.Namespace,
    words: EngineOptions,
    options: Options,
    missing: Sequence[PromptLine],
    suffix: str,
) -> None:
    """The same on a Ray cluster, with a line now and then that says how far it is.

    Raises:
        ServingError: Ray is not installed, or cannot be reached, or a worker failed.
    """
    try:
        from lssgen.serving.ray.prompts import Work, paint_on_ray
    except ImportError as error:
        raise ServingError(f'--ray needs {error.name}; pip install "lssgen[ray]"') from error
    work = Work(
        bundle=pipeline.bundle.folder.resolve(),
        engine=args.engine,
        words=words,
        folder=args.outdir.resolve(),
        options=options,
        suffix=suffix,
        hooks=hooks_given(args),
    )
    folders = {line.number: line.folder for line in missing}
    gpus = float(needs_gpu(args.engine))
    with followed(_LOG.info) as follower:
        follower.at(0, f"prompt 0 of {len(missing)}")
        painted = paint_on_ray(work, missing, address=args.ray, workers=args.ray_workers, gpus=gpus)
        for done, (number, _) in enumerate(painted, 1):
            follower.at(done / len(missing), f"prompt {done} of {len(missing)}")
            tqdm.write(str(args.outdir / folders[number]))


class Follow:
    """Shows where a run is: a bar on a terminal, else a line now and then.

    Args:
        bar: The bar.
        follower: Tells the lines.
        total: Steps of all runs; 0: the run says how long it is.

    Attributes:
        request: Request that is being painted; known before the first step.
    """

    request: Request

    def __init__(self, bar: "tqdm[NoReturn]", follower: Follower | None, total: int) -> None:
        self._bar = bar
        self._follower = follower
        self._total = total
        self._done = 0

    def step(self, progress: Progress) -> None:
        self._done += 1
        total = self._total or progress.total
        where = f"stage {progress.stage + 1}/{progress.stages}, {progress.width_px} x {progress.height_px} px"
        self._bar.total = total
        self._bar.set_description_str(where, refresh=False)
        self._bar.update()
        if self._follower is not None:
            self._follower.at(self._share(total), f"step {self._done} of {total}, {where}")

    def _share(self, total: int) -> float:
        """Share of the arithmetic that is done: a step of the last stage may cost many of the first."""
        plan = self.request.plan
        costs = [step for stage in plan.stages for step in [stage.height * stage.width] * len(stage.steps)]
        runs, within = divmod(self._done, len(costs))
        return (runs * sum(costs) + sum(costs[:within])) / (max(total / len(costs), 1) * sum(costs))


@contextmanager
def following(quiet: bool, total: int = 0) -> Generator[Follow]:
    """What shows where a run is; without a total, the run says how long it is."""
    with tqdm(total=total or None, unit="step", disable=True if quiet else None) as bar:
        # disable=None lets tqdm look whether there is a terminal; where there is none, lines come instead.
        if bar.disable and not quiet:
            with followed(_LOG.info) as follower:
                yield Follow(bar, follower, total)
        else:
            yield Follow(bar, None, total)
