"""What Lhotse's recipes return, recordings and supervisions in memory, as cut manifests; and what they left out, counted."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut

from datamodules.recipes.part_writer import PartWriter


@contextmanager
def lhotse_reads(corpus: Path) -> Iterator[None]:
    """What Lhotse's recipe trips over, a damaged recording or a table of another form, as an error of the corpus."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:  # it raises whatever its readers do
        raise ValueError(f"{corpus} could not be read: {type(error).__name__}: {error}") from error


def cuts_of(found: Mapping[str, Any], language: str) -> list[Cut]:
    """One cut per recording, under the recording's name, in the order of names."""
    cuts = list(CutSet.from_manifests(found["recordings"], found["supervisions"]))
    for cut in cuts:
        cut.id = cut.recording.id  # not Lhotse's running number
        for supervision in cut.supervisions:
            supervision.language = language  # a code, where Lhotse has a word
    return sorted(cuts, key=lambda cut: cut.id)


def inventory(audio: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """Names of all recordings of a part, each with the reason why it has no cut, should it have none."""
    spoken, written = set(audio), set(texts)
    reasons = dict.fromkeys(spoken, "no transcript") | dict.fromkeys(written, "no audio file")
    return reasons | dict.fromkeys(spoken & written, "refused by Lhotse's recipe")


def write_shuffled(cuts: Iterable[Cut], path: Path, seed: int | str, names: Mapping[str, str] | None = None) -> None:
    """Write cuts in the order of a hash.

    Args:
        cuts: to be written.
        path: of the manifest.
        seed: of the order.
        names: see `inventory`.
    """
    with PartWriter(path, seed) as part:
        written = set()
        for cut in cuts:
            part.tally.found += 1
            part.add(cut)
            written.add(cut.id)
        for name, reason in (names or {}).items():
            if name not in written:
                part.tally.found += 1
                part.leave_out(reason)


def write_parts(
    found: Mapping[str, Any],
    out: Path,
    seed: int,
    language: str = "en",
    names: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """`<part>.jsonl.gz` for every part, and all whose name begins with "train" together, as `train.jsonl.gz`.

    Args:
        found: recordings and supervisions by part.
        out: folder of the manifests.
        seed: of the order.
        language: of all of them.
        names: see `inventory`, by part.
    """
    train: list[Cut] = []
    train_names: dict[str, str] = {}
    for part in sorted(found):
        cuts = cuts_of(found[part], language)
        there = (names or {}).get(part, {})
        if part != "train":
            write_shuffled(cuts, out / f"{part}.jsonl.gz", f"{seed} {part}", there)
        if part.startswith("train"):
            train += cuts
            train_names |= there
    if train:
        write_shuffled(train, out / "train.jsonl.gz", seed, train_names)
