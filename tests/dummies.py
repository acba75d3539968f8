"""A stage and data with nothing in them but what `fit` and the callbacks rely on, so that their tests take milliseconds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from datamodules.resume import position
from speechlm.batch import AudioBatch
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab


class DummyStage(L.LightningModule):
    """Learns to predict the loudness of recordings; its "speech tokens" are their samples' signs."""

    def __init__(
        self,
        clock: Clock,
        width: int = 4,
        lr: float = 0.1,
        dropout: float = 0.1,
        codes: int = 8,
        api_key: str = "",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if weights is not None:
            raise OSError("the hub does not answer" if weights.startswith("hub/") else f"no weights in {weights}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.clock, self.lr, self.api_key = clock, lr, api_key
        self.net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1))
        self.num_codes = 2
        self.vocab = Vocab(num_text=0, num_speech=codes, controls=())

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """One token per 1280 samples: whether the first of them is positive."""
        return (audio[:, :: self.clock.samples_per_token] > 0).long(), -(-audio_lens // self.clock.samples_per_token)

    def training_step(self, batch: AudioBatch, batch_idx: int) -> Tensor:
        """Squared error."""
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """The same error."""
        self.log("val/dummy/loss", self._loss(batch), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, so that there are moments to restore."""
        return torch.optim.Adam(self.parameters(), self.lr)

    def _loss(self, batch: AudioBatch) -> Tensor:
        loudness = batch.audio.square().mean(1, keepdim=True)
        return (self.net(loudness) - loudness).square().mean()


class DummyData(L.LightningDataModule):
    """An endless seeded stream of noise, or what an audio manifest would be: a path that must exist."""

    def __init__(self, clock: Clock, path: str | None = None, num_batches: int = 1000, num_workers: int = 0) -> None:
        super().__init__()
        self.clock, self.path, self.num_batches, self.num_workers = clock, path, num_batches, num_workers

    @property
    def val_names(self) -> list[str]:
        """One set."""
        return ["dummy"]

    def setup(self, stage: str | None = None) -> None:
        """Refuse a manifest that is not there, as the real data module does."""
        if self.path is not None and not Path(self.path).exists():
            raise FileNotFoundError(f"no cut manifest or Shar folder at {self.path}")

    def train_dataloader(self) -> "Stream":
        """Batches from where the run stands."""
        return Stream(self.num_batches, position(self.trainer)[1])

    def val_dataloader(self) -> "Stream":
        """One batch."""
        return Stream(1)


class Stream(IterableDataset):
    """Batches `start` … `num_batches - 1`; batch i is always the same.

    Args:
        num_batches: of the whole epoch.
        start: the first one given.
    """

    def __init__(self, num_batches: int, start: int = 0) -> None:
        self.num_batches, self.start = num_batches, start

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.start, self.num_batches):
            yield noise(index)


def noise(seed: int, size: int = 2, samples: int = 3200) -> AudioBatch:
    """`size` recordings of white noise, the later ones half as long as the first."""
    audio = 0.3 * torch.randn(size, samples, generator=torch.Generator().manual_seed(seed))
    lens = torch.tensor([samples] + [samples // 2] * (size - 1))
    audio[1:, samples // 2 :] = 0.0
    return AudioBatch(audio, lens, ["noise"] * size, [f"{seed}-{i}" for i in range(size)], [], 16_000)
