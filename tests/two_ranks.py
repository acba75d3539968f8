"""Run by two or four processes: trains tiny language models under FSDP2 and leaves what one process is compared with.

`torchrun --nproc-per-node 2 -m tests.two_ranks FOLDER [CASE …]`.
"""

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file

from speechlm.batch import RowBatch
from speechlm.fsdp2 import FSDP2
from speechlm.stages.speech_lm import SpeechLM
from tests.tiny_lm import VOCAB, Gradients, Rows, random_rows, tiny_stage

#: name -> (kind of model, tied head, settings of the stage, of the trainer)
CASES: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any]]] = {
    "tied": ("qwen2", True, {"activation_checkpointing": True, "ema_decay": 0.5, "z_loss": 1e-3}, {}),
    "untied": ("glm", False, {"codebook": "codebook.safetensors"}, {"gradient_clip_val": 0.05}),
    "nan on one rank": ("llama", True, {}, {}),
    "mixed": ("qwen3", True, {}, {"precision": "bf16-mixed"}),
}
STEPS, ACCUMULATED = 2, 2


def batches(count: int, poisoned: bool = False) -> list[RowBatch]:
    """Micro-batches with very different numbers of ids to predict; one of them has none."""
    made = [random_rows(2, seed=seed, losses=seed != 2) for seed in range(count)]
    for seed, batch in enumerate(made):
        batch.loss_mask[:, 8 + 3 * seed :] = False
    if poisoned:
        made[1].source_ids[0] = 7  # marks the batch, see Poison
    return made


class Poison(L.Callback):
    """Makes one rank's loss of the first step NaN."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: RowBatch, batch_idx: int) -> None:
        """Weights the marked batch with NaN."""
        poisoned = bool((batch.source_ids > 1).any())
        batch.source_ids.clamp_(max=1)
        pl_module.model.z_loss = float("nan") if poisoned else 0.0


def trainer(folder: Path, ranks: int, callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    """FSDP2 where there are two ranks; in one process the same micro-batches are accumulated."""
    strategy: Any = "auto"
    if ranks > 1:
        strategy = FSDP2(process_group_backend="gloo", shard_size=2)  # four ranks are two groups
    return L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        max_steps=STEPS,
        accumulate_grad_batches=ACCUMULATED * 2 // ranks,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **settings,
    )


def run(folder: Path, name: str, ranks: int) -> dict[str, Any]:
    """Train a case; whole gradients of every step, the metrics and the stage's counts."""
    kind, tied, stage_settings, trainer_settings = CASES[name]
    if "codebook" in stage_settings:
        stage_settings = {"codebook": _codebook(folder / f"{name}-{os.environ.get('RANK', 0)}.safetensors")}
    stage = tiny_stage(folder / f"{name}-{ranks}", kind, tied, **stage_settings)
    gradients = Gradients()
    made = trainer(folder, ranks, [gradients, Poison()], **trainer_settings)
    made.fit(stage, datamodule=Rows(batches(STEPS * ACCUMULATED * 2, poisoned=name.startswith("nan"))))
    if ranks == 4 or (ranks == 2 and name == "tied"):
        made.save_checkpoint(folder / "sharded.ckpt")
    return {
        "gradients": gradients.of,
        "metrics": {key: value.clone() for key, value in made.callback_metrics.items()},
        "skipped": stage.skipped,
        "placements": sorted({str(getattr(p, "placements", "")) for p in stage.parameters()}),
        "used": torch.stack([gradient.norm() for gradient in gradients.used.values()]).norm(),
        "state": whole_state(stage),
    }


def _codebook(path: Path) -> str:
    vectors = torch.randn(VOCAB.num_speech, 4, generator=torch.Generator().manual_seed(0))
    save_file({"codebook": vectors}, path)
    return str(path)


def whole_state(stage: SpeechLM) -> dict[str, torch.Tensor]:
    """Weights and averages, gathered."""
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
        for name, value in stage.state_dict().items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    cases = sys.argv[2:] or list(CASES)
    results = {name: run(out, name, int(os.environ["WORLD_SIZE"])) for name in cases}
    if torch.distributed.get_rank() == 0:
        torch.save(results, out / "ranks.pt")
    torch.distributed.destroy_process_group()
