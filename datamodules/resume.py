"""Where a resumed run stands in its data, read from the loops that Lightning restores.

Lightning (2.6) does not fast-forward a loader, and the state of loaders that it can save is of no use: rank 0 writes its own
for all, and a loader of unknown length is asked for one batch ahead of the training. Its loops' counters are right on every
rank and count what was trained, so the position is taken from them, and the loader goes there by itself.
"""

from typing import Any

from lightning import Trainer


def position(trainer: Trainer) -> tuple[int, int]:
    """(epoch, batches of it already trained), for a loader that is about to be made.

    Raises:
        RuntimeError: the loader is asked for before the checkpoint's loops are restored, so nothing is known yet.
    """
    loop: Any = trainer.fit_loop
    batches = loop.epoch_loop.batch_progress
    if trainer.ckpt_path and not loop.is_resuming and batches.total.ready == 0:
        raise RuntimeError(
            "the training data was asked for before the checkpoint is restored, and would start from its beginning; "
            "`trainer.estimated_stepping_batches` in configure_optimizers does that: give the scheduler its number of steps"
        )
    if not loop.is_resuming:
        return loop.epoch_progress.current.processed, 0
    if batches.is_last_batch and batches.current.processed == batches.current.ready:
        _close_epoch(trainer)
        return loop.epoch_progress.current.processed, 0
    _open_epoch(trainer)
    return loop.epoch_progress.current.processed, batches.current.processed


def _close_epoch(trainer: Trainer) -> None:
    """Set the counters of a checkpoint from behind the last batch of an epoch to what they are between two epochs.

    Of itself, with a loader of unknown length, Lightning would count on in the next epoch from where the last one ended, which
    shifts the accumulation of gradients, or take the finished epoch for a running one and pass over the next.
    """
    loop: Any = trainer.fit_loop
    for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
        progress.ready = progress.processed = progress.completed = progress.started
    batches = loop.epoch_loop.batch_progress
    batches.total.completed = batches.total.processed
    batches.reset_on_run()
    loop.epoch_loop.restarting = False  # and of the loops inside it
    loop._restarting = False  # the property's setter would turn it on again where `max_steps` is set
    loop.epoch_loop._batches_that_stepped = trainer.global_step


def _open_epoch(trainer: Trainer) -> None:
    """Set the counters of a checkpoint from inside an epoch to what they are there.

    Where `max_steps` or a signal ended the run, Lightning counts the epoch as done, and would begin the next.
    """
    loop: Any = trainer.fit_loop
    if not 0 < loop.epoch_progress.current.started == loop.epoch_progress.current.processed:
        return
    for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
        progress.processed = progress.completed = progress.started - 1
    loop.restarting = True  # and the loops inside it; it was not while the epoch counted as done
