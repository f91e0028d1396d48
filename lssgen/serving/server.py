"""The door: bundles in, requests from any thread, pictures out. One thread of its own has the device."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Unpack

from lssgen.engines.options import EngineOptions
from lssgen.runtime.options import Options
from lssgen.serving.api import Answer, Hear, ImageRequest, ModelInfo, Observe, Phase, Quote, Stats
from lssgen.serving.options import ServerOptions
from lssgen.serving.ticket import Ticket
from lssgen.verification import Verify


class Server:
    """Models on one device, which paint for many at the same time.

    Every method may be called from any thread. A picture is the one that `lssgen.runtime.Pipeline` would paint with the
    same words, whoever is painted beside it; on the CPU to the last bit.

    Args:
        bundles: A folder, or the name of one below LSSGEN_HOME/bundles; several, or several by the name that requests
            ask for. Without names, a bundle is called as its folder. The first is the model of requests that name none.
        engine: Where to run, see `lssgen.engines.registry.ENGINES`.
        aliases: Other names of models, by name: {"sd3-default": "sd3"}. A name that is neither is looked up below
            LSSGEN_HOME/bundles where it begins with a model's name and "@": "sd3@style".
        options: Limits and policies.
        verify: When to compare files with their hashes, as for `lssgen.load`.
        observe: Given everything that is measured.
        engine_options: Options of the engine, as for `lssgen.load`.

    Raises:
        BundleError: No bundle there, or a damaged one; or two of one name.
        BackendError: The engine is unknown, has no such option, or its library, driver or device is missing.
        PlanError: A size to be ready for that the first model cannot paint.
    """

    def __init__(
        self,
        bundles: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
        *,
        engine: str = "onnxruntime",
        aliases: Mapping[str, str] = MappingProxyType({}),
        options: ServerOptions | None = None,
        verify: Verify = "once",
        observe: Observe | None = None,
        **engine_options: Unpack[EngineOptions],
    ) -> None:
        raise NotImplementedError

    @property
    def phase(self) -> Phase:
        """What the server is doing; see `Phase`."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes requests. Requests are taken before it is warm, and wait."""
        return self.phase == "ready"

    @property
    def live(self) -> bool:
        """Whether it works at all; False means that the process should be started again."""
        return self.phase in ("starting", "ready", "draining")

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until it is warm; whether it is, in time.

        Raises:
            BundleError, EngineError, PlanError: What kept it from becoming so.
        """
        raise NotImplementedError

    def models(self) -> tuple[ModelInfo, ...]:
        """The models, the default first."""
        raise NotImplementedError

    def quote(self, asked: ImageRequest) -> Quote:
        """What would become of a request; nothing is done.

        Raises:
            RefusedError: As for `submit`, but for the queue.
        """
        raise NotImplementedError

    def submit(self, asked: ImageRequest, hear: Hear | None = None) -> Ticket:
        """Take a request, or refuse it at once. Bad ones never reach the device.

        Args:
            asked: What to paint.
            hear: Hears every event from the first on, `Queued`, which comes before this returns.

        Raises:
            RefusedError: With a code, and the parameter that is to blame.
        """
        raise NotImplementedError

    def paint(self, prompt: str, *, n: int = 1, model: str = "", **options: Unpack[Options]) -> Answer:
        """Submit and wait.

        Raises:
            RefusedError, EngineError, BundleError: As `submit` and `Ticket.result`.
        """
        return self.submit(ImageRequest(prompt=prompt, n=n, model=model, options=options)).result()

    def refine(
        self,
        draft: str,
        keep: Sequence[int],
        *,
        deadline_ms: float | None = None,
        previews: bool = False,
        hear: Hear | None = None,
    ) -> Ticket:
        """Finish some pictures of a draft from the latents that it left; nothing is painted twice.

        Args:
            draft: `Answer.draft`.
            keep: Numbers of its pictures, in the order in which they are wanted.
            deadline_ms: Milliseconds until the last is done; the schedule stays the draft's.
            previews: As for a request.
            hear: As for `submit`.

        Raises:
            RefusedError: No such draft or picture, or as for `submit`.
        """
        raise NotImplementedError

    def forget(self, draft: str) -> bool:
        """Let go of a draft; whether it was there."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """The server at this moment."""
        raise NotImplementedError

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those that were taken; whether all have ended in time."""
        raise NotImplementedError

    def close(self, *, wait: bool = False) -> None:
        """Stop, and free everything.

        Args:
            wait: Drain first. Else what is painted is cancelled, within a step.
        """
        raise NotImplementedError

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
