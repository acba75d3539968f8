"""The seed recogniser is small, and gets more than half of the words of sentences that it never heard."""

from pathlib import Path

import pytest
import torch
from lhotse import load_manifest_lazy
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


def test_the_seed_recogniser_gets_half_of_the_words_of_sentences_it_never_heard():
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
    assert result["wer"] < 50  # the weights make 44.3 %


def test_generated_prompts_hold_no_heldout_transcript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from make_prompt_texts import main

    train, heldout, out = str(CORPUS / "train.jsonl.gz"), str(CORPUS / "heldout.jsonl.gz"), tmp_path / "prompts.txt"
    monkeypatch.setattr("sys.argv", ["make", str(out), "--cuts", train, "--never", heldout, "--count", "300"])
    main()
    normalise = AutoTokenizer.from_pretrained(NANO).backend_tokenizer.normalizer.normalize_str
    prompts = [f" {normalise(line)} " for line in out.read_text().splitlines()]
    assert len(prompts) == len(set(prompts)) == 300
    held = [normalise(cut.supervisions[0].text) for cut in load_manifest_lazy(CORPUS / "heldout.jsonl.gz")]
    assert not [(text, prompt) for text in held for prompt in prompts if f" {text} " in prompt]
