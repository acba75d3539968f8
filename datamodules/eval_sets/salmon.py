"""SALMon as it unpacks: a folder for each part with sample_<n>_0.wav, which is right, and sample_<n>_1.wav."""

from collections.abc import Iterator
from pathlib import Path

from datamodules.eval_sets.zerospeech import relative
from speechlm.evals.items import Item

PARTS = (
    "bg_alignment", "bg_all_consistency", "bg_domain_consistency", "gender_consistency", "rir_consistency",
    "sentiment_alignment", "sentiment_consistency", "speaker_consistency",
)  # fmt: skip


def salmon(corpus: Path, out: Path) -> Iterator[Item]:
    """Pairs of every part that is there.

    Args:
        corpus: the folder salmon_benchmark.
        out: the file that the items are for.

    Raises:
        ValueError: no part is there, or a recording has no partner.
    """
    there = [part for part in PARTS if (corpus / part).is_dir()]
    if not there:
        raise ValueError(f"{corpus} has no folder {', '.join(PARTS)}; fetch SALMon's salmon_benchmark")
    for part in there:
        for wrong in (corpus / part).glob("sample_*_1.wav"):
            if not (right := wrong.with_name(wrong.name.replace("_1.wav", "_0.wav"))).is_file():
                raise ValueError(f"{wrong} has no {right.name} beside it")
        for right in sorted((corpus / part).glob("sample_*_0.wav"), key=lambda path: int(path.stem.split("_")[1])):
            wrong = right.with_name(right.name.replace("_0.wav", "_1.wav"))
            if not wrong.is_file():
                raise ValueError(f"{right} has no {wrong.name} beside it")
            sides = {"positive": {"audio": relative(right, out)}, "negative": {"audio": relative(wrong, out)}}
            yield {"id": f"{part}-{right.stem.split('_')[1]}", "group": part, **sides}
