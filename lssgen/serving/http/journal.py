"""Jobs on disk: what was acknowledged is finished after a kill, or reported as lost.

STATE/jobs/ID.json       the request and, when it has ended, how; written whole before the client is told
STATE/jobs/ID.0.bin      a picture that came with it; ID.mask.bin its mask
STATE/pictures/NAME      finished pictures, see `lssgen.serving.http.store`
STATE/.lock              held by the server that uses the folder
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lssgen.durable import clear_folder, write_whole
from lssgen.files import read_regular
from lssgen.jsons import JsonError, read_json
from lssgen.serving.http.fields import EditForm, Generation, VariationForm, restored
from lssgen.serving.http.inputs import Upload
from lssgen.serving.http.orders import Asked, Route

_LOG = logging.getLogger("lssgen.serve")

MOST_STARTS = 3
"""Times that a job is begun; one that is unfinished then may be what brings the server down."""

MOST_UPLOAD = 2**30

_FIELDS: Mapping[Route, type[Generation | EditForm | VariationForm]] = {
    "generations": Generation,
    "edits": EditForm,
    "variations": VariationForm,
}


class PaintedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished picture.

    Attributes:
        name: Name in the store.
        seed: Number it was painted with.
        width, height: Size in pixels.
    """

    name: str
    seed: int
    width: int
    height: int


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job on disk.

    Attributes:
        id: 32 hexadecimal digits.
        client: Name of whose it is.
        created: Unix time of the acknowledgement.
        route, fields, draft, keep: The request.
        images: Names of the fields of its pictures.
        mask: Name of the field of its mask; empty: it has none.
        idempotency, digest: Idempotency key that it came with, and `Asked.digest` of what it asked for.
        starts: Times that it was begun.
        state: "open", or its end: "done", "failed", "cancelled" or "lost".
        ended: Unix time of the end; 0: it has not ended.
        code, message: Why it did not end well.
        pictures: Finished pictures.
        told: Rest of the answer: size, quality, usage, timings, notes, model.
    """

    id: str
    client: str
    created: float
    route: Route
    fields: dict[str, Any]
    draft: bool = False
    keep: tuple[int, ...] = ()
    images: tuple[str, ...] = ()
    mask: str = ""
    idempotency: str = ""
    digest: str = ""
    starts: int = 1
    state: str = "open"
    ended: float = 0.0
    code: str = ""
    message: str = ""
    param: str | None = None
    pictures: tuple[PaintedRecord, ...] = ()
    told: dict[str, Any] = {}


class Journal:
    """The records of a folder. Its methods block; they may be called from any thread.

    Args:
        folder: Where they are; made where it is not there.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        clear_folder(folder)

    def begin(self, record: JobRecord, asked: Asked) -> None:
        """Note a job and its pictures; when this returns, a kill does not lose it.

        Raises:
            OSError: The disk does not take it.
        """
        for index, upload in enumerate(asked.images):
            write_whole(self._folder / f"{record.id}.{index}.bin", upload.data)
        if asked.mask:
            write_whole(self._folder / f"{record.id}.mask.bin", asked.mask.data)
        self.note(record)

    def note(self, record: JobRecord) -> None:
        """Note how a job is.

        Raises:
            OSError: The disk does not take it.
        """
        write_whole(self._folder / f"{record.id}.json", msgspec.json.encode(record))

    def drop_inputs(self, record: JobRecord) -> None:
        """Let go of the pictures of a job that has ended."""
        for path in self._inputs(record):
            path.unlink(missing_ok=True)

    def forget(self, job: str) -> None:
        """Remove a job."""
        for path in self._folder.glob(f"{job}.*"):
            path.unlink(missing_ok=True)

    def records(self) -> list[JobRecord]:
        """Every job; what cannot be read is passed over, with a word."""
        found: list[JobRecord] = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = read_json(path, JobRecord)
            except JsonError as error:
                _LOG.warning("job %s cannot be read and is lost: %s", path.stem, error)
                continue
            if record.id == path.stem:
                found.append(record)
        return sorted(found, key=lambda record: record.created)

    def asked(self, record: JobRecord) -> Asked:
        """The request of a job.

        Raises:
            JsonError: Its fields are not what they should be.
            OSError: A picture cannot be read.
        """
        uploads = [Upload(name, b"") for name in record.images]
        paths = self._inputs(record)
        images = tuple(
            Upload(upload.name, read_regular(path, MOST_UPLOAD)) for upload, path in zip(uploads, paths, strict=False)
        )
        mask = Upload(record.mask, read_regular(paths[-1], MOST_UPLOAD)) if record.mask else None
        fields = restored(record.fields, _FIELDS[record.route])
        return Asked(route=record.route, fields=fields, images=images, mask=mask, draft=record.draft, keep=record.keep)

    def _inputs(self, record: JobRecord) -> list[Path]:
        names = [str(index) for index in range(len(record.images))] + ["mask"] * bool(record.mask)
        return [self._folder / f"{record.id}.{name}.bin" for name in names]
