"""What can go wrong, as one tree. Every message says what came, what fits and what to do.

    LssgenError
    ├── PlanError            a run that cannot be carried out as asked: sizes, steps, noise levels, schedules
    ├── ModelError           a checkpoint that is not what it should be
    │   ├── UnknownModelError    no alias, hub id or folder of that name; or an architecture we have no record of
    │   ├── FetchError           a hub that cannot be reached, or a licence that has not been accepted there
    │   └── UpsamplerError       a latent upsampler with the wrong keys, shapes, channels or latent space
    ├── ExportError          a graph that could not be made
    │   └── ProbeError           a graph that was made, but does not compute what the torch module computes
    ├── BundleError          a bundle that is missing, incomplete, damaged or of another format version
    ├── EngineError          a compiled network that cannot be built, loaded or run
    │   ├── BackendError         the backend's library, driver or device is missing or does not match
    │   ├── BuildError           the backend refused the graph, or the result broke a bound
    │   ├── StaleEngineError     an engine made from other weights, for another device or by another version
    │   ├── ShapeError           a tensor outside what the engine was made for
    │   └── NonFiniteError       NaN or infinity where a latent should be
    ├── PromptError          a prompt, prompt file or picture that cannot be used
    ├── CheckError           a checker or watermark that failed, or cannot be found; no picture was let out
    │   └── RefusedPictureError  a picture that a checker refuses
    ├── ServingError         what a server does not do
    │   ├── RefusedError         a request that it does not take, or does not finish; with a code and a parameter
    │   └── CancelledError       a request that its caller has taken back
    ├── BenchError           a measurement that cannot be made, read or compared
    │   └── MismatchError        numbers of another machine, bundle or version
    ├── CalibrationError     statistics or a number format that do not fit, or a quantised bundle not worth having
    └── TrainingError        training data or a training state that cannot be used

A caller's mistake is an `LssgenError`; a mistake of ours is an `assert` or a plain exception.
"""


class LssgenError(Exception):
    """Root of every error that lssgen raises on purpose."""


class PlanError(LssgenError):
    """The run cannot be carried out as asked."""


class ModelError(LssgenError):
    """The checkpoint is not what it should be."""


class UnknownModelError(ModelError):
    """Nothing of that name, or an architecture without a record."""


class FetchError(ModelError):
    """The hub cannot be reached, or wants a licence accepted first."""


class UpsamplerError(ModelError):
    """The latent upsampler does not fit."""


class ExportError(LssgenError):
    """A graph could not be made."""


class ProbeError(ExportError):
    """A graph does not compute what its torch module computes."""


class BundleError(LssgenError):
    """The bundle is missing, incomplete, damaged or of another format."""


class EngineError(LssgenError):
    """A compiled network cannot be built, loaded or run."""


class BackendError(EngineError):
    """The backend's library, driver or device is missing or does not match."""


class BuildError(EngineError):
    """The backend refused the graph, or the result broke a bound."""


class StaleEngineError(EngineError):
    """The engine belongs to other weights, another device or another version."""


class ShapeError(EngineError):
    """A tensor lies outside what the engine was made for."""


class NonFiniteError(EngineError):
    """NaN or infinity in a latent."""


class PromptError(LssgenError):
    """A prompt, prompt file or picture cannot be used."""


class CheckError(LssgenError):
    """A checker or watermark failed, or cannot be found; no picture was let out."""


class RefusedPictureError(CheckError):
    """A checker refuses a picture."""


class ServingError(LssgenError):
    """A server does not do what is asked."""


class RefusedError(ServingError):
    """A request that a server does not take, or does not finish.

    Args:
        message: One line.
        code: Reason as a word for programs; see `lssgen.serving.api.RefusalCode`.
        param: Word of the request that is to blame; None where it is none of them.
        retry_after_s: Seconds after which the same request may be taken; None: never, as it stands.
        fastest_ms: Milliseconds that the fastest schedule would take, where a time is what is refused.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        fastest_ms: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.fastest_ms = fastest_ms


class CancelledError(ServingError):
    """A request that its caller has taken back."""


class BenchError(LssgenError):
    """A measurement cannot be made, read or compared."""


class MismatchError(BenchError):
    """Numbers of another machine, bundle or version."""


class CalibrationError(LssgenError):
    """Statistics or a number format do not fit, or a quantised bundle is not worth having."""


class TrainingError(LssgenError):
    """Training data or a training state cannot be used."""
