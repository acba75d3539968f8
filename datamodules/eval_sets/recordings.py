"""Recordings with transcripts: any cut manifest whose audio is in files, such as those of `python -m datamodules.prepare`."""

from collections.abc import Iterator
from pathlib import Path

from lhotse.cut import MonoCut

from datamodules.cuts import read_cuts
from datamodules.eval_sets.zerospeech import relative
from speechlm.evals.items import Item


def recordings(cuts: Path, out: Path, group: str = "", language: str = "") -> Iterator[Item]:
    """Speech of a manifest.

    Args:
        cuts: the manifest.
        out: the file that the items are for.
        group: such as test-clean.
        language: code, of cuts that name none.

    Raises:
        ValueError: a cut's audio is no file of its own.
    """
    for cut in read_cuts(cuts):
        sources = cut.recording.sources if isinstance(cut, MonoCut) and cut.has_recording else []
        if [source.type for source in sources] != ["file"]:
            raise ValueError(f"{cut.id} of {cuts} is not one recording in one file, which an item can name")
        said = cut.supervisions[0] if cut.supervisions else None
        whole = cut.start == 0 and abs(cut.duration - cut.recording.duration) < 1e-3
        speech = {"audio": relative(Path(sources[0].source), out), "text": (said.text or "") if said else ""}
        span = {} if whole else {"start": cut.start, "seconds": cut.duration}
        item: Item = {"id": cut.id, "speech": {**speech, **span}, "language": language}
        if said:
            item |= {"language": said.language or language, "speaker": said.speaker or ""}
        yield {**item, **({"group": group} if group else {})}
