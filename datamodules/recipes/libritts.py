"""LibriTTS (https://www.openslr.org/60) and LibriTTS-R (https://www.openslr.org/141) as cut manifests: Lhotse's recipe."""

from pathlib import Path

from lhotse.recipes import prepare_libritts

from datamodules.recipes.layout import require_parts
from datamodules.recipes.parts import inventory, lhotse_reads, write_parts

PARTS = (
    "dev-clean", "dev-other", "test-clean", "test-other", "train-clean-100", "train-clean-360", "train-other-500",
)  # fmt: skip


def prepare(corpus: Path, out: Path, parts: list[str] | None = None, jobs: int = 1, seed: int = 0) -> None:
    """Write `<part>.jsonl.gz` for every part, and all train parts together, shuffled, as `train.jsonl.gz`.

    Args:
        corpus: the folder of dev-clean, train-clean-100 and so on.
        out: where the manifests go; inside or above the corpus they name its files relatively, so that both can move together.
        parts: such as train-clean-100; all that are there by default.
        jobs: threads that read the files' headers.
        seed: of the order.

    Raises:
        ValueError: nothing of the corpus is there, a part that was asked for is not, or a file is damaged.
    """
    chosen = require_parts(corpus, parts, PARTS, "LibriTTS", "openslr.org/60 or openslr.org/141")
    with lhotse_reads(corpus):
        found = prepare_libritts(corpus, dataset_parts=chosen, num_jobs=jobs)
    write_parts(found, out, seed, names={part: _names(corpus / part) for part in chosen})


def _names(part: Path) -> dict[str, str]:
    tables = (path.read_text(encoding="utf-8").splitlines() for path in part.rglob("[!.]*.trans.tsv"))
    texts = (line.split("\t")[0] for lines in tables for line in lines if line.strip())
    return inventory((path.stem for path in part.rglob("[!.]*.wav")), texts)
