"""VCTK 0.92 (https://datashare.ed.ac.uk/handle/10283/3443) as cut manifests: Lhotse's recipe, some speakers held out."""

from pathlib import Path

from lhotse.recipes import prepare_vctk

from datamodules.recipes.layout import require
from datamodules.recipes.parts import cuts_of, inventory, lhotse_reads, write_shuffled

HELD_OUT = ["p226", "p228", "p241", "p362"]  # two men, two women, four accents


def prepare(corpus: Path, out: Path, heldout: list[str] = HELD_OUT, microphone: str = "mic2", seed: int = 0) -> None:
    """Write `train.jsonl.gz` and `heldout.jsonl.gz`, the latter of speakers that the former has nothing of.

    Args:
        corpus: the folder of wav48_silence_trimmed, txt and speaker-info.txt.
        out: where the manifests go.
        heldout: speakers to keep out of training.
        microphone: mic1 or mic2 of the two that recorded everything.
        seed: of the order.

    Raises:
        ValueError: the corpus is not there, or holds out speakers that it has not.
    """
    require(corpus, ("wav48_silence_trimmed", "txt", "speaker-info.txt"), "VCTK 0.92", "datashare.ed.ac.uk")
    with lhotse_reads(corpus):
        cuts = cuts_of(prepare_vctk(corpus, use_edinburgh_vctk_url=True, mic_id=microphone), "en")
    speakers = {cut.supervisions[0].speaker for cut in cuts}
    unknown = [name for name in heldout if name not in speakers]
    if unknown:
        raise ValueError(
            f"the corpus has no speaker {', '.join(unknown)} to hold out; it has {', '.join(sorted(speakers))}"
        )
    names = _names(corpus, microphone)
    for part, wanted in (("train", False), ("heldout", True)):
        chosen = [cut for cut in cuts if (cut.supervisions[0].speaker in heldout) == wanted]
        there = {name: why for name, why in names.items() if (name.split("_")[0] in heldout) == wanted}
        write_shuffled(chosen, out / f"{part}.jsonl.gz", seed, there)


def _names(corpus: Path, microphone: str) -> dict[str, str]:
    audio = (path.stem for path in (corpus / "wav48_silence_trimmed").rglob(f"*_{microphone}.flac"))
    return inventory(audio, (f"{path.stem}_{microphone}" for path in (corpus / "txt").rglob("*.txt")))
