"""Bundles to pictures, with no torch: text, noise, the stage loop, pictures."""

from lssgen.runtime.options import Options
from lssgen.runtime.pipeline import Pipeline, load
from lssgen.runtime.results import Picture, Preview, Progress, Result

__all__ = ["Options", "Picture", "Pipeline", "Preview", "Progress", "Result", "load"]
