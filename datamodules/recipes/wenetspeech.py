"""WenetSpeech (https://wenet.org.cn/WenetSpeech), 10,000 hours of Mandarin, as cut manifests: a cut for each segment.

Lhotse's recipe holds WenetSpeech.json and all of its segments in memory; here its reader of one recording is called for each in
turn.
"""

from pathlib import Path

from lhotse.recipes.wenet_speech import parse_utterance

from datamodules.recipes.json_items import items
from datamodules.recipes.layout import require
from datamodules.recipes.parts import lhotse_reads
from datamodules.recipes.segments import Segments, open_parts

TABLE = "WenetSpeech.json"
SUBSETS = ("S", "M", "L")


def prepare(corpus: Path, out: Path, subset: str = "L", seed: int = 0) -> None:
    """Write `train.jsonl.gz` of a training subset, `dev.jsonl.gz`, `test_net.jsonl.gz` and `test_meeting.jsonl.gz`.

    Args:
        corpus: the folder of WenetSpeech.json and audio/.
        out: where the manifests go; inside or above the corpus they name its files relatively, so that both can move together.
        subset: of the training data, each one inside the next: S (100 h), M (1000), L (10,000).
        seed: of the order.

    Raises:
        ValueError: the corpus is not there, its table is damaged, or there is no such subset.
    """
    if subset not in SUBSETS:
        raise ValueError(f"WenetSpeech has the training subsets {', '.join(SUBSETS)}, got {subset!r}")
    require(corpus, (TABLE, "audio"), "WenetSpeech", "wenet.org.cn/WenetSpeech")
    names = {subset: "train", "DEV": "dev", "TEST_NET": "test_net", "TEST_MEETING": "test_meeting"}
    segments = Segments("zh", lambda text: (text.strip(), "" if text.strip() else "no transcript"))
    with open_parts(out, names, seed) as parts, lhotse_reads(corpus / TABLE):
        for audio in items(corpus / TABLE, "audios"):
            recording, said = parse_utterance(audio, corpus, list(parts))
            for name, part in parts.items():
                segments.write(recording, said[name], part)
