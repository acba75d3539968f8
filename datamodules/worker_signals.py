"""What a loader's worker does with signals: those of a cluster are the training process's to answer, its own end is the parent's.

Slurm and launchers signal all processes of a step at once. A worker that ended at SIGTERM would end the run with "DataLoader
worker exited unexpectedly" before the step under way is done and saved. A signal from the parent, which is how a loader ends
workers that do not answer, ends a worker at once, and so does the end of the parent.
"""

import os
import signal
import threading

LOOK_EVERY_SEC = 1.0


def heed_the_parent_alone(worker: int) -> None:
    """A loader's `worker_init_fn`: SIGUSR1 is passed over, SIGTERM too unless the parent sent it.

    Args:
        worker: its number; all are alike.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a thread of a numerical library may be given it, and must not end for it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the thread below takes it
    threading.Thread(target=_wait_for_the_end, args=(os.getppid(),), daemon=True).start()


def _wait_for_the_end(parent: int) -> None:
    while os.getppid() == parent:
        sent = signal.sigtimedwait({signal.SIGTERM}, LOOK_EVERY_SEC)
        if sent is not None and sent.si_pid == parent:
            break
    os._exit(0)  # as torch's own handler ends: the loader is not to take this for an accident
