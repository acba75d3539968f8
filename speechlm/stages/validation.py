"""How a stage logs what it measured on a validation set."""

import lightning as L
from torch import Tensor

from speechlm.validation_sets import set_name


def log_on_set(stage: L.LightningModule, index: int, values: dict[str, Tensor], batch_size: int, shown: str) -> None:
    """Log means over a set and all ranks as `val/<set>/<value>`.

    Args:
        stage: that is being validated.
        index: of the set's loader.
        values: means over a batch.
        batch_size: their weight.
        shown: the value that the progress bar shows.
    """
    for key, value in values.items():
        stage.log(
            f"val/{set_name(stage.trainer, index)}/{key}",
            value,
            batch_size=batch_size,
            add_dataloader_idx=False,
            sync_dist=True,
            prog_bar=key == shown,
        )
