"""Weights & Biases as a guest of the run: it may be offline, unreachable or broken, and training goes on."""

import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities import rank_zero_only


class WandbLog(WandbLogger):
    """Lightning's W&B logger, in the run folder, under one id for all restarts of a run, with failures turned into warnings.

    The key comes from the environment (`WANDB_API_KEY`) or `wandb login`, never from a config. Where W&B can not be reached the
    run is kept offline, for `wandb sync` later.

    Args:
        save_dir: the run folder; `speechlm.fit` fills it in.
        name: shown in W&B; `speechlm.fit` fills in the run's name.
        project: of W&B.
        offline: keep everything here.
        init_timeout_sec: how long to wait for the server before going on offline.
    """

    def __init__(
        self,
        save_dir: str = ".",
        name: str | None = None,
        project: str = "speechlm",
        offline: bool = False,
        init_timeout_sec: float = 60.0,
    ) -> None:
        from wandb import Settings  # slow to import, and only who logs there pays for it

        settings = Settings(
            init_timeout=init_timeout_sec, x_disable_meta=True
        )  # env.json has what it would collect, redacted
        super().__init__(name=name, save_dir=save_dir, project=project, offline=offline, settings=settings)
        self.folder, self._broken = Path(save_dir), False

    @property
    def experiment(self) -> Any:
        """The W&B run, offline where the server can not be reached; a stand-in that ignores everything where W&B is broken."""
        if self._broken:
            return DummyExperiment()
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            self._wandb_init["id"] = self._run_id()
        try:
            return super().experiment
        except Exception as error:
            if not self._offline:
                warnings.warn(f"W&B can not be reached ({error}); this run is logged offline", stacklevel=2)
                self._offline, self._wandb_init["mode"] = True, "offline"
            else:
                self._give_up(error)
        return self.experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Send metrics."""
        self._guarded(super().log_metrics, metrics, step)

    def log_hyperparams(self, params: Any) -> None:
        """Send the config."""
        self._guarded(super().log_hyperparams, params)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Send images, by path or array."""
        self._guarded(super().log_image, key, images, step, **kwargs)

    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Send sounds, by path or array."""
        self._guarded(super().log_audio, key, audios, step, **kwargs)

    def finalize(self, status: str) -> None:
        """End the W&B run, so that another run of this process gets its own."""
        self._guarded(super().finalize, status)
        if self._experiment is not None:
            self._guarded(self._experiment.finish)
            self._experiment = None

    def _guarded(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._broken:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # whatever a client of a remote service may raise
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        warnings.warn(f"W&B failed and is left out from here ({type(error).__name__}: {error})", stacklevel=3)

    def _run_id(self) -> str:
        """The id of this run folder's W&B run, made once."""
        path = self.folder / "wandb" / "run_id"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()
