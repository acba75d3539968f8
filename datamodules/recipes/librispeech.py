"""LibriSpeech (https://www.openslr.org/12) as cut manifests: Lhotse's recipe, in the layout that the configs name."""

from pathlib import Path

from lhotse.recipes import prepare_librispeech

from datamodules.recipes.layout import require_parts
from datamodules.recipes.parts import inventory, lhotse_reads, write_parts

PARTS = (
    "dev-clean", "dev-other", "test-clean", "test-other", "train-clean-100", "train-clean-360", "train-other-500",
    "dev-clean-2", "train-clean-5",
)  # fmt: skip


def prepare(
    corpus: Path, out: Path, parts: list[str] | None = None, lower: bool = True, jobs: int = 1, seed: int = 0
) -> None:
    """Write `<part>.jsonl.gz` for every part, and all train parts together, shuffled, as `train.jsonl.gz`.

    Args:
        corpus: the folder of dev-clean, train-clean-100 and so on, or the one that has it as LibriSpeech/.
        out: where the manifests go; inside or above the corpus they name its files relatively, so that both can move together.
        parts: such as train-clean-100; all that are there by default.
        lower: the transcripts, all capitals in the corpus, in lower case, which is what text tokenizers know.
        jobs: threads that read the files' headers.
        seed: of the order. The corpus is in order of speakers, and training shuffles only within a buffer.

    Raises:
        ValueError: nothing of the corpus is there, or a file of it is damaged.
    """
    corpus = corpus / "LibriSpeech" if (corpus / "LibriSpeech").is_dir() else corpus
    chosen = require_parts(corpus, parts, PARTS, "LibriSpeech", "openslr.org/12")
    with lhotse_reads(corpus):
        found = prepare_librispeech(
            corpus, dataset_parts=chosen, normalize_text="lower" if lower else "none", num_jobs=jobs
        )
    write_parts(found, out, seed, names={part: _names(corpus / part) for part in chosen})


def _names(part: Path) -> dict[str, str]:
    tables = (path.read_text(encoding="utf-8").splitlines() for path in part.rglob("*.trans.txt"))
    texts = (line.split(maxsplit=1)[0] for lines in tables for line in lines if line.strip())
    return inventory((path.stem for path in part.rglob("*.flac")), texts)
