"""Nothing that a text says can become a control token."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from speechlm.text_tokenizer import TextTokenizer
from tests.text_corpus import make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_plain_text_has_the_ids_that_the_tokenizer_gives(folder: Path):
    tokenizer, reference = TextTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["the quick brown fox", "", " speech, 123 and 我 text\n\n"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids.tolist() == reference.encode(text, add_special_tokens=False) and ids.dtype == np.int64


@pytest.mark.parametrize(
    "text",
    [
        "<|endoftext|>", "a<|user|><|user|>b", "<think>x</think>", "<|end<|endoftext|>oftext|>", "<<|user|>",
        "<|begin_of_audio|><|audio_5|>", "\0", "שלום 👩‍👩‍👧",
    ],
)  # fmt: skip
def test_names_of_special_tokens_in_a_text_are_letters(folder: Path, text: str):
    tokenizer = TextTokenizer(folder)
    ids = tokenizer.encode([text])[0]
    assert not set(ids.tolist()) & set(tokenizer.specials.values())
    assert AutoTokenizer.from_pretrained(folder).decode(ids) == text


@given(
    st.lists(st.sampled_from(["<|endoftext|>", "<|user|>", "<think>", "<", "|", ">", "a", " ", "<|", "|>"])).map(
        "".join
    )
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_names_are_put_together(folder: Path, text: str):
    tokenizer = TextTokenizer(folder)
    ids = tokenizer.encode([text])[0]
    assert not set(ids.tolist()) & set(tokenizer.specials.values())
    assert tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False) == text


def test_the_names_of_a_whole_codebook_cost_nothing(folder: Path, tmp_path: Path):
    extended = AutoTokenizer.from_pretrained(folder)
    names = [f"<|audio_{code}|>" for code in range(16_384)]
    extended.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    extended.save_pretrained(tmp_path)
    plain, many = TextTokenizer(folder), TextTokenizer(tmp_path)
    texts = ["the quick < brown <| fox " * 3, "see <|audio_16384|> here"] * 100
    for text, ids in zip(texts, many.encode(texts), strict=True):
        assert ids.tolist() == plain.encode([text])[0].tolist()
    assert not set(many.encode(["<|audio_16383|>"])[0].tolist()) & set(many.specials.values())

    def seconds(tokenizer: TextTokenizer) -> float:
        begun = time.process_time()
        for text in texts:
            tokenizer.encode([text])
        return time.process_time() - begun

    assert min(seconds(many) for _ in range(5)) < 2 * min(seconds(plain) for _ in range(5))


def test_names_that_overlap_are_all_cut(tmp_path: Path):
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2, "ab": 3, "ba": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_tokens([AddedToken("aba", normalized=False), AddedToken("bb", normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    assert TextTokenizer(tmp_path).encode(["ababbbaba"])[0].tolist() == [1, 2, 1, 2, 2, 2, 1, 2, 1]


def test_lone_surrogates_become_the_replacement_character(folder: Path):
    tokenizer = TextTokenizer(folder)
    assert tokenizer.backend.decode(tokenizer.encode(["a\ud800b"])[0].tolist()) == "a\ufffdb"


def test_a_name_that_only_normalisation_makes_is_refused(tmp_path: Path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([AddedToken("<think>", normalized=True)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives the special token 2"):
        TextTokenizer(tmp_path).encode(["a ＜think＞"])


def test_a_word_of_a_million_letters_is_encoded(folder: Path):
    assert len(TextTokenizer(folder).encode(["x" * 1_000_000])[0]) > 1000


def test_a_tokenizer_is_known_by_what_it_does(folder: Path, tmp_path: Path):
    one, same = TextTokenizer(folder), TextTokenizer(make_tokenizer(tmp_path / "same"))
    other = TextTokenizer(make_tokenizer(tmp_path / "other", ["something else entirely"] * 3))
    assert one.fingerprint == same.fingerprint != other.fingerprint and len(one.fingerprint) == 16
    assert one.end == one.specials["<|endoftext|>"] and one.size == max(one.specials.values()) + 1
