"""AISHELL-1 (https://www.openslr.org/33), 170 hours of read Mandarin, as cut manifests: Lhotse's recipe."""

from pathlib import Path

from lhotse.recipes import prepare_aishell

from datamodules.recipes.layout import require
from datamodules.recipes.parts import inventory, lhotse_reads, write_parts

TRANSCRIPTS = "data_aishell/transcript/aishell_transcript_v0.8.txt"
PARTS = ("train", "dev", "test")


def prepare(corpus: Path, out: Path, seed: int = 0) -> None:
    """Write `train.jsonl.gz`, `dev.jsonl.gz` and `test.jsonl.gz`; transcripts without the blanks between words.

    Args:
        corpus: the folder that has data_aishell/, or that folder, with the speakers' archives in data_aishell/wav unpacked.
        out: where the manifests go; inside or above the corpus they name its files relatively, so that both can move together.
        seed: of the order. The corpus is in order of speakers, and training shuffles only within a buffer.

    Raises:
        ValueError: the corpus is not there, is still packed, or a file of it is damaged.
    """
    corpus = corpus.absolute().parent if corpus.name == "data_aishell" else corpus
    wav = corpus / "data_aishell" / "wav"
    if not (wav / "train").is_dir() and any(wav.glob("*.tar.gz")):
        raise ValueError(f"{wav} has the speakers' archives still packed; unpack every .tar.gz there where it lies")
    require(corpus, (TRANSCRIPTS, *(f"data_aishell/wav/{part}" for part in PARTS)), "AISHELL-1", "openslr.org/33")
    with lhotse_reads(corpus):
        found = prepare_aishell(corpus)
    spoken = {part: {path.stem for path in (wav / part).rglob("*.wav")} for part in PARTS}
    written = {line.split()[0] for line in (corpus / TRANSCRIPTS).read_text("utf-8").splitlines() if line.strip()}
    names = {part: inventory(spoken[part], written & spoken[part]) for part in PARTS}
    write_parts(found, out, seed, "zh", names)
    unheard = len(written - set().union(*spoken.values()))
    print(f"{unheard} transcripts without a recording")
