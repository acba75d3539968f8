"""A corpus in speech tokens, as a folder: what lies where in it, what it was made with, and whether it still is what was written.

    tokenize.json             what it was made with: manifests, tokenizer, vocabulary, clock, settings
    shar/cuts.000000.jsonl.gz shar/speech_tokens.000000.tar   a shard, in Lhotse's Shar format; audio stays where it was
    commits/000000.json       written last: the shard is whole; counts, what was skipped and why, sha256 of its files
    summary.json skipped.jsonl   all shards together, once all are there

A shard without its commit does not exist. Everything is a function of the manifests, the tokenizer and the settings, so whoever
makes a shard, and however often, makes the same bytes.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.cut_shards import CutShards, ManifestCount
from datamodules.sealed import read_sealed, require_same, seal_of, write_sealed
from speechlm.conservation import Account
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import OtherVocab, Vocab

SCHEMA = 1
FIELD = "speech_tokens"  # of the cuts
HEADER, SHAR, COMMITS = "tokenize.json", "shar", "commits"
SUMMARY, SKIPPED = "summary.json", "skipped.jsonl"
_COMMIT_NAME = re.compile(r"(\d{6,})\.json")
_CUTS_NAME = re.compile(r"cuts\.(\d{6,})\.jsonl\.gz")


@dataclass(frozen=True)
class Header(CutShards):
    """What a folder of tokens is made with.

    Args:
        manifests: see `CutShards`.
        shard_size: see `CutShards`.
        clock: of the tokenizer.
        tokenizer: its settings, for people.
        tokenizer_hash: of its settings and weights.
        num_codes: tokens lie in [0, num_codes).
        tokens_per_frame: tokens come in whole frames of this many.
        settings: of the making, those that tokens may depend on.
    """

    clock: Clock
    tokenizer: dict[str, Any]
    tokenizer_hash: str
    num_codes: int
    tokens_per_frame: int
    settings: dict[str, Any]

    @property
    def vocab(self) -> Vocab:
        """The speech half of the vocabulary; names the tokenizer, so that no other one's tokens pass for these."""
        return Vocab(num_text=0, num_speech=self.num_codes, controls=(), speech_tokenizer=self.tokenizer_hash)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema": SCHEMA, "vocab_hash": self.vocab.hash, **asdict(self), "manifests": self._manifest_rows()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Header":
        """Back from plain values.

        Raises:
            ValueError: written by another version of this code.
        """
        if fields.get("schema") != SCHEMA:
            raise ValueError(f"{HEADER} has schema {fields.get('schema')}, this code reads {SCHEMA}; tokenize again")
        known = {name: fields[name] for name in cls.__dataclass_fields__}
        manifests = tuple(ManifestCount(*row) for row in fields["manifests"])
        return cls(**{**known, "manifests": manifests, "clock": Clock(**fields["clock"])})


@dataclass(frozen=True)
class Commit:
    """What the last file of a shard says."""

    shard: int
    made_with: str  # seal of the header
    tokenizer_hash: str
    vocab_hash: str
    clock: dict[str, Any]
    cuts_in: int
    cuts_out: int
    skipped: list[list[str]]  # cut id, reason, where and what
    num_tokens: int
    seconds: float  # of the audio that became tokens
    files: dict[str, list[Any]] = field(default_factory=dict)  # name in the Shar folder -> bytes, sha256


class DamagedShard(ValueError):
    """A shard that is not there, or is not what was written."""


