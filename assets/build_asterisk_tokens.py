"""Builds `tiny_train.jsonl.gz`, `tiny_heldout.jsonl.gz` and `tiny_tokens.tar` of `assets/asterisk-en`: a few of its recordings
with the speech tokens that the tiny configs of the decoder train on.

    python -m speechlm.fit --config configs/speech_tokenizer/embedded.yaml
    python -m speechlm.tokenize --config configs/tokenize/embedded.yaml
    python assets/build_asterisk_tokens.py data/embedded_tokens assets/asterisk-en
"""

import argparse
from io import BytesIO
from pathlib import Path
from tarfile import TarFile, TarInfo

import numpy as np
from lhotse.cut import Cut, MonoCut

from datamodules.cuts import read_cuts, write_cuts
from datamodules.tar_arrays import tar_array
from datamodules.token_cuts import read_token_cuts, tokens_of

COUNTS = {"train": 64, "heldout": 12}
SECONDS = (1.0, 4.0)


def build(tokens: Path, corpus: Path) -> None:
    """Pick recordings and write their manifests and one tar of their tokens."""
    spoken = {cut.id: cut for cut in read_token_cuts(tokens)}
    tar = corpus / "tiny_tokens.tar"
    with tar.open("wb") as file, TarFile(fileobj=file, mode="w") as archive:
        for name, count in COUNTS.items():
            cuts = [c for c in read_cuts(corpus / f"{name}.jsonl.gz") if SECONDS[0] <= c.duration <= SECONDS[1]]
            picked = [_with_tokens(cut, spoken[cut.id], archive, tar) for cut in cuts[:: len(cuts) // count][:count]]
            write_cuts(picked, corpus / f"tiny_{name}.jsonl.gz")


def _with_tokens(cut: Cut, spoken: Cut, archive: TarFile, tar: Path) -> Cut:
    """A cut with its tokens, which are put into the archive."""
    assert isinstance(cut, MonoCut) and isinstance(spoken, MonoCut)
    data = BytesIO()
    values = tokens_of(spoken)
    np.save(data, values.astype(np.uint16))
    info = TarInfo(f"{cut.id}.npy")
    info.size = len(data.getvalue())
    offset = archive.offset + 512
    archive.addfile(info, BytesIO(data.getvalue()))
    field = spoken.custom["speech_tokens"]
    cut.custom = {"speech_tokens": tar_array(str(tar), offset, info.size, values.shape, field.frame_shift, field.start)}
    return cut


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokens", type=Path, help="what speechlm.tokenize wrote")
    parser.add_argument("corpus", type=Path, help="assets/asterisk-en")
    arguments = parser.parse_args()
    build(arguments.tokens, arguments.corpus)
