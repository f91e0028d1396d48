"""Bundles to pictures, with no torch: text, noise, the stage loop, pictures."""

from lssgen.runtime.options import Options
from lssgen.runtime.pipeline import Pipeline, load
from lssgen.runtime.results import Picture, Progress, Result

__all__ = ["Options", "Picture", "Pipeline", "Progress", "Result", "load"]
