"""The training loop: what it is told, what it remembers, and the steps themselves."""

import copy
import json
import math
import pickle
import signal
import threading
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from lssgen.errors import TrainingError
from lssgen.models.nets.latent_upsampler import LatentUpSampler
from lssgen.training.autoencoder import Autoencoder
from lssgen.training.config import TrainConfig
from lssgen.training.latents import Batch, Pairs
from lssgen.training.losses import ImageLoss, image_loss
from lssgen.training.pictures import to_range

STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step's number, from 1, and its losses before weighting."""

    step: int
    latent: float
    image: float


class Trainer:
    """Trains an upsampler, step by step, from wherever the output folder's state stands.

    The state holds no random generator: batches and noise follow from the seed and the step's number, so a run that
    was stopped and resumed makes the same upsampler, bit for bit on a CPU, as one that was not.
    """

    def __init__(
        self, model: LatentUpSampler, autoencoder: Autoencoder, config: TrainConfig, device: torch.device, output: Path
    ) -> None:
        # channels_last takes a quarter off the time of a step (float32, 2 CPU threads)
        self.model = model.to(device).train().requires_grad_(True)
        cast(Any, self.model).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.autoencoder, self.config, self.device, self.output = autoencoder, config, device, output
        self.optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        # cycle_momentum would silently replace AdamW's first beta.
        self.schedule = OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=max(config.steps, 1) + 1, cycle_momentum=False
        )
        self.step = 0
        self.image_loss: ImageLoss = image_loss(
            config.image_loss if config.looks_at_pictures else "none",
            side_px=min(config.pairs.height, config.pairs.width),
            device=device,
        )

    def run(self, pairs: Pairs, *, save_every: int) -> Iterator[Progress]:
        """Train to the last step, saving the state on the way, at the end and when told to stop (Ctrl-C, SIGTERM).

        Raises:
            TrainingError: The loss is no longer finite; the state on disk is from before that.
            KeyboardInterrupt: Told to stop; the state on disk is that of the last whole step.
        """
        config, size = self.config, self.config.batch * self.config.accumulate
        if self.step == config.steps:
            return
        with _stop_signals() as stop, (self.output / LOG_FILE).open("a") as log:
            for batch in pairs.batches(self.step, size):
                progress = self._step(batch)
                log.write(json.dumps(asdict(progress) | {"lr": self.schedule.get_last_lr()[0]}) + "\n")
                yield progress
                done = self.step == config.steps
                if done or stop or self.step % save_every == 0:
                    log.flush()
                    self.save()
                if done:
                    return
                if stop:
                    raise KeyboardInterrupt

    def _step(self, batch: Batch) -> Progress:
        config, noise = self.config, self._noise(batch)
        latent_sum = image_sum = torch.zeros((), device=self.device)
        for start in range(0, len(batch.low), config.batch):
            part = batch.part(start, start + config.batch)
            low = part.low + noise[start : start + config.batch] * part.low_std
            latent, image = self._losses(low, part)
            ((config.latent_weight * latent + config.image_weight * image) / config.accumulate).backward()
            latent_sum, image_sum = latent_sum + latent.detach(), image_sum + image.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        progress = Progress(
            step=self.step + 1, latent=float(latent_sum) / config.accumulate, image=float(image_sum) / config.accumulate
        )
        if not math.isfinite(progress.latent + progress.image + float(norm)):
            raise TrainingError(
                f"the loss or its gradient is no longer finite in step {progress.step}; try a smaller --learning-rate "
                "(in a new --output), or run without --bf16"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.step += 1
        keep = min(config.ema, self.step / (self.step + 9))
        with torch.no_grad():
            for old, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
        return progress

    def _losses(self, low: Tensor, part: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            predicted = self.model(low.contiguous(memory_format=torch.channels_last))
            decoded = self.autoencoder.decode(predicted) if self.config.looks_at_pictures else predicted
        latent = F.mse_loss(predicted.float(), part.high)
        target = to_range(part.pictures) if self.config.looks_at_pictures else predicted
        return latent, self.image_loss(decoded.float(), target)

    def _noise(self, batch: Batch) -> Tensor:
        """Noise for the low latents of this step, drawn on the host so that it does not depend on the device."""
        if not self.config.sample_low:
            return torch.zeros_like(batch.low)
        generator = torch.Generator().manual_seed((self.config.seed << 32) + self.step & 0x7FFF_FFFF_FFFF_FFFF)
        return torch.randn(batch.low.shape, generator=generator).to(self.device)

    def save(self) -> None:
        """Write the state, whole or not at all.

        Raises:
            TrainingError: It cannot be written; the state before it is still there.
        """
        state = {
            "config": asdict(self.config),
            "vae_sha256": self.autoencoder.sha256,
            "upsampler": asdict(self.model.config),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        temporary = self.output / f".{STATE_FILE}.part"
        try:
            torch.save(state, temporary)
            temporary.replace(self.output / STATE_FILE)
        except (OSError, RuntimeError) as error:  # torch passes on a full disk as a RuntimeError
            raise TrainingError(
                f"the state cannot be written to {self.output}: {error}; make room and run the same command again"
            ) from error

    def resume(self) -> bool:
        """Go back to the state in the output folder. Returns whether there is one.

        Raises:
            TrainingError: It is damaged, or belongs to a run with other options.
        """
        path = self.output / STATE_FILE
        if not path.exists():
            (self.output / LOG_FILE).unlink(missing_ok=True)
            return False
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path} is damaged: {error}; delete it to start again") from error
        self._check_same_run(state, path)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = int(state["step"])
        self._forget_steps_after(self.step)
        return True

    def _check_same_run(self, state: dict[str, Any], path: Path) -> None:
        ours = {"vae_sha256": self.autoencoder.sha256, **asdict(self.model.config), **_flat(asdict(self.config))}
        theirs = {"vae_sha256": state["vae_sha256"], **state["upsampler"], **_flat(state["config"])}
        changed = [
            f"{name} was {theirs.get(name)!r}, now {ours[name]!r}" for name in ours if theirs.get(name) != ours[name]
        ]
        if changed:
            raise TrainingError(
                f"{path} belongs to another run: {'; '.join(changed)}; resume with the options of that run, "
                "or give another --output"
            )

    def _forget_steps_after(self, step: int) -> None:
        log = self.output / LOG_FILE
        if log.exists():
            lines = log.read_text().splitlines()[:step]
            log.write_text("".join(line + "\n" for line in lines))


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "pairs"} | cast(dict[str, Any], config["pairs"])


@contextmanager
def _stop_signals() -> Generator[list[int]]:
    """A list that fills at the first Ctrl-C or SIGTERM, so that no step is cut in two; a second one acts at once."""
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen to signals
        yield stop
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stop.append(number)
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
