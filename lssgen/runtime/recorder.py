"""An ordinary run with a recorder in the engine's place: real inputs of every graph, at every size, for other tools."""

import json
from base64 import b64encode
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import TextIO

import numpy as np

from lssgen.bundle import Bundle
from lssgen.durable import whole_file
from lssgen.engines.base import Backend, Binding, Buffer, Engine
from lssgen.engines.demand import Demand, size_in_cells
from lssgen.engines.wrapping import WrappedBackend, WrappedEngine, WrappedEngines
from lssgen.errors import PromptError
from lssgen.ports import Array

Hear = Callable[[str, Mapping[str, Array]], None]
"""Given the name of a graph and its inputs, before every call of it."""

CALLS = 4
"""Calls of a graph at one size that are written: what differs later is the latent and the row, and files get large."""


class RecordingBackend(WrappedBackend):
    """`lssgen.engines.base.Backend` that tells what goes into its engines. Reading it back makes every call wait.

    Args:
        backend: Backend that does the work.
        hear: Hears of every call.
    """

    def __init__(self, backend: Backend, hear: Hear) -> None:
        super().__init__(backend)
        self._hear = hear

    def open(self, bundle: Bundle, demand: Demand) -> WrappedEngines:
        return WrappedEngines(self.inner.open(bundle, demand), self._recorded)

    def _recorded(self, graph: str, engine: Engine) -> "RecordingEngine":
        return RecordingEngine(engine, graph, self._hear)


class RecordingEngine(WrappedEngine):
    """`lssgen.engines.base.Engine` of a `RecordingBackend`."""

    def __init__(self, engine: Engine, graph: str, hear: Hear) -> None:
        super().__init__(engine)
        self._graph = graph
        self._hear = hear

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        run = self.engine.bind(buffers)

        def recorded() -> None:
            self._hear(self._graph, {port.name: buffers[port.name].read() for port in self.inputs})
            run()

        return recorded


@contextmanager
def dumped_inputs(folder: Path, bundle: Bundle) -> Generator[Hear]:
    """A `Hear` that writes inputs as Polygraphy reads them (`polygraphy run --load-inputs`), a file a graph and size.

    The files, such as step-64x64.json for 64 x 64 cells, are there when the block ends well.

    Raises:
        PromptError: The folder cannot be written, or the disk is full.
    """
    counts: dict[str, int] = {}
    files: dict[str, TextIO] = {}
    with ExitStack() as stack:

        def hear(graph: str, inputs: Mapping[str, Array]) -> None:
            name = f"{graph}{_size(bundle, graph, inputs)}.json"
            counts[name] = counts.get(name, 0) + 1
            if counts[name] > CALLS:
                return
            with _writing(folder / name):
                if name not in files:
                    files[name] = _opened(stack, folder / name)
                files[name].write("[" if counts[name] == 1 else ", ")
                files[name].write(json.dumps({port: polygraphy_array(value) for port, value in inputs.items()}))

        yield hear
        for name, file in files.items():
            with _writing(folder / name):
                file.write("]\n")
                file.close()  # what is still to be written is written here, where it may fail with words


def polygraphy_array(value: Array) -> dict[str, str]:
    """An array in Polygraphy's JSON: a whole .npy file in base 64.

    Source: Polygraphy 0.53.6, polygraphy/json/serde.py.
    """
    file = BytesIO()
    np.save(file, value, allow_pickle=False)
    return {"array": b64encode(file.getvalue()).decode(), "polygraphy_class": "ndarray"}


def _size(bundle: Bundle, graph: str, inputs: Mapping[str, Array]) -> str:
    """-<width>x<height> in cells; nothing for a graph that has no size."""
    size = size_in_cells(bundle.manifest.graphs[graph], {name: value.shape for name, value in inputs.items()})
    return f"-{size[1]}x{size[0]}" if size else ""


def _opened(stack: ExitStack, path: Path) -> TextIO:
    draft = stack.enter_context(whole_file(path))
    return stack.enter_context(draft.open("w", encoding="ascii"))


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise PromptError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
