"""GigaSpeech (https://github.com/SpeechColab/GigaSpeech), 10,000 hours of English, as cut manifests: a cut for each segment.

Lhotse's recipe reads all of GigaSpeech.json at once, through a package of GigaSpeech's own, and makes one cut of each recording,
which may be hours long. Here its reader of one recording is called for each in turn.
"""

import re
from pathlib import Path

from lhotse.recipes.gigaspeech import parse_utterance

from datamodules.recipes.json_items import items
from datamodules.recipes.layout import require
from datamodules.recipes.parts import lhotse_reads
from datamodules.recipes.segments import Segments, open_parts

TABLE = "GigaSpeech.json"
SUBSETS = ("XS", "S", "M", "L", "XL")
MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_SPEECH = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")


def prepare(corpus: Path, out: Path, subset: str = "XL", lower: bool = True, seed: int = 0) -> None:
    """Write `train.jsonl.gz` of a training subset, `dev.jsonl.gz` and `test.jsonl.gz`.

    Args:
        corpus: the folder of GigaSpeech.json and audio/.
        out: where the manifests go; inside or above the corpus they name its files relatively, so that both can move together.
        subset: of the training data, each one inside the next: XS (10 h), S (250), M (1000), L (2500), XL (10,000).
        lower: the transcripts, all capitals in the corpus, in lower case, which is what text tokenizers know.
        seed: of the order.

    Raises:
        ValueError: the corpus is not there, its table is damaged, or there is no such subset.
    """
    if subset not in SUBSETS:
        raise ValueError(f"GigaSpeech has the training subsets {', '.join(SUBSETS)}, got {subset!r}")
    require(corpus, (TABLE, "audio"), "GigaSpeech", "github.com/SpeechColab/GigaSpeech")
    segments = Segments("en", lambda text: clean(text, lower))
    with open_parts(out, {subset: "train", "DEV": "dev", "TEST": "test"}, seed) as parts, lhotse_reads(corpus / TABLE):
        for audio in items(corpus / TABLE, "audios"):
            recording, said = parse_utterance(audio, corpus)
            for name, part in parts.items():
                wanted = [f"{{{name}}}" in row["subsets"] for row in audio["segments"]]
                segments.write(recording, [s for s, keep in zip(said, wanted, strict=True) if keep], part)


def clean(text: str, lower: bool) -> tuple[str, str]:
    """The corpus's transcript -> what is said, with its four marks as marks; or "" and the reason why it is nothing."""
    if any(tag in text for tag in NO_SPEECH):
        return "", "no speech"
    for tag, mark in MARKS.items():
        text = re.sub(rf"\s*{tag}", mark, text)
    text = " ".join(text.split()).lstrip(",.?! ")
    return (text.lower() if lower else text), "" if text else "no transcript"