@dataclass(frozen=True)
class TokenFolder:
    """A folder of tokens that has been begun at least.

    Args:
        path: the folder.
        header: what it is made with.
    """

    path: Path
    header: Header

    @staticmethod
    def find(path: str | Path) -> "TokenFolder | None":
        """The folder of tokens at `path`, or whose Shar folder that is; None where there is none.

        Raises:
            ValueError: the folder's header is damaged or of another version.
        """
        path = Path(path)
        for root in (path, path.parent) if path.name == SHAR else (path,):
            if (root / HEADER).is_file():
                return TokenFolder(root, Header.from_dict(read_sealed(root / HEADER)))
        return None

    @property
    def shar(self) -> Path:
        """Where the shards' own files lie, and nothing else."""
        return self.path / SHAR

    @cached_property
    def seal(self) -> str:
        """Of the header."""
        return seal_of(self.header.to_dict())

    def cuts_path(self, shard: int) -> Path:
        """Manifest of a shard."""
        return self.shar / f"cuts.{shard:06d}.jsonl.gz"

    def tokens_path(self, shard: int) -> Path:
        """Tokens of a shard."""
        return self.shar / f"{FIELD}.{shard:06d}.tar"

    def commit_path(self, shard: int) -> Path:
        """What makes a shard exist."""
        return self.path / COMMITS / f"{shard:06d}.json"

    def commit(self, shard: int) -> Commit:
        """The commit of a shard.

        Raises:
            DamagedShard: there is none, or it is damaged or of another making.
        """
        path = self.commit_path(shard)
        try:
            made = Commit(**read_sealed(path))
        except FileNotFoundError:
            raise DamagedShard(f"{path} is not there: shard {shard} was not finished; {_AGAIN}") from None
        except (ValueError, TypeError) as error:
            raise DamagedShard(f"{error}; {_AGAIN}") from None
        if made.made_with != self.seal or made.shard != shard:
            raise DamagedShard(
                f"{path} belongs to shard {made.shard} of a folder with the settings {made.made_with[:16]} and tokenizer "
                f"{made.tokenizer_hash}, this is shard {shard} of {self.seal[:16]} and {self.header.tokenizer_hash}; {_AGAIN}"
            )
        return made

    def verify(self, shard: int) -> Commit:
        """The commit of a shard, all of whose files are, to the byte, what was written.

        Raises:
            DamagedShard: they are not; the message says which.
        """
        made = self.commit(shard)
        for name, wanted in made.files.items():
            path = self.shar / name
            found = size_and_sum(path)
            if found != wanted:
                problem = f"has {found[0]} bytes that are not the {wanted[0]} written" if found else "is not there"
                raise DamagedShard(f"{path} {problem}; {_AGAIN}")
        return made

    def check(self, manifest: Path) -> None:
        """`verify`, by the name of the shard's manifest: what a reader calls before it reads a shard."""
        named = _CUTS_NAME.fullmatch(manifest.name)
        assert named is not None
        self.verify(int(named[1]))

    def manifests(self) -> list[Path]:
        """Manifests of all shards, in order.

        Raises:
            ValueError: shards are missing, or there are some that do not belong.
        """
        missing = self.missing()
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
            raise ValueError(
                f"{self.path} lacks {len(missing)} of {self.header.num_shards} shards ({shown}); {_AGAIN}, or wait for the others"
            )
        return [self.cuts_path(shard) for shard in range(self.header.num_shards)]

    def missing(self) -> list[int]:
        """Shards without a commit."""
        folder = self.path / COMMITS
        names = [_COMMIT_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        there = {int(name[1]) for name in names if name}
        return [shard for shard in range(self.header.num_shards) if shard not in there]

    def require(
        self, vocab: Vocab | None = None, tokenizer_hash: str | None = None, clock: Clock | None = None
    ) -> None:
        """Refuse tokens that mean something else than the reader takes them for.

        Args:
            vocab: whose speech half these tokens must be: as many codes, and of the same tokenizer where it names one.
            tokenizer_hash: of the tokenizer that must have made them.
            clock: whose token rate they must have.

        Raises:
            OtherVocab: naming both sides.
        """
        header = self.header
        own = header.vocab
        pairs: list[tuple[str, object, object]] = []
        if vocab is not None:
            pairs.append(("codes", header.num_codes, vocab.num_speech))
            if vocab.speech_tokenizer:
                pairs.append(("vocabulary's tokenizer", own.speech_tokenizer, vocab.speech_tokenizer))
        if tokenizer_hash is not None:
            pairs.append(("tokenizer", header.tokenizer_hash, tokenizer_hash))
        if clock is not None:
            pairs.append(("tokens per second", header.clock.token_rate_hz, clock.token_rate_hz))
        differing = [f"{what} {ours}, wanted {theirs}" for what, ours, theirs in pairs if ours != theirs]
        if differing:
            raise OtherVocab(
                f"the tokens in {self.path} are not those that are wanted: {'; '.join(differing)}. The same id would mean "
                f"different things: tokenize the corpus again with that tokenizer, or name the folder that was"
            )

    def check_summary(self) -> None:
        """Compare the summary, and the list of what was skipped, with their checksums.

        Raises:
            ValueError: they are missing or damaged.
        """
        try:
            summary = read_sealed(self.path / SUMMARY)
        except FileNotFoundError:
            raise ValueError(f"{self.path} has no {SUMMARY}: it is not finished; {_AGAIN}") from None
        if size_and_sum(self.path / SKIPPED) != summary["files"][SKIPPED] or summary["made_with"] != self.seal:
            raise ValueError(f"{self.path / SKIPPED} or {SUMMARY} is not what was written; {_AGAIN}")

    def commits(self) -> Iterator[Commit]:
        """Commits of all shards, in order."""
        return map(self.commit, range(self.header.num_shards))


_AGAIN = "run the command that made the folder again"


@dataclass
class Totals:
    """Commits added up. Every cut is in it once: `cuts_in` = `cuts_out` + all of `skipped`."""

    shards: int = 0
    cuts_in: int = 0
    cuts_out: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, commit: Commit) -> None:
        """Count a shard in."""
        self.shards += 1
        self.cuts_in += commit.cuts_in
        self.cuts_out += commit.cuts_out
        self.num_tokens += commit.num_tokens
        self.seconds += commit.seconds
        self.skipped.update(reason for _, reason, _ in commit.skipped)

    @property
    def account(self) -> Account:
        """Of the cuts."""
        return Account("cuts", self.cuts_in, self.cuts_out, self.skipped)

    def __str__(self) -> str:
        return f"{self.account}; {self.num_tokens} tokens of {self.seconds / 3600:.3f} h in {self.shards} shards"


def size_and_sum(path: Path) -> list[Any]:
    """Bytes and sha256 of a file; empty where there is none."""
    data = path.read_bytes() if path.is_file() else None
    return [] if data is None else [len(data), hashlib.sha256(data).hexdigest()]


def start_folder(path: str | Path, header: Header) -> TokenFolder:
    """The folder of tokens at `path`, begun where there is none.

    Raises:
        ValueError: it was begun with other manifests, another tokenizer or other settings.
    """
    path = Path(path)
    # Names that begin with a dot are other ranks', which write the same header just now.
    names = [p.name for p in path.iterdir() if not p.name.startswith(".")] if path.exists() else []
    if names and HEADER not in names:
        raise ValueError(f"{path} is not empty and has no {HEADER}; choose another `out`, nothing is overwritten")
    if not names:
        write_sealed(path / HEADER, header.to_dict())
    found = TokenFolder.find(path)
    assert found is not None
    require_same(path, found.header.to_dict(), header.to_dict())
    return found
