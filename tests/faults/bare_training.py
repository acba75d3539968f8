"""The same faults of training, under Lightning with its defaults."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.faults.bare_data import Outcome
from tests.faults.ranks import Job, Zygote

NAN = float("nan")
PATIENCE_SEC = 12.0  # what our own watchdog takes a tenth of in the tests


def run(zygote: Zygote, folder: Path, *faults: Any, ranks: int = 1, steps: int = 6, **settings: Any) -> Job:
    """A bare run with faults."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [[name, arguments] for name, arguments in faults]
    more = {"devices": ranks, **({"strategy": "ddp"} if ranks > 1 else {}), **settings}
    return zygote.start(folder, "bare_fit", {"folder": str(folder), "steps": steps, "faults": listed, **more}, ranks)


def weights(folder: Path) -> torch.Tensor:
    """At the end of a run."""
    state = torch.load(folder / "end.ckpt", weights_only=False)["state_dict"]  # our own file
    return torch.cat([tensor.flatten() for tensor in state.values()])


def restarts(zygote: Zygote, root: Path) -> Iterator[Outcome]:
    """1, 2, 25: killed, and started again from the newest checkpoint, as the documentation says."""
    assert run(zygote, root / "unbroken").wait() == [0]
    for number, ranks in ((2, 1), (1, 2)):
        folder = root / f"killed-{ranks}"
        assert run(zygote, root / f"unbroken-{ranks}", ranks=ranks).wait() == [0] * ranks
        run(zygote, folder, ("Strike", {"steps": [3], "rank": 0}), ranks=ranks).wait(20)
        codes = run(zygote, folder, ranks=ranks, resume=True).wait()
        same = codes == [0] * ranks and torch.equal(weights(folder), weights(root / f"unbroken-{ranks}"))
        yield number, f"killed at step 3, {ranks} ranks", "recovered" if same else "silent"
        yield 25, f"state behind a restart, {ranks} ranks", "recovered" if same else "silent"


def standstill(zygote: Zygote, root: Path) -> Iterator[Outcome]:
    """6, 7, 10: stopped, slow, and holding the lock: whether anything is said in time."""
    for number, kind in ((6, "SIGSTOP"), (6, "sleep"), (10, "hold lock")):
        fault = ("Strike", {"steps": [3], "rank": 1, "kind": kind, "seconds": 60})
        job = run(zygote, root / kind, fault, ranks=2)
        while time.monotonic() - job.started < PATIENCE_SEC and None in job.codes():
            time.sleep(0.1)
        hangs = None in job.codes()
        job.kill()
        yield number, kind, "hangs" if hangs else "caught"
    job = run(zygote, root / "slow", ("Slow", {"rank": 1, "seconds": 0.05}), ranks=2)
    job.wait()
    yield 7, "one rank slower", "caught" if "straggler" in job.output().lower() else "silent"


def endings(zygote: Zygote, root: Path) -> Iterator[Outcome]:
    """8, 9: an error, or an abort, on one rank; under torchrun the others are ended."""
    for number, kind in ((8, "error"), (9, "abort"), (9, "segfault")):
        job = run(zygote, root / kind, ("Strike", {"steps": [3], "rank": 1, "kind": kind}), ranks=2)
        yield number, kind, "caught" if 0 not in job.wait(30) else "silent"


def numbers(zygote: Zygote, root: Path) -> Iterator[Outcome]:
    """29 to 34: NaN, infinities, spikes, flipped bits, a layer computed wrongly."""
    cases: list[tuple[int, str, tuple[str, dict[str, Any]], int]] = [
        (29, "NaN loss", ("BadLoss", {"steps": [3], "value": NAN}), 1),
        (29, "NaN gradient", ("BadGradient", {"steps": [3], "value": NAN}), 1),
        (30, "infinite gradient on one rank", ("BadGradient", {"steps": [3], "rank": 1, "value": float("inf")}), 2),
        (31, "ten in a row", ("BadGradient", {"steps": list(range(2, 12)), "value": NAN}), 1),
        (32, "gradient 10000 times as large", ("BadGradient", {"steps": [3], "value": 1e4}), 1),
        (33, "layer computed wrongly", ("WrongLayer", {"steps": [3]}), 1),
        (33, "flipped bit in a weight", ("FlippedBit", {"steps": [3], "rank": 1, "bit": 12}), 2),
        (34, "one rank's weight changed", ("FlippedBit", {"steps": [3], "rank": 1, "bit": 23}), 2),
    ]
    for number, name, fault, ranks in cases:
        codes = run(zygote, root / name.replace(" ", "-"), fault, ranks=ranks).wait()
        yield number, name, "silent" if codes == [0] * ranks else "caught"


def configs(zygote: Zygote, root: Path) -> Iterator[Outcome]:
    """15, 23, 24: settings that differ between ranks, or from those of the checkpoint; two runs in one folder."""
    job = run(zygote, root / "ranks", ranks=2, lr_of_rank={"1": 0.5})
    yield 15, "another learning rate on one rank", "silent" if job.wait() == [0, 0] else "caught"
    run(zygote, root / "changed", steps=4).wait()
    job = run(zygote, root / "changed", steps=6, resume=True, lr=0.5)
    yield 23, "another learning rate when resumed", "silent" if job.wait() == [0] else "caught"
    jobs = [run(zygote, root / "both") for _ in range(2)]
    yield 24, "two runs in one folder", "silent" if all(job.wait() == [0] for job in jobs) else "caught"


def signals(zygote: Zygote, root: Path) -> Iterator[Outcome]:
    """3: SIGTERM in a step; whether the step's work is kept."""
    job = run(zygote, root / "term", ("Strike", {"steps": [3], "kind": "SIGTERM"}))
    job.wait(30)
    kept = [path.name for path in (root / "term").rglob("*.ckpt")]
    yield 3, "SIGTERM in a step", "recovered" if any("3" in name or "4" in name for name in kept) else "work lost"


def losses(zygote: Zygote, root: Path) -> Iterator[Outcome]:
    """35, 36: ids outside of the vocabulary, and rows without anything to predict."""
    for bad in (-1, 8):
        try:
            F.embedding(torch.tensor([bad]), torch.randn(8, 2))
            yield 35, f"id {bad}", "silent"
        except IndexError:
            yield 35, f"id {bad}", "caught"
    loss = F.cross_entropy(torch.randn(3, 5), torch.full((3,), -100))
    yield 36, "nothing to predict", "silent" if torch.isnan(loss) else "caught"


def outcomes() -> Iterator[Outcome]:
    """Everything."""
    zygote = Zygote()
    try:
        for tried in (restarts, standstill, endings, numbers, configs, signals, losses):
            with tempfile.TemporaryDirectory() as folder:
                yield from tried(zygote, Path(folder))
    finally:
        zygote.close()
