"""ONNX Runtime without its telemetry, which builds for Linux have switched on from 1.31 on.

It would keep a record of the machine and of every session below ~/.cache/Microsoft, for Microsoft's collector. The
variable counts only where it is set before the library is loaded (`disable_telemetry_events` comes too late), so the
library is loaded here and nowhere else. Whoever wants it sets ORT_DISABLE_TELEMETRY=0.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
