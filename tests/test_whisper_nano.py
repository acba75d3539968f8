"""The seed recogniser is small, and understands sentences that it never heard."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, WhisperForConditionalGeneration

ASSETS = Path(__file__).resolve().parents[1] / "assets"
CORPUS = ASSETS / "asterisk-en"
NANO = ASSETS / "whisper-nano-en"


@pytest.fixture(autouse=True)
def scripts_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ASSETS))


def test_the_seed_recogniser_is_small_and_in_half_precision():
    assert sum(p.stat().st_size for p in NANO.rglob("*") if p.is_file()) < 10_000_000
    with safe_open(NANO / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118
    model = WhisperForConditionalGeneration.from_pretrained(NANO)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(NANO))
    assert model.generation_config.lang_to_id == {"<|en|>": 509}
    assert model.generation_config.no_timestamps_token_id == 511
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        ("Press 1, or 2 to MUTE.", "press one or two to mute"),
        ("De-activated — it's Mr. Smith's café", "de activated it's mister smith's cafe"),
        ("10, 42, 90, 500 & 1234", "ten forty two ninety five hundred and one two three four"),
        ("'quoted' <b>", "quoted b"),
    ],
)
def test_its_tokenizer_writes_what_is_spoken(raw: str, spoken: str):
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    ids = tokenizer(raw).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:4] == [
        "<|startoftranscript|>",
        "<|en|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == spoken


def test_the_seed_recogniser_understands_a_voice_on_sentences_it_never_heard():
    from train_whisper_nano import Corpus, Recogniser, score

    class Sentences(Corpus):
        def cuts(self):
            return [cut for cut in super().cuts() if 2.0 < cut.duration < 5.0]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whisper = WhisperForConditionalGeneration.from_pretrained(NANO, dtype=torch.float32)
    result = score(
        Recogniser(whisper, AutoTokenizer.from_pretrained(NANO)).eval(), Sentences(CORPUS / "heldout.jsonl.gz")
    )
    torch.set_num_threads(threads)
    assert result["words"] > 50
    assert result["wer"] < 40
