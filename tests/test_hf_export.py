"""A folder for everybody else has the trained model's logits and a name for every id."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from speechlm.nn.hf_export import extended_tokenizer, generation_config, save_hf, verify
from speechlm.stages.speech_lm import SpeechLM
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.vocab import Vocab
from tests.text_corpus import make_tokenizer
from tests.tiny_lm import CONFIGS, tiny_stage

WHISPER = str(Path(__file__).parents[1] / "assets" / "whisper-nano-en")
CONTROLS = ("<|begin_of_audio|>", "<|end_of_audio|>", "<|assistant|>", "<|pad|>")
VOCAB = Vocab(num_text=328, num_speech=32, controls=CONTROLS)


@pytest.fixture
def text_tokenizer(tmp_path: Path) -> str:
    """328 ids, of which <|endoftext|> is 0 and <|user|> 1."""
    return str(make_tokenizer(tmp_path / "text"))


def trained(tmp_path: Path, kind: str = "qwen2", tied: bool = True, vocab: Vocab = VOCAB, **changes: Any) -> SpeechLM:
    return tiny_stage(tmp_path, kind, tied, shape={"vocab_size": 400}, vocab=vocab, **changes).eval()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_folder_s_logits_are_the_trained_ones(kind: str, tied: bool, tmp_path: Path, text_tokenizer: str):
    stage = trained(tmp_path, kind, tied)
    ids = torch.arange(len(VOCAB))[None]
    before = stage.lm(ids).logits
    save_hf(stage.lm, VOCAB, text_tokenizer, tmp_path / "out", torch.float32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again).__module__.startswith("transformers.models.")
    torch.testing.assert_close(again(ids).logits, before, rtol=0, atol=0)
    assert verify(tmp_path / "out", stage.lm, VOCAB).logit_difference == 0.0


def test_verification_sees_one_changed_weight(tmp_path: Path, text_tokenizer: str):
    stage = trained(tmp_path, tied=False)
    save_hf(stage.lm, VOCAB, text_tokenizer, tmp_path / "out", torch.bfloat16)
    assert verify(tmp_path / "out", stage.lm, VOCAB).logit_difference == 0.0
    with torch.no_grad():
        stage.lm.lm_head.weight[len(VOCAB) - 1, 0] += 0.5
    assert verify(tmp_path / "out", stage.lm, VOCAB).logit_difference > 0.01
    with pytest.raises(ValueError, match="was made with vocabulary"):
        verify(tmp_path / "out", stage.lm, Vocab(num_text=329, num_speech=31, controls=CONTROLS))


def test_every_id_has_a_name_and_the_name_the_id(tmp_path: Path, text_tokenizer: str):
    stage = trained(tmp_path)
    save_hf(stage.lm, VOCAB, text_tokenizer, tmp_path / "out", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == len(VOCAB)
    names = [VOCAB.speech_name(code) for code in range(32)]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(VOCAB.speech_offset, len(VOCAB)))
    assert [tokenizer.convert_tokens_to_ids(name) for name in CONTROLS] == [VOCAB.control(name) for name in CONTROLS]
    text = "the fox<|begin_of_audio|><|audio_31|><|audio_0|><|end_of_audio|>"
    ids = tokenizer(text).input_ids
    assert ids[-4:] == [328, VOCAB.speech_offset + 31, VOCAB.speech_offset, 329]
    assert tokenizer.decode(ids) == text and tokenizer.decode(ids, skip_special_tokens=True) == "the fox"
    assert ids[:-4] == AutoTokenizer.from_pretrained(text_tokenizer)("the fox").input_ids


@pytest.mark.parametrize("kind", CONFIGS)
def test_text_gets_the_ids_of_training_whatever_class_transformers_has_for_the_model(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Whisper's lower-casing tokenizer beside a model of Qwen2's kind, whose own class knows nothing of it."""
    plain = TextTokenizer(WHISPER)
    vocab = Vocab(num_text=plain.size, num_speech=32, controls=CONTROLS)
    stage = tiny_stage(tmp_path, kind, True, shape={"vocab_size": plain.size}, vocab=vocab).eval()
    save_hf(stage.lm, vocab, WHISPER, tmp_path / "out", torch.float32)
    texts = ["Zero", "please hold", "Agent logged in. Press 2.", "naïve café"]
    again = TextTokenizer(tmp_path / "out").encode(texts)
    assert [one.tolist() for one in again] == [one.tolist() for one in plain.encode(texts)]
    warned = "AutoTokenizer rebuilds" in caplog.text
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")(texts, add_special_tokens=False).input_ids
    assert warned == (theirs != [one.tolist() for one in again])


def test_a_tokenizer_that_is_read_back_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = TextTokenizer(WHISPER)
    vocab = Vocab(num_text=plain.size, num_speech=32, controls=CONTROLS)
    stage = tiny_stage(tmp_path, "qwen2", True, shape={"vocab_size": plain.size}, vocab=vocab).eval()
    monkeypatch.setattr("speechlm.hub_tokenizer.WHOLE", ())  # as `AutoTokenizer` alone would
    with pytest.raises(ValueError, match="not read back as it was written"):
        save_hf(stage.lm, vocab, WHISPER, tmp_path / "out", torch.float32)
    assert not (tmp_path / "out").exists()


def test_a_chat_is_written_like_the_prompts_of_pairs_and_ends_with_the_user_s_turn(tmp_path: Path, text_tokenizer: str):
    save_hf(trained(tmp_path).lm, VOCAB, text_tokenizer, tmp_path / "out", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "the dog<|begin_of_audio|><|audio_3|><|end_of_audio|>"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids[0] == 1 and ids[-4:] == [328, VOCAB.speech_offset + 3, 329, VOCAB.control("<|assistant|>")]
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.eos_token_id == [0, 1] and config.pad_token_id == VOCAB.control("<|pad|>")


def test_ids_without_a_name_get_one_and_a_name_that_text_has_gets_another(text_tokenizer: str):
    vocab = Vocab(num_text=340, num_speech=4, controls=("<|user|>", "<|pad|>"))
    tokenizer = extended_tokenizer(text_tokenizer, vocab)
    chat = [{"role": "user", "content": "<|audio_1|>"}]
    assert tokenizer.apply_chat_template(chat)["input_ids"] == [340, 343]
    assert generation_config(tokenizer, vocab).eos_token_id == [0, 340]
    assert tokenizer.convert_ids_to_tokens([1, 328, 339, 340, 341, 342]) == [
        "<|user|>",
        "<|reserved_328|>",
        "<|reserved_339|>",
        "<|control_user|>",
        "<|pad|>",
        "<|audio_0|>",
    ]


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path, text_tokenizer: str):
    small = Vocab(num_text=327, num_speech=4)
    with pytest.raises(ValueError, match="has 328 ids, the vocabulary 327 for text"):
        save_hf(trained(tmp_path).lm, small, text_tokenizer, tmp_path / "out", torch.float32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(ValueError, match="is already there"):
        save_hf(trained(tmp_path).lm, VOCAB, text_tokenizer, tmp_path / "full", torch.float32)
    assert not (tmp_path / "out").exists() and (tmp_path / "full" / "precious").exists()
    assert not list(tmp_path.glob(".*.part"))
