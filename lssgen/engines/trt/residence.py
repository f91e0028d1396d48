"""Who is on the device: the engines' weights, in turn where memory is short, and the scratch memory they share."""

import logging
import weakref
from collections.abc import Sequence
from typing import Protocol

from lssgen.engines.cuda import Device, Memory
from lssgen.engines.memory import megabytes, stays
from lssgen.engines.trt.need import device_bytes, io_bytes
from lssgen.engines.trt.report import Report
from lssgen.errors import BackendError

_LOG = logging.getLogger("lssgen")
_CUDA_BYTES = 500_000_000
"""Memory that the CUDA context and the libraries take; 300 to 500 MB are usual."""


class Resident(Protocol):
    """An engine, as far as its place on the device goes."""

    @property
    def report(self) -> Report: ...

    @property
    def awake(self) -> bool:
        """Whether its weights are on the device."""
        ...

    @property
    def device_weights(self) -> int:
        """Bytes of its weights that are on the device."""
        ...

    def wake(self) -> None: ...

    def sleep(self) -> None: ...


class Residence:
    """The engines of one backend on one GPU. Whoever asks anything of it has the device's turn.

    Attributes:
        low_memory: True where the weights of one large engine are on the device at a time.
        predicted: Device memory in bytes that all engines were last predicted to take.
    """

    def __init__(self, device: Device, *, low_memory: bool) -> None:
        self._device = device
        self._engines: weakref.WeakSet[Resident] = weakref.WeakSet()
        self._arena: Memory | None = None
        self.low_memory = low_memory
        self.predicted = 0

    def make_room(self, new: Sequence[Report], leaving: Sequence[Resident]) -> None:
        """Predict the device memory of the engines that are here and of new ones, and choose the mode.

        Args:
            new: Reports of the engines that come; nothing of them is on the device yet.
            leaving: Engines in whose place they come.

        Raises:
            BackendError: There is not enough, whatever the mode; nothing has changed.
        """
        reports = [*(one.report for one in self._engines if one not in leaving), *new]
        free, total = self._device.memory()
        usable = free + self._present()
        # Once something was loaded, CUDA has taken its part, which is missing from what is free.
        overhead = 0 if self._arena else _CUDA_BYTES
        in_turn, together = (device_bytes(reports, in_turn=turn) + overhead for turn in (True, False))
        low_memory = self.low_memory or together > usable
        predicted = in_turn if low_memory else together
        if predicted > usable:
            raise BackendError(
                f"this run needs {megabytes(predicted)} of device memory, with one network at a time; "
                f"{self._device.name} has {megabytes(usable)} for it, {megabytes(free)} free of {megabytes(total)}. "
                "Paint smaller pictures or fewer at a time, close other programs, or export in fp16 or bf16"
            )
        if low_memory and not self.low_memory:
            said = megabytes(together), megabytes(usable)
            _LOG.warning("all networks need %s of device memory, %s are free: they take turns on the device", *said)
            self._economise()
        self.predicted = predicted
        mode = "one network at a time" if low_memory else f"{megabytes(in_turn)} with --low-memory"
        said = megabytes(predicted), mode, megabytes(usable), megabytes(total)
        _LOG.info("predicted device memory: %s (%s); %s of %s are free", *said)
        # Before the weights come: that they leave no room for it is known now, and not in the first run.
        self.arena(max((report.scratch_bytes for report in reports), default=0))

    def add(self, engine: Resident) -> None:
        """An engine comes. Outside of low-memory mode its weights come at once.

        Raises:
            EngineError: They cannot be loaded.
        """
        self._engines.add(engine)
        if not self.low_memory:
            engine.wake()

    def remove(self, engine: Resident) -> None:
        """An engine goes."""
        self._engines.discard(engine)

    def admit(self, engine: Resident) -> None:
        """See that an engine's weights are on the device; in low-memory mode, and no other large one's.

        Raises:
            EngineError: They cannot be loaded.
        """
        if engine.awake:
            return
        if self.low_memory and not self._stays(engine):
            self._economise()
        engine.wake()

    def arena(self, size: int) -> Memory:
        """Scratch memory of at least this size, for whoever runs at the moment.

        Raises:
            BackendError: There is not so much left.
        """
        if self._arena is None or self._arena.size < size:
            # Contexts made before keep the block whose address is in their CUDA graphs.
            self._arena = self._device.allocate(size)
        return self._arena

    def _economise(self) -> None:
        """Let large engines sleep."""
        self.low_memory = True
        for engine in list(self._engines):
            if engine.awake and not self._stays(engine):
                engine.sleep()

    def _stays(self, engine: Resident) -> bool:
        return stays(engine.report.weight_bytes, max(one.report.weight_bytes for one in (engine, *self._engines)))

    def _present(self) -> int:
        """Bytes of what is predicted that are on the device already, and so are missing from what is free."""
        here = list(self._engines)
        weights = sum(one.device_weights for one in here)
        arena = self._arena.size if self._arena else 0
        # Of the tensors that are predicted, as many as there can be by now: buffers are made while a run goes on.
        tensors = min(sum(io_bytes(one.report) for one in here), self._device.allocated - arena)
        return weights + arena + tensors
