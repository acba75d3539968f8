"""A folder of tokens is, to the bit, what was written, and says what it was made with."""

import json
import random
import shutil
from pathlib import Path

import pytest

from datamodules.cuts import read_cuts
from datamodules.sealed import read_sealed, write_sealed
from datamodules.token_cuts import read_token_cuts
from datamodules.token_folder import TokenFolder
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab
from tests.token_corpus import NUM_CUTS, content, corpus, tokenized


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return tokenized(folder, corpus(folder / "corpus"))


def test_every_flipped_bit_of_fifty_random_ones_is_found(made: Path):
    files = sorted(
        name for name, data in content(made).items() if data and Path(name).name not in ("card.json", "README.md")
    )  # nothing was skipped: skipped.jsonl has no bit
    chosen, hit = random.Random(0), set()
    for _ in range(50):
        path = made / chosen.choice(files)
        data = path.read_bytes()
        place = chosen.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"damaged|written"):
            list(read_token_cuts(made))
        path.write_bytes(data)
        hit.add(path.name.partition(".")[0])
    assert hit >= {"cuts", "speech_tokens", "tokenize", "summary"}
    assert len(list(read_token_cuts(made))) == NUM_CUTS


def test_every_single_bit_of_a_sealed_file_counts(tmp_path: Path):
    path = tmp_path / "a.json"
    write_sealed(path, {"name": "ä", "numbers": [1, 2.5, None, True], "deep": {"empty": {}}})
    data = path.read_bytes()
    assert read_sealed(path) == {"name": "ä", "numbers": [1, 2.5, None, True], "deep": {"empty": {}}}
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            read_sealed(path)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"sha256": 3}', "\xff", "[" * 100_000])
def test_what_was_never_sealed_is_refused(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="damaged"):
        read_sealed(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["shar/speech_tokens.000002.tar", "shar/cuts.000002.jsonl.gz"])
def test_a_lost_file_is_named(made: Path, tmp_path: Path, name: str):
    out = shutil.copytree(made, tmp_path / "out")
    (out / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is not there"):
        list(read_token_cuts(out))


def test_a_shard_without_a_commit_does_not_exist(made: Path, tmp_path: Path):
    out = shutil.copytree(made, tmp_path / "out")
    (out / "commits" / "000003.json").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 5 shards \(3\)"):
        read_token_cuts(out)
    with pytest.raises(ValueError, match=r"lacks 1 of 5 shards \(3\)"):
        read_cuts(out)


def test_shards_that_change_places_are_found(made: Path, tmp_path: Path):
    out = shutil.copytree(made, tmp_path / "out")
    one, other = out / "commits" / "000000.json", out / "commits" / "000001.json"
    one.rename(tmp_path / "swap")
    other.rename(one)
    (tmp_path / "swap").rename(other)
    with pytest.raises(ValueError, match="belongs to shard 1"):
        list(read_token_cuts(out))


def test_a_shard_of_another_making_is_found(made: Path, tmp_path: Path):
    other = tokenized(tmp_path, corpus(tmp_path / "corpus"))
    for path in ("commits/000001.json", "shar/cuts.000001.jsonl.gz", "shar/speech_tokens.000001.tar"):
        shutil.copy(made / path, other / path)
    with pytest.raises(ValueError, match="belongs to shard 1 of a folder with the settings"):
        list(read_token_cuts(other))


def test_every_way_to_read_the_folder_verifies_it(made: Path, tmp_path: Path):
    out = shutil.copytree(made, tmp_path / "out")
    tar = out / "shar" / "speech_tokens.000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    for path in (out, out / "shar"):
        with pytest.raises(ValueError, match="not the"):
            list(read_cuts(path))


@pytest.mark.parametrize(
    ("wanted", "both"),
    [
        ({"vocab": Vocab(0, 128, ())}, "codes 64, wanted 128"),
        ({"vocab": Vocab(100, 64, speech_tokenizer="feedc0de")}, "tokenizer 710b2fea58004118, wanted feedc0de"),
        ({"tokenizer_hash": "feedc0de"}, "tokenizer 710b2fea58004118, wanted feedc0de"),
        ({"clock": Clock(token_rate_hz=25.0)}, "tokens per second 12.5, wanted 25.0"),
    ],
)
def test_tokens_that_mean_something_else_are_refused_with_both_sides(made: Path, wanted: dict, both: str):
    with pytest.raises(ValueError, match=both):
        read_token_cuts(made, **wanted)


def test_tokens_that_are_wanted_are_read(made: Path):
    folder = TokenFolder.find(made)
    own = Vocab(100, 64, speech_tokenizer=folder.header.tokenizer_hash)
    cuts = read_token_cuts(made, own, folder.header.tokenizer_hash, Clock(22_050, 12.5, 256))
    assert len(list(cuts)) == NUM_CUTS
    assert folder.header.vocab.hash == json.loads((made / "tokenize.json").read_text())["vocab_hash"]


def test_a_folder_without_tokens_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no folder of tokens: it has no tokenize\.json"):
        read_token_cuts(tmp_path)
