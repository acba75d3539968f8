"""Corpora that come in parts (train-clean-100, …), each with Lhotse's recordings and supervisions, as cut manifests."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut

from datamodules.cuts import write_cuts


def cuts_of(found: Mapping[str, Any], language: str) -> list[Cut]:
    """One cut per recording, under the recording's name, in the order of names."""
    cuts = list(CutSet.from_manifests(found["recordings"], found["supervisions"]))
    for cut in cuts:
        cut.id = cut.recording.id  # not Lhotse's running number
        for supervision in cut.supervisions:
            supervision.language = language  # a code, where Lhotse has a word
    return sorted(cuts, key=lambda cut: cut.id)


def write_shuffled(cuts: list[Cut], path: Path, seed: int | str) -> None:
    """Shuffle in place, since a corpus is in the order of its speakers and training shuffles only within a buffer; write."""
    random.Random(seed).shuffle(cuts)
    write_cuts(cuts, path)
    print(f"{path.name.split('.')[0]}: {len(cuts)} recordings, {sum(cut.duration for cut in cuts) / 3600:.2f} h")


def write_parts(found: Mapping[str, Any], out: Path, seed: int, language: str = "en") -> None:
    """`<part>.jsonl.gz` for every part, and all whose name begins with "train" together, shuffled, as `train.jsonl.gz`."""
    train: list[Cut] = []
    for part in sorted(found):
        cuts = cuts_of(found[part], language)
        write_shuffled(cuts, out / f"{part}.jsonl.gz", f"{seed} {part}")
        train += cuts if part.startswith("train") else []
    if train:
        write_shuffled(train, out / "train.jsonl.gz", seed)
