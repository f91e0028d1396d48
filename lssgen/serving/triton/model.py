"""The model that Triton's Python backend runs: requests go to the engine room, which answers when it has something.

Decoupled: `execute` returns at once, and every preview and picture is a response of its own, the last with the final
flag. The engine room batches requests step by step, so Triton's own batcher has nothing to do.

Source: the backend's interface, triton-inference-server/python_backend, README and src/pb_stub.cc.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event as Flag
from threading import Lock, Thread
from typing import Any, cast

import msgspec
import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from lssgen.engines.registry import needs_gpu
from lssgen.errors import CancelledError, LssgenError, PlanError, RefusedError
from lssgen.jsons import JsonError, convert_json, decode_json
from lssgen.runtime.options import Options, refuse_unknown
from lssgen.runtime.pictures import picture_bytes
from lssgen.runtime.record import parameters_of
from lssgen.serving.api import Done, Event, Failed, ImageRequest, PictureDone, Preview, Progress, Queued
from lssgen.serving.options import ServerOptions
from lssgen.serving.server import Server
from lssgen.serving.ticket import Ticket
from lssgen.serving.triton.ports import INPUTS, OUTPUTS, RUN_WORDS

LOOK_EVERY_S = 0.1
"""Seconds between two looks whether requests were cancelled."""


@dataclass(slots=True, eq=False)
class _Caller:
    """A request of Triton's.

    Attributes:
        sender: Receiver of its responses.
        wanted: Names of the outputs that it asks for.
        prompt: Its prompt.
        ticket: Ticket of the engine room.
    """

    sender: Any
    wanted: frozenset[str]
    prompt: str = ""
    ticket: Ticket | None = None
    ended: bool = field(default=False)


class TritonPythonModel:
    """The class that the backend looks for; it calls the methods below by their names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle.

        Args:
            args: The backend's: "model_config" (JSON), "model_repository", "model_version", "model_instance_device_id".

        Raises:
            TritonModelException: It cannot be opened, or the configuration makes no sense.
        """
        given = {name: one["string_value"] for name, one in json.loads(args["model_config"])["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"] / given["bundle"]
        engine = given.get("engine", "")
        words = json.loads(given.get("engine_options", "{}"))
        try:
            if needs_gpu(engine):
                words.setdefault("device_id", int(args.get("model_instance_device_id", "0")))
            options = convert_json(json.loads(given.get("server_options", "{}")), ServerOptions)
            hooks = json.loads(given.get("hooks", "{}"))
            self._server = Server(folder, engine=engine, options=options, **hooks, **words)
        except (LssgenError, JsonError) as error:
            raise pb_utils.TritonModelException(f"{type(error).__name__}: {error}") from error
        self._events: SimpleQueue[tuple[_Caller, Event] | None] = SimpleQueue()
        self._callers: set[_Caller] = set()
        self._lock = Lock()
        self._over = Flag()
        self._threads = [Thread(target=self._answer, name="answers"), Thread(target=self._watch, name="cancels")]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand requests to the engine room; their responses come later."""
        for request in requests:
            caller = _Caller(
                request.get_response_sender(), frozenset(request.requested_output_names()) or frozenset(OUTPUTS)
            )
            try:
                asked = asked_of(request)
                caller.prompt = asked.prompt
                with self._lock:
                    self._callers.add(caller)
                caller.ticket = self._server.submit(asked, lambda event, to=caller: self._events.put((to, event)))
            except LssgenError as error:
                self._end(caller, error)

    def is_ready(self) -> bool:
        """Whether engines are loaded and warm; false, too, where the device is stuck."""
        return self._server.ready

    def finalize(self) -> None:
        """End: what was taken is finished."""
        self._server.close(wait=True)
        self._over.set()
        self._events.put(None)
        for thread in self._threads:
            thread.join()

    def _answer(self) -> None:
        """Make responses of what the engine room tells, in a thread that may take its time."""
        while (told := self._events.get()) is not None:
            caller, event = told
            match event:
                case Preview():
                    self._send(caller, "preview", event.index, None, event.image, {"prompt": caller.prompt})
                case PictureDone(picture=picture):
                    assert caller.ticket is not None
                    said = parameters_of(picture, caller.ticket.request)
                    self._send(caller, "picture", event.index, picture.seed, picture.image, said)
                case Done():
                    self._end(caller, None)
                case Failed(error=error):
                    self._end(caller, error)
                case Queued() | Progress():
                    pass

    def _watch(self) -> None:
        """Take back what Triton's clients have cancelled."""
        while not self._over.wait(LOOK_EVERY_S):
            with self._lock:
                callers = list(self._callers)
            for caller in callers:
                if caller.ticket is not None and not caller.ended and caller.sender.is_cancelled():
                    caller.ticket.cancel()

    def _send(
        self, caller: _Caller, kind: str, index: int, seed: int | None, image: Image.Image, said: dict[str, object]
    ) -> None:
        makers: dict[str, Any] = {
            "kind": lambda: np.array([kind], np.object_),
            "index": lambda: np.array([index], np.int32),
            "seed": lambda: np.array([seed if seed is not None else 0], np.uint64),
            "image": lambda: np.array([picture_bytes(image, ".png", said)], np.object_),
            "pixels": lambda: np.asarray(image, np.uint8),
            "parameters": lambda: np.array([msgspec.json.encode(said)], np.object_),
        }
        tensors = [pb_utils.Tensor(name, make()) for name, make in makers.items() if name in caller.wanted]
        caller.sender.send(pb_utils.InferenceResponse(output_tensors=tensors))

    def _end(self, caller: _Caller, error: LssgenError | None) -> None:
        with self._lock:
            self._callers.discard(caller)
            if caller.ended:
                return
            caller.ended = True
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if error is None:
            caller.sender.send(flags=final)
        else:
            caller.sender.send(pb_utils.InferenceResponse(output_tensors=[], error=_told(error)), flags=final)


