"""A callback for tests of what happens to a job while it trains."""

import os
import time
from typing import Any

import lightning as L


class SlowSteps(L.Callback):
    """Every step takes longer, until the job was requeued.

    Args:
        seconds: longer by so much.
    """

    def __init__(self, seconds: float = 0.8) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Sleep."""
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
            time.sleep(self.seconds)
