"""Where a run's files go."""

import argparse
import hashlib
import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from lssgen import paths
from lssgen.durable import locked
from lssgen.errors import PromptError
from lssgen.runtime.pictures import FORMATS, locked_folder
from lssgen.runtime.record import RECORD

LATENTS = (".npy", ".safetensors")
"""Formats of latents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Files that a run of some prompts writes.

    Attributes:
        pictures: One a picture.
        previews: Names that the previews of each picture have, with the stage's number in them; empty: none are
            written.
        record: run.json.
        latents: All final latents; None: not written.
        folder: Folder of the pictures, if they have one of their own.
        beside: Names of other things that the run writes.
    """

    pictures: Sequence[Path]
    previews: Sequence[Path]
    record: Path
    latents: Path | None
    folder: Path | None
    beside: Sequence[Path]

    @classmethod
    def of(cls, args: argparse.Namespace, count: int) -> "Places":
        """The files of so many pictures.

        Raises:
            PromptError: A picture's name, or that of the latents, has the suffix of an unknown format.
        """
        if args.save_latents and args.save_latents.suffix not in LATENTS:
            raise PromptError(
                f"--save-latents {args.save_latents} has an unknown format; latents end in one of {', '.join(LATENTS)}"
            )
        _see_place(args.output, "--output")
        if args.preview is not None:
            _see_place(args.preview, "--preview")
        output = Path(args.output)
        record = output / RECORD if _is_folder(args.output) else output.with_name(f"{output.stem}.{RECORD}")
        return cls(
            pictures=_numbered(args.output, args.format, count, "--output"),
            previews=_numbered(args.preview, args.format, count, "--preview") if args.preview else (),
            record=record,
            latents=args.save_latents,
            folder=Path(args.output) if _is_folder(args.output) else None,
            beside=[Path(place) for place in (args.preview, args.dump_inputs, args.save_latents) if place],
        )

    @contextmanager
    def held(self) -> Generator[None]:
        """Be the only run that writes there.

        Raises:
            PromptError: Another run writes there, or the folder cannot be written.
        """
        with ExitStack() as stack:
            if self.folder is not None:
                stack.enter_context(locked_folder(self.folder))
            # Each once: a place that is named twice would be held against itself.
            for place in {place.resolve(): place for place in (self.record, *self.beside)}.values():
                stack.enter_context(_held(place))
            yield

    def preview(self, picture: int, stage: int) -> Path:
        """File of a picture as it is after a stage; both are counted from 0."""
        name = self.previews[picture]
        return name.with_name(f"{name.stem}-stage{stage + 1}{name.suffix}")


def _numbered(text: str, form: str | None, count: int, flag: str) -> list[Path]:
    """Files of so many pictures: numbered in a folder, or by a name with a number after it where there are several."""
    place = Path(text)
    if _is_folder(text):
        return [place / f"{index:04d}.{form or 'png'}" for index in range(count)]
    suffix = f".{form}" if form else place.suffix or ".png"
    if suffix.lower() not in FORMATS:
        raise PromptError(f"{flag} {place} has an unknown format; pictures end in one of {', '.join(FORMATS)}")
    numbers = [""] if count == 1 else [f"-{index:04d}" for index in range(count)]
    return [place.with_name(f"{place.stem}{number}{suffix}") for number in numbers]


def _see_place(text: str, flag: str) -> None:
    """See that pictures can have a name like that.

    Raises:
        PromptError: It is empty, or that of a device or a pipe.
    """
    place = Path(text)
    if not text.strip() or (place.exists() and not place.is_file() and not place.is_dir()):
        what = "empty" if not text.strip() else f"{place}, which is not a file"
        raise PromptError(f"{flag} is {what}; give a picture's name, as star.png, or a folder's, as pictures/")


def _is_folder(text: str) -> bool:
    return text.endswith(("/", os.sep)) or Path(text).is_dir()


@contextmanager
def _held(place: Path) -> Generator[None]:
    """Be the only run of this user that writes something of that name. The lock leaves nothing beside it.

    Raises:
        PromptError: Another run has it.
    """
    # fsencode: names of files on Linux are bytes, and need not be text.
    name = hashlib.sha256(os.fsencode(place.resolve())).hexdigest()[:32]
    lock = paths.home() / "locks" / f"{name}.lock"
    try:
        held = locked(lock, wait=False)
        held.acquire()
    except filelock.Timeout as error:
        raise PromptError(f"another run is writing {place}; wait for it, or choose another name") from error
    except OSError:  # a home that one may only read: there is nothing to hold
        yield
        return
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # whoever opened it meanwhile sees that, and makes another one
        held.release()