def asked_of(request: Any) -> ImageRequest:
    """What a request of Triton's asks for.

    Raises:
        RefusedError: A tensor has another type or shape, or makes no sense.
    """
    given: dict[str, Any] = {}
    for name in INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            given[name] = _value(name, tensor.as_numpy())
    if "prompt" not in given:
        raise RefusedError("prompt is needed", code="invalid_value", param="prompt")
    options = {name: given[name] for name in RUN_WORDS if name in given}
    if "options" in given:
        options = {**_more_words(given["options"]), **options}
    return ImageRequest(
        prompt=given["prompt"],
        n=given.get("n", 1),
        options=cast(Options, options),
        deadline_ms=given.get("deadline_ms"),
        max_latency_ms=given.get("max_latency_ms"),
        previews=given.get("previews", False),
    )


def _more_words(text: str) -> dict[str, Any]:
    try:
        words = decode_json(text.encode(), dict[str, Any])
        refuse_unknown(words)
        return cast(dict[str, Any], convert_json(words, Options))
    except (JsonError, PlanError) as error:
        raise RefusedError(f"options: {error}", code="invalid_value", param="options") from error


def _value(name: str, array: Any) -> Any:
    if array.size != 1:
        raise RefusedError(f"{name} has {array.size} values; send one", code="invalid_value", param=name)
    value = array.reshape(-1)[0]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RefusedError(f"{name} is not text in UTF-8", code="invalid_value", param=name) from error
    return value.item() if isinstance(value, np.generic) else value


def _told(error: LssgenError) -> Any:
    codes = {"unknown_model": "NOT_FOUND", "unknown_draft": "NOT_FOUND", "queue_full": "UNAVAILABLE"}
    codes |= {"draining": "UNAVAILABLE", "device_stuck": "UNAVAILABLE", "broken_model": "INTERNAL"}
    match error:
        case CancelledError():
            code = "CANCELLED"
        case RefusedError():
            code = codes.get(error.code, "INVALID_ARG")
        case _:
            code = "INTERNAL"
    return pb_utils.TritonError(str(error), getattr(pb_utils.TritonError, code))
