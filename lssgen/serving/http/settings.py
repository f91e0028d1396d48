"""What the owner of an HTTP server may choose, beside the limits and the engine room's own options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lssgen.choices import choice, refuse_outside
from lssgen.errors import ServingError

_WHERE, _JOBS, _WATCH = "where", "jobs and pictures", "logs and traces"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """How a server faces the net.

    Attributes:
        host: Address to listen at.
        port: Port; 0 takes a free one.
        api_keys: File of keys, see `lssgen.serving.http.keys`. None: whoever reaches the server may ask.
        public_url: Beginning of the addresses of pictures, "https://pictures.example". Empty: as the client wrote it.
        allow_origin: Origins of web pages that may ask, besides the server's own.
        state: Folder for jobs and pictures, which a restart goes on with. None: below LSSGEN_HOME, by the port.
        keep_seconds: Time that finished jobs and pictures are kept.
        keep_mb: Size of all finished pictures that are kept, in 2^20 bytes.
        page: Switch of the web page at /.
        drain_seconds: Time that requests get to end when the server is stopped.
        ping_seconds: Time without an event after which a stream sends a comment.
        log: Form of the lines on stderr, or none of them.
        log_prompts: Switch of prompts in these lines.
        traces: Receiver of spans.

    Raises:
        ServingError: A number that cannot be one of these.
    """

    host: str = choice("127.0.0.1", help="address to listen at; 0.0.0.0: every one", metavar="ADDRESS", group=_WHERE)
    port: int = choice(8000, help="port; 0: a free one", metavar="N", group=_WHERE, least=0, most=65_535)
    api_keys: Path | None = choice(
        None, help="file with a name and a key a line", metavar="FILE", group=_WHERE, unset="everybody may ask"
    )
    public_url: str = choice(
        "", help="beginning of the addresses of pictures", metavar="URL", group=_WHERE, unset="as the client wrote it"
    )
    allow_origin: tuple[str, ...] = choice(
        (),
        help="web pages of this origin may ask; may be repeated",
        metavar="ORIGIN",
        group=_WHERE,
        unset="only the server's own",
        repeated=True,
    )
    state: Path | None = choice(
        None,
        help="folder of jobs and pictures, which a restart goes on with",
        metavar="DIR",
        group=_JOBS,
        unset="LSSGEN_HOME/serving/PORT",
    )
    keep_seconds: float = choice(
        3600.0, help="time that finished jobs and pictures are kept", metavar="S", group=_JOBS, least=1, most=10**8
    )
    keep_mb: int = choice(
        1024, help="finished pictures that are kept, in MiB", metavar="N", group=_JOBS, least=1, most=2**30
    )
    page: bool = choice(True, help="a web page at /", group=_WHERE)
    drain_seconds: float = choice(
        30.0, help="time for requests to end when told to stop", metavar="S", group=_JOBS, least=0, most=86_400
    )
    ping_seconds: float = choice(
        10.0,
        help="a stream sends a comment when it was silent for so long",
        metavar="S",
        group=_WHERE,
        least=0.05,
        most=600,
    )
    log: Literal["json", "text", "off"] = choice("text", help="form of a line for every request", group=_WATCH)
    log_prompts: bool = choice(False, help="prompts go into these lines", group=_WATCH)
    traces: Literal["off", "otlp"] = choice(
        "off", help="spans by OpenTelemetry, to what OTEL_EXPORTER_OTLP_ENDPOINT names", group=_WATCH
    )

    def __post_init__(self) -> None:
        refuse_outside(self, ServingError)
        if self.public_url and not self.public_url.startswith(("http://", "https://")):
            raise ServingError(f"public_url is {self.public_url!r}; it begins with http:// or https://")
