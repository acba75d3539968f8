"""What the weights that a run starts from do on the held-out sets, logged as step 0: what everything later is compared with."""

from typing import Any

import lightning as L


class ValidateFirst(L.Callback):
    """One validation before the first step of a new run; a resumed one has had it.

    Lightning's own validation before training (`num_sanity_val_steps`) logs nothing.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate, behind every `on_train_start`: a stage may still have changed its weights there."""
        if trainer.global_step:
            return
        loop: Any = trainer.fit_loop.epoch_loop.val_loop
        trainer.validating = True
        loop.run()
        trainer.training = True
