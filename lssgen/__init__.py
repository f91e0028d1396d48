"""Staged text-to-image generation as ONNX graphs and TensorRT engines, run without torch.

    import lssgen

    with lssgen.load("bundles/sd3") as pipeline:
        result = pipeline("a lighthouse at dusk", num_inference_steps=40, start_sigma=0.75, seed=7)
        result.images[0].save("lighthouse.png")

`load` opens a bundle that `lssgen export` made, on an engine of your choice; the pipeline it gives paints pictures.
What a call takes is explained by `help(lssgen.load)`, `help(lssgen.runtime.Pipeline)` and
`help(lssgen.runtime.Options)`. `lssgen.Server` paints for many at the same time (docs/serving.md); every error that is
raised on purpose is an `lssgen.errors.LssgenError`. The commands are listed by `lssgen --help`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lssgen.runtime.pipeline import load
    from lssgen.serving.server import Server

    __version__: str

__all__ = ["Server", "__version__", "load"]


# Module-level __getattr__ (PEP 562): NumPy, Pillow and ONNX Runtime come with `load`, and not with the name of a
# version.
def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for, so that `import lssgen` costs nothing."""
    if name == "load":
        return import_module("lssgen.runtime.pipeline").load
    if name == "Server":
        return import_module("lssgen.serving.server").Server
    if name == "__version__":
        return import_module("importlib.metadata").version("lssgen")
    raise AttributeError(f"module 'lssgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
