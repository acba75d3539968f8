"""LibriSpeech (https://www.openslr.org/12) as cut manifests: Lhotse's recipe, in the layout that the configs name."""

from pathlib import Path

from lhotse.recipes import prepare_librispeech

from datamodules.recipes.parts import write_parts


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
        seed: of the shuffle. The corpus is in order of speakers, and training shuffles only within a buffer.

    Raises:
        ValueError: nothing of the corpus is there.
    """
    corpus = corpus / "LibriSpeech" if (corpus / "LibriSpeech").is_dir() else corpus
    missing = [part for part in parts or [] if not (corpus / part).is_dir()]
    if not corpus.is_dir() or missing:
        raise ValueError(
            f"there is no {', '.join(missing) or 'folder'} at {corpus}; fetch it from openslr.org/12 and unpack it"
        )
    found = prepare_librispeech(
        corpus, dataset_parts=parts or "auto", normalize_text="lower" if lower else "none", num_jobs=jobs
    )
    write_parts(found, out, seed)
