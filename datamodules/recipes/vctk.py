"""VCTK 0.92 (https://datashare.ed.ac.uk/handle/10283/3443) as cut manifests: Lhotse's recipe, some speakers held out."""

from pathlib import Path

from lhotse.recipes import prepare_vctk

from datamodules.recipes.parts import cuts_of, write_shuffled

HELD_OUT = ["p226", "p228", "p241", "p362"]  # two men, two women, four accents


def prepare(corpus: Path, out: Path, heldout: list[str] = HELD_OUT, microphone: str = "mic2", seed: int = 0) -> None:
    """Write `train.jsonl.gz` and `heldout.jsonl.gz`, the latter of speakers that the former has nothing of.

    Args:
        corpus: the folder of wav48_silence_trimmed, txt and speaker-info.txt.
        out: where the manifests go.
        heldout: speakers to keep out of training.
        microphone: mic1 or mic2 of the two that recorded everything.
        seed: of the shuffle.

    Raises:
        ValueError: the corpus is not there, or holds out speakers that it has not.
    """
    wanted = [name for name in ("wav48_silence_trimmed", "txt", "speaker-info.txt") if not (corpus / name).exists()]
    if wanted:
        raise ValueError(
            f"there is no {', '.join(wanted)} at {corpus}; fetch VCTK 0.92 from datashare.ed.ac.uk and unpack it"
        )
    cuts = cuts_of(prepare_vctk(corpus, use_edinburgh_vctk_url=True, mic_id=microphone), "en")
    speakers = {cut.supervisions[0].speaker for cut in cuts}
    unknown = [name for name in heldout if name not in speakers]
    if unknown:
        raise ValueError(
            f"the corpus has no speaker {', '.join(unknown)} to hold out; it has {', '.join(sorted(speakers))}"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_shuffled([c for c in cuts if c.supervisions[0].speaker not in heldout], out / "train.jsonl.gz", seed)
    write_shuffled([c for c in cuts if c.supervisions[0].speaker in heldout], out / "heldout.jsonl.gz", seed)
