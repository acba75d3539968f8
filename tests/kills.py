"""Kill a training again and again, resume it on other numbers of ranks, and hold it against one that was left alone.

`python -m tests.kills --kills 100 [--seed 0]` does more of what tests/test_kills.py does in CI.
"""

import argparse
import json
import random
import signal
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from speechlm.runs import read_weights
from tests.faults.ranks import Zygote
from tests.kill_job import POINTS

Kill = tuple[int, int, int, str]  # ranks of the start, rank that is killed, steps from there, point in the step
Notes = dict[int, dict[str, Any]]


def plan(kills: int, worlds: list[int], seed: int) -> list[Kill]:
    """Where to kill: the starts go through the world sizes in equal parts."""
    dice = random.Random(seed)
    sizes = [worlds[number * len(worlds) // kills] for number in range(kills)]
    return [(size, dice.randrange(size), dice.randint(2, 4), dice.choice(POINTS)) for size in sizes]


def start(
    zygote: Zygote, folder: Path, ranks: int, steps: int, noise: float, kill: Any = None, **more: Any
) -> list[Any]:
    """Exit codes of one start."""
    arguments = {"folder": str(folder), "ranks": ranks, "steps": steps, "noise": noise, "kill": kill, **more}
    job = zygote.start(folder, "train_killed", arguments, ranks)
    codes = job.wait(seconds=120, grace=0.0 if kill else 20.0)
    as_planned = codes[kill[0]] == -signal.SIGKILL if kill else more or not any(codes)
    if not as_planned:
        raise AssertionError(f"{codes} of {arguments}\n{job.output()[-4000:]}")
    return codes


def unbroken(zygote: Zygote, folder: Path, ranks: int, steps: int, noise: float) -> Path:
    """A run that nothing happens to."""
    folder.mkdir(parents=True, exist_ok=True)
    start(zygote, folder, ranks, steps, noise)
    return folder


def broken(zygote: Zygote, folder: Path, kills: list[Kill], steps: int, noise: float) -> Path:
    """A run that is killed so many times, and then ends, on as many ranks as it had last."""
    folder.mkdir(parents=True, exist_ok=True)
    for ranks, rank, after, point in kills:
        start(zygote, folder, ranks, steps, noise, (rank, after, point))
    start(zygote, folder, kills[-1][0], steps, noise)
    return folder


def notes(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """By step, all that any start noted: its rows in the order of the stream, and the loss. Steps done twice are there twice."""
    by_start: dict[int, list[dict[str, Any]]] = defaultdict(list)
    ranks = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("notes-*.jsonl"))
    ]
    for lines in ranks:
        for line in lines:
            by_start[line["step"]].append(line)
    return dict(sorted(by_start.items()))


def compare(folder: Path, reference: Path, same_ranks: bool) -> float:
    """Rows, order, losses and weights, average included: the same at every step of every start; the largest difference.

    Bit for bit where the ranks are as many, else within the order of sums.
    """
    theirs, ours = notes(reference), notes(folder)
    assert ours.keys() == theirs.keys(), (list(ours), list(theirs))
    worst = 0.0
    for step, lines in ours.items():
        rows = [row for line in sorted(theirs[step], key=lambda line: line["rank"]) for row in line["rows"]]
        loss = theirs[step][0]["loss"]
        for line in lines:
            count = len(line["rows"])
            begin = line["rank"] * count
            assert line["rows"] == rows[begin : begin + count], (step, line, rows)
            worst = max(worst, abs(line["loss"] - loss) / abs(loss))
    one, other = (read_weights(path / "checkpoints/last.ckpt") for path in (folder, reference))
    assert one.keys() == other.keys() and any(name.startswith("ema.") for name in one)
    for name, tensor in one.items():
        worst = max(worst, float((tensor.double() - other[name].double()).abs().max()))
    assert worst == 0.0 if same_ranks else worst < 1e-4, worst
    return worst


def main() -> None:
    """So many kills in all, in equal parts on 1, 2 and 4 ranks and on 2, then 1, then 4."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    each, begin, zygote = given.kills // 4, time.monotonic(), Zygote()
    steps = 4 * (each + given.kills % 4) + 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for number, worlds in enumerate(([1], [2], [4], [2, 1, 4])):
            same = len(worlds) == 1
            kills = plan(each + (given.kills % 4 if number == 0 else 0), worlds, given.seed + number)
            noise = 0.1 if same else 0.0
            whole = unbroken(zygote, Path(folder) / f"whole-{number}", worlds[0] if same else 1, steps, noise)
            worst = compare(broken(zygote, Path(folder) / f"broken-{number}", kills, steps, noise), whole, same)
            print(f"ranks {worlds}: {len(kills)} kills, {steps} steps, largest difference {worst:g}", flush=True)
    zygote.close()
    print(f"{given.kills} kills survived in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
