"""Language models of a few thousand random parameters, and rows for them, for tests."""

import itertools
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, GlmConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from speechlm.batch import RowBatch
from speechlm.stages.speech_lm import SpeechLM
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab

VOCAB = Vocab(num_text=60, num_speech=32, controls=("<|begin_of_audio|>", "<|end_of_audio|>", "<|user|>", "<|pad|>"))
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # with the usual 0.02 so narrow a model says the same everywhere
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
}
CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "glm": GlmConfig,
}


def write_lm_config(folder: Path, kind: str = "qwen2", tied: bool = True, **changes: Any) -> str:
    """A folder with the configuration of a tiny model; its path, another one in every rank of a test."""
    folder = folder.with_name(f"{folder.name}-rank{os.environ['RANK']}") if "RANK" in os.environ else folder
    CONFIGS[kind](**{**SHAPE, "tie_word_embeddings": tied, **changes}).save_pretrained(folder)
    AutoConfig.from_pretrained(folder)
    return str(folder)


def tiny_stage(
    folder: Path, kind: str = "qwen2", tied: bool = True, shape: dict[str, Any] | None = None, **changes: Any
) -> SpeechLM:
    """The stage around a tiny random model."""
    settings: dict[str, Any] = {"vocab": VOCAB, "from_scratch": True, "loss_chunk": 5, **changes}
    return SpeechLM(Clock(), lm=write_lm_config(folder / kind, kind, tied, **shape or {}), **settings)


def random_rows(count: int, length: int = 24, seed: int = 0, losses: bool = True) -> RowBatch:
    """Rows of three documents and padding, with ids of every kind; the second document is a pair, half of it predicted."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(VOCAB), (count, length), generator=generator)
    doc_ids = torch.full((count, length), -1, dtype=torch.int32)
    loss_mask = torch.zeros(count, length, dtype=torch.bool)
    for row in range(count):
        ends = [0, *sorted(torch.randperm(length - 4, generator=generator)[:3].add(2).tolist())]
        for doc, (begin, end) in enumerate(itertools.pairwise(ends)):
            doc_ids[row, begin:end] = doc
            loss_mask[row, begin + 1 + (doc == 1) * (end - begin) // 2 : end] = losses
    return RowBatch(ids, loss_mask, doc_ids, torch.arange(count) % 2, ["text", "mixed"], ["en", "de"])


def part(batch: RowBatch, rows: slice) -> RowBatch:
    """Some rows of a batch."""
    return RowBatch(
        batch.ids[rows],
        batch.loss_mask[rows],
        batch.doc_ids[rows],
        batch.source_ids[rows],
        batch.sources,
        batch.languages,
    )


class Rows(L.LightningDataModule):
    """Given micro-batches, dealt out to the ranks in turns, and one validation set of them all."""

    val_names = ("heldout",)

    def __init__(self, batches: list[RowBatch]) -> None:
        super().__init__()
        self.batches = batches

    def _mine(self) -> list[RowBatch]:
        return self.batches[self.trainer.global_rank :: self.trainer.world_size]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self._mine(), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._mine(), batch_size=None)


class Gradients(L.Callback):
    """Keeps whole gradients of every step before they are clipped, and of the last one as they were used."""

    def __init__(self) -> None:
        self.of: list[dict[str, torch.Tensor]] = []
        self.used: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Every rank asks for the whole, so every rank has it."""
        self.of.append(whole_gradients(pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the optimizer's step they are as it had them, clipped; the stage lets go of them then."""

        def keep(*_: Any) -> None:
            self.used = whole_gradients(pl_module)

        trainer.optimizers[0].register_step_post_hook(keep)


def whole_gradients(module: L.LightningModule) -> dict[str, torch.Tensor]:
    """Gradients by name, gathered from all ranks."""
    gradients: dict[str, Any] = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {name: (g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for name, g in gradients.items()}
