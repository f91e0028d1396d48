"""Ray Serve: replicas that each have a device, the engine room and the Images API; one autoscaler by pixels.

A replica answers by itself, streams and cancels as `lssgen serve` does, and is restarted where its device is stuck.
What one replica cannot know of another is refused instead of done by halves: jobs, addresses of pictures, idempotency
keys.
"""

# pyright: reportAttributeAccessIssue=false, reportUntypedFunctionDecorator=false
# Where Ray is not installed, the type checker takes this folder for it.

import asyncio
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, cast

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from lssgen.jsons import convert_json
from lssgen.serving.api import ImageRequest
from lssgen.serving.http.host import app_of
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.http.settings import HttpSettings
from lssgen.serving.options import ServerOptions
from lssgen.serving.ray.choices import RayChoices, choices_from
from lssgen.serving.server import Server

PIXELS = "lssgen_pixels"
"""Name of what replicas tell the autoscaler: pixels that wait or are painted."""

READY_S = 3600.0
"""Time in which a replica must have loaded, and perhaps built, its engines."""

BODY_S = 5.0
"""Time in which a body must have come; the proxy has it already, unless it lost it with the replica that died."""

MOST_BUNDLES = 16
"""Bundles that a replica is known for at a time; which of them are in memory is for its engine room to say."""


class Painter:
    """A replica.

    Args:
        choices: The owner's choices.

    Raises:
        BundleError, EngineError, PlanError: As for `lssgen.Server`.
    """

    def __init__(self, choices: RayChoices) -> None:
        self._metrics = Metrics()
        self._drain_seconds = choices.drain_seconds
        self._room = Server(
            {name: Path(folder) for name, folder in choices.bundles.items()},
            engine=choices.engine,
            loras=choices.loras,
            options=convert_json(dict(choices.server_options), ServerOptions),
            observe=self._metrics.observe,
            checker=list(filter(None, choices.checker.split(","))),
            watermark=choices.watermark or None,
            **choices.engine_options,
        )
        self._settings = HttpSettings(
            host="0.0.0.0",  # Ray's proxy listens; this only says that names of hosts are not looked at
            api_keys=Path(choices.api_keys) if choices.api_keys else None,
            page=False,
            log="off",
            drain_seconds=choices.drain_seconds,
        )
        self._limits = Limits(body_seconds=BODY_S)
        self._room.wait_ready(READY_S)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, which Ray asks for when the replica is there."""
        app = app_of(self._room, self._metrics, settings=self._settings, limits=self._limits, keeps=False)

        async def at_home(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (name := serve.get_multiplexed_model_id()):
                await cast(Any, self.bundle)(name)
            await app(scope, receive, send)

        return at_home

    @serve.multiplexed(max_num_models_per_replica=MOST_BUNDLES)
    async def bundle(self, name: str) -> str:
        """Be known as a replica that has a bundle; requests with that name in their header come here first."""
        await asyncio.to_thread(self._room.quote, ImageRequest(prompt="", model=name))
        return name

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaler goes by."""
        now = self._room.stats()
        painted = sum(lane.rows * lane.height_px * lane.width_px for lane in now.lanes)
        return {PIXELS: float(now.waiting_pixels + painted)}

    def check_health(self) -> None:
        """Raise where the replica should be started again: its device is stuck, or its engine broken."""
        if not self._room.live:
            raise RuntimeError(f"the engine room is {self._room.phase}")

    def __del__(self) -> None:
        if (room := getattr(self, "_room", None)) is not None:
            room.drain(self._drain_seconds)
            room.close()


def replicas_for(context: Any) -> tuple[int, dict[str, Any]]:
    """The autoscaler's policy: so many replicas that each has `target_pixels`.

    Args:
        context: Ray's `AutoscalingContext`; its config's `target_ongoing_requests` holds the pixels.

    Returns:
        Number of replicas, and what to remember for the next time.
    """
    told: Mapping[Any, float] = (context.aggregated_metrics or {}).get(PIXELS, {})
    pixels = sum(told.values())
    wanted = ceil(pixels / context.config.target_ongoing_requests)
    if not pixels and context.total_num_requests:  # nobody has told anything yet, or there is no replica
        wanted = max(1, context.current_num_replicas)
    return min(max(wanted, context.capacity_adjusted_min_replicas), context.capacity_adjusted_max_replicas), {}


def app(args: Mapping[str, Any]) -> Any:
    """Build the application: `serve run lssgen.serving.ray:app bundles=...`.

    Args:
        args: As `RayChoices`; text is read.

    Raises:
        ServingError: An argument makes no sense.
    """
    choices = choices_from(args)
    deployment = serve.deployment(
        name=choices.name,
        ray_actor_options={"num_gpus": choices.gpus, "num_cpus": choices.num_cpus},
        max_ongoing_requests=choices.max_ongoing,
        max_queued_requests=choices.max_queued,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=2.0),
        graceful_shutdown_timeout_s=choices.drain_seconds,
        autoscaling_config=AutoscalingConfig(
            min_replicas=choices.min_replicas,
            max_replicas=choices.max_replicas,
            target_ongoing_requests=choices.target_pixels,
            metrics_interval_s=2.0,
            look_back_period_s=10.0,
            upscale_delay_s=5.0,
            downscale_delay_s=300.0,  # a replica takes minutes to load
            policy=AutoscalingPolicy(policy_function=replicas_for),
        ),
    )(serve.ingress()(Painter))
    return deployment.bind(choices)
