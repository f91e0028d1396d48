"""Many machines, by Ray: an application for Ray Serve, and prompt files by Ray Data. The extra `ray`.

serve run lssgen.serving.ray:app bundles=bundles/sd3 engine=tensorrt max_replicas=8
"""

from lssgen.serving.ray.application import app, replicas_for

__all__ = ["app", "replicas_for"]
