"""LibriTTS (https://www.openslr.org/60) and LibriTTS-R (https://www.openslr.org/141) as cut manifests: Lhotse's recipe."""

from pathlib import Path

from lhotse.recipes import prepare_libritts

from datamodules.recipes.parts import write_parts

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
        seed: of the shuffle.

    Raises:
        ValueError: nothing of the corpus is there, or a part that was asked for is not.
    """
    there = [part for part in PARTS if (corpus / part).is_dir()]
    missing = [part for part in parts or [] if part not in there]
    if not there or missing:
        raise ValueError(
            f"there is no {', '.join(missing) or 'part of LibriTTS'} at {corpus}; known are {', '.join(PARTS)}; fetch the corpus "
            "from openslr.org/60 or openslr.org/141 and unpack it"
        )
    write_parts(prepare_libritts(corpus, dataset_parts=parts or there, num_jobs=jobs), out, seed)
