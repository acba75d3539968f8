"""One shard of tokens: written so that it is whole or absent, by name, and the same bytes each time."""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from lhotse.cut import Cut
from lhotse.shar.utils import to_shar_placeholder
from lhotse.utils import fastcopy

from datamodules.cuts import write_cuts
from datamodules.sealed import write_sealed
from datamodules.tar_arrays import tar_array
from datamodules.token_folder import COMMITS, FIELD, SKIPPED, SUMMARY, Commit, TokenFolder, Totals, size_and_sum
from speechlm.conservation import Account
from speechlm.files import atomic_file, write_bytes_atomic

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object in memory, in an error's message: another in every run


def write_shard(
    folder: TokenFolder,
    shard: int,
    cuts: Sequence[Cut],
    tokens: dict[int, np.ndarray],
    skipped: dict[int, tuple[str, str]],
    seconds: float,
) -> Commit:
    """Write the shard's tar, then its manifest, then, when both are on the disk, its commit.

    Args:
        folder: where.
        shard: its number.
        cuts: all of its cuts in order.
        tokens: (T,) integers by position in `cuts`.
        skipped: reason, and where and what, of every other position.
        seconds: of audio that became tokens.
    """
    assert not tokens.keys() & skipped.keys()
    Account("cuts", len(cuts), len(tokens), Counter(reason for reason, _ in skipped.values())).require(f"shard {shard}")
    header = folder.header
    kept = [position for position in range(len(cuts)) if position in tokens]
    dtype = np.uint16 if header.num_codes <= 2**16 else np.int32
    packed = TokenTar(folder.tokens_path(shard), header.clock.seconds_of_tokens(1))
    written = [packed.add(cuts[p], tokens[p].astype(dtype)) for p in kept]
    data = packed.close()
    write_bytes_atomic(folder.tokens_path(shard), data)
    write_cuts(written, folder.cuts_path(shard))
    files = [folder.cuts_path(shard), folder.tokens_path(shard)]
    commit = Commit(
        shard=shard,
        made_with=folder.seal,
        tokenizer_hash=header.tokenizer_hash,
        vocab_hash=header.vocab.hash,
        clock=asdict(header.clock),
        cuts_in=len(cuts),
        cuts_out=len(kept),
        skipped=[[cuts[p].id, reason, _ADDRESS.sub("", what)] for p, (reason, what) in sorted(skipped.items())],
        num_tokens=sum(len(tokens[p]) for p in kept),
        seconds=round(seconds, 6),
        files={path.name: size_and_sum(path) for path in files},
    )
    write_sealed(folder.commit_path(shard), asdict(commit))
    return commit


class TokenTar:
    """The tar of a shard: for every cut an .npy and what Lhotse wants to know of it, as Lhotse's own writer puts them.

    Args:
        path: where it will lie.
        frame_shift_sec: seconds from one token to the next.
    """

    def __init__(self, path: Path, frame_shift_sec: float) -> None:
        self.path, self.frame_shift_sec = path, frame_shift_sec
        self.data = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.data, mode="w")  # noqa: SIM115 - closed by `close`

    def add(self, cut: Cut, tokens: np.ndarray) -> Cut:
        """Pack tokens; the cut with its `speech_tokens`, which begin where the cut does."""
        npy = io.BytesIO()
        np.save(npy, tokens, allow_pickle=False)
        offset = self._put(f"{cut.id}.npy", npy.getvalue())
        size = len(npy.getvalue())
        field = tar_array(str(self.path), offset, size, tokens.shape, self.frame_shift_sec, cut.start)
        placeholder = fastcopy(to_shar_placeholder(field), start=cut.start)
        self._put(f"{cut.id}.json", (json.dumps(placeholder.to_dict()) + "\n").encode())
        return fastcopy(cut, custom={**(cut.custom or {}), FIELD: field})

    def close(self) -> bytes:
        """The whole tar."""
        self.tar.close()
        return self.data.getvalue()

    def _put(self, name: str, data: bytes) -> int:
        """Add a member; the offset of its content. Its time, owner and mode are the same in every run."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))
        return self.tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def write_totals(folder: TokenFolder) -> Totals:
    """Add up all shards, once all are there, name every skipped cut in one file, and clear away what killed processes left.

    Raises:
        DamagedShard: a commit is missing or damaged.
        Unaccounted: a cut is in no shard, or neither out nor skipped.
    """
    totals = Totals()
    with atomic_file(folder.path / SKIPPED) as file:
        for commit in folder.commits():
            totals.add(commit)
            for cut_id, reason, what in commit.skipped:
                row = {"id": cut_id, "reason": reason, "what": what, "shard": commit.shard}
                file.write((json.dumps(row) + "\n").encode())
    totals.account.require(str(folder.path))
    Account("cuts", folder.header.num_cuts, totals.cuts_in, words=("planned", "in", "lost")).require(str(folder.path))
    numbers = {**asdict(totals), "skipped": dict(sorted(totals.skipped.items()))}
    files = {SKIPPED: size_and_sum(folder.path / SKIPPED)}
    write_sealed(folder.path / SUMMARY, {"made_with": folder.seal, **numbers, "files": files})
    for leftover in [
        *folder.shar.glob(".*.part"),
        *folder.path.glob(".*.part"),
        *folder.path.glob(f"{COMMITS}/.*.part"),
    ]:
        leftover.unlink(missing_ok=True)
    return totals
