"""Weights & Biases as a guest of the run: it may be offline, unreachable or broken, and training goes on."""

import contextlib
import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
        finish_timeout_sec: how long the end of a run waits for uploads; what is left stays in the folder for `wandb sync`.
    """

    def __init__(
        self,
        save_dir: str = ".",
        name: str | None = None,
        project: str = "speechlm",
        offline: bool = False,
        init_timeout_sec: float = 60.0,
        finish_timeout_sec: float = 120.0,
    ) -> None:
        from wandb import Settings  # slow to import, and only who logs there pays for it

        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it waits for that, too, where there is no network
        # Staged files of tables belong to the run, not to a home with a quota.
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(save_dir).absolute() / "wandb" / "data"))
        settings = Settings(
            init_timeout=init_timeout_sec,
            finish_timeout=finish_timeout_sec,
            x_disable_meta=True,  # env.json has what it would collect, redacted
        )
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
                reason = str(error).strip().replace("\n", " ")
                warnings.warn(f"W&B can not be reached ({reason}); this run is logged offline", stacklevel=2)
                self._go_offline()
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

    def log_rows(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Send a table. Paths in it become what they hold: a `.flac` is a sound to play, a `.png` a picture.

        The same sounds and pictures go under `<key>/sounds` and `<key>/pictures`: tables hold theirs in an artifact, which is
        complete only where the run was made or once it was synced.
        """
        self._guarded(self._log_rows, key, columns, rows, step)

    @rank_zero_only
    def _log_rows(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        from wandb import Audio, Image, Table

        table = Table(columns=list(columns), data=[[_shown(value) for value in row] for row in rows])
        files = [(str(row[0]), value) for row in rows for value in row if isinstance(value, Path)]
        media = {
            f"{key}/sounds": [Audio(str(path), caption=name) for name, path in files if path.suffix != ".png"],
            f"{key}/pictures": [Image(str(path), caption=name) for name, path in files if path.suffix == ".png"],
        }
        self.experiment.log({key: table, **{k: v for k, v in media.items() if v}, "trainer/global_step": step})

    def log_counts(self, key: str, counts: np.ndarray, step: int) -> None:
        """Send how often each of (V,) things occurs, as a histogram of at most 64 bars."""
        self._guarded(self._log_counts, key, counts, step)

    @rank_zero_only
    def _log_counts(self, key: str, counts: np.ndarray, step: int) -> None:
        from wandb import Histogram

        parts = np.array_split(counts, min(64, len(counts)))
        edges = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        bars = Histogram(np_histogram=(np.array([part.sum() for part in parts]), edges))
        self.experiment.log({key: bars, "trainer/global_step": step})

    def alert(self, title: str, text: str) -> None:
        """Have W&B send a message to whoever wants this run's."""
        self._guarded(self._alert, title, text)

    @rank_zero_only
    def _alert(self, title: str, text: str) -> None:
        self.experiment.alert(title=title, text=text, level="WARN")

    def keep(self, path: Path) -> None:
        """Send a file of the run folder as it is now."""
        self._guarded(self._keep, path)

    @rank_zero_only
    def _keep(self, path: Path) -> None:
        self.experiment.save(str(path), base_path=str(path.parent), policy="now")

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

    def _go_offline(self) -> None:
        """Leave the run that could not be started: its id is free only when W&B's own process has ended."""
        import wandb

        self._offline, self._wandb_init["mode"] = True, "offline"
        with contextlib.suppress(Exception):
            wandb.teardown(exit_code=1)

    def _run_id(self) -> str:
        """The id of this run folder's W&B run, made once."""
        path = self.folder / "wandb" / "run_id"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()


def _shown(value: Any) -> Any:
    """What a cell of a table holds, as W&B's own kind of it."""
    if not isinstance(value, Path):
        return value
    from wandb import Audio, Image

    return Image(str(value)) if value.suffix == ".png" else Audio(str(value))
