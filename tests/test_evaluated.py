"""Real parts: a tokenizer's run and an exported language model, found by what is in their folders, through the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from speechlm import evaluate, fit
from speechlm.engines.base import Prompt, Sampling
from speechlm.evals.items import write_items
from speechlm.evals.language_model import EvaluatedLM, SpeakingLM
from speechlm.evals.parts import MissingPart, Piece
from speechlm.evals.task import Place
from speechlm.evals.tokenizer import TokenizerTask
from speechlm.evaluated import Judges, ModelParts, RunTokenizer, roles_of
from speechlm.nn.causal_lm import NewRows, extend_vocabulary
from speechlm.nn.hf_export import save_hf
from speechlm.tokens.templates import Template
from speechlm.tokens.vocab import Vocab

ROOT = Path(__file__).parents[1]
WHISPER = str(ROOT / "assets" / "whisper-nano-en")


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of training."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = ["--config", "configs/speech_tokenizer/tiny/12.5hz.yaml", "--runs_dir", str(folder)]
        fit.main([*config, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"])
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model with as many codes as the tiny tokenizer, as a Hugging Face folder."""
    vocab = Vocab(len(AutoTokenizer.from_pretrained(WHISPER)), 64)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab.num_text, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    lm = Qwen2ForCausalLM(config)
    extend_vocabulary(lm, vocab.num_text, len(vocab), NewRows())
    folder = tmp_path_factory.mktemp("models") / "lm"
    save_hf(lm, vocab, WHISPER, folder, torch.float32)
    return folder


def parts(**folders: Path) -> ModelParts:
    given = {role: str(folder) for role, folder in folders.items()}
    return ModelParts(given, Judges({"en": WHISPER}), torch.device("cpu"), Sampling(temperature=0.0))


def test_folders_are_known_by_what_is_in_them(tokenizer: Path, exported: Path, tmp_path: Path) -> None:
    found = roles_of([str(tokenizer), str(exported), f"text_to_token={exported}"])
    assert found == {"speech_tokenizer": str(tokenizer), "lm": str(exported), "text_to_token": str(exported)}
    with pytest.raises(ValueError, match="two parts lm"):
        roles_of([str(exported), str(exported)])
    with pytest.raises(ValueError, match="neither a run"):
        roles_of([str(tmp_path)])
    with pytest.raises(ValueError, match="has the parts"):
        roles_of([f"listener={exported}"])


def test_a_part_that_was_not_given_is_asked_for_by_its_flag(exported: Path) -> None:
    with pytest.raises(MissingPart, match="--model flow_decoder=FOLDER"):
        _ = parts(lm=exported).decoder
    with pytest.raises(MissingPart, match=r"judges\.asr\.zh"):
        parts(lm=exported).listener("zh")
    assert parts(lm=exported).hash_of("codes") == "as given"


def test_a_tokenizer_and_a_language_model_through_the_command(tokenizer: Path, exported: Path, tmp_path: Path) -> None:
    audio = sorted((ROOT / "assets" / "asterisk-en" / "audio").glob("*.ogg"))[:6]
    said = [{"text": f"word number {n}", "audio": str(path)} for n, path in enumerate(audio)]
    pairs = [
        {"id": str(n), "positive": a, "negative": b} for n, (a, b) in enumerate(zip(said[:3], said[3:], strict=True))
    ]
    speech = [{"id": str(n), "speech": one, "language": "en", "speaker": f"{n % 2}"} for n, one in enumerate(said)]
    questions = [{"id": str(n), "question": one, "answers": ["it"]} for n, one in enumerate(said[:2])]
    for name, items in (("pairs", pairs), ("speech", speech), ("questions", questions)):
        write_items(tmp_path / f"{name}.jsonl", items)
    task: dict[str, Any] = {
        "swuggy": ("swuggy.SWuggy", {"items": str(tmp_path / "pairs.jsonl")}),
        "tokenizer": ("tokenizer.TokenizerTask", {"items": str(tmp_path / "speech.jsonl"), "shard": 4}),
        "asr": ("base_asr.BaseASR", {"items": str(tmp_path / "speech.jsonl"), "max_text": 8}),
        "qa": ("spoken_qa.SpokenQA", {"items": str(tmp_path / "questions.jsonl"), "max_text": 4, "max_speech": 4}),
    }
    config = {
        "name": "real",
        "out": str(tmp_path / "out"),
        "judges": {"asr": {"en": WHISPER}},
        "tasks": {n: {"class_path": f"speechlm.evals.{c}", "init_args": a} for n, (c, a) in task.items()},
    }
    (tmp_path / "suite.yaml").write_text(json.dumps(config))
    evaluate.main(["--config", str(tmp_path / "suite.yaml"), "--model", str(tokenizer), str(exported)])
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    tasks = content["tasks"]
    assert set(content["models"]) == {"speech_tokenizer", "lm"}
    assert tasks["qa"]["skipped"].startswith("it needs a flow_decoder")
    for name in ("swuggy", "tokenizer", "asr"):
        assert tasks[name]["metrics"] and not tasks[name]["problems"], name
    bits = next(m["value"] for m in tasks["tokenizer"]["metrics"] if m["name"] == "bitrate")
    assert bits == 12.5 * 6


def test_what_a_language_model_says_is_of_the_kind_that_was_asked(exported: Path) -> None:
    lm = parts(lm=exported).lm
    prompt = lm.ids_of([Piece("control", "<|user|>"), Piece("text", lm.encode("hello")), Piece("speech", [0, 63])])
    assert prompt[-2:] == [lm.vocab.speech_offset, lm.vocab.speech_offset + 63]
    assert (
        lm.decode(lm.encode("hello there")).strip() == "hello there"
    )  # this tokenizer puts a blank before the first word
    (said,) = lm.say([prompt], 5)
    assert said is None or all(0 <= code < 64 for code in said)
    (text,), (english,) = lm.write([prompt], 12), lm.write([prompt], 12, english=True)
    assert isinstance(text, str) and all(ord(c) < 0x250 or 0x2010 <= ord(c) <= 0x20BF for c in english)
    reply, codes = lm.reply([prompt], 6)[0]
    assert isinstance(reply, str) and all(0 <= code < 64 for code in codes)
    assert lm.write([], 3) == []
    with pytest.raises(ValueError, match="neither a control token"):
        lm.ids_of([Piece("control", "<|nobody|>")])


def test_a_text_to_token_model_speaks_within_its_checks(exported: Path) -> None:
    made = SpeakingLM(parts(lm=exported).lm).speak(["two words", "3 more words"], ["en", "en"])
    assert len(made) == 2 and all(codes is None or all(0 <= code < 64 for code in codes) for codes in made)


def test_a_text_to_token_model_is_asked_in_the_words_and_voice_of_its_rows(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SpeakingLM(parts(lm=exported).lm)
    asked: list[Prompt] = []

    def generate(engine: Any, prompts: list[Prompt], sampling: Sampling) -> list[Any]:
        asked.extend(prompts)
        return []

    monkeypatch.setattr("speechlm.engines.speaking.HuggingFaceEngine.generate", generate)
    target = "<|begin_of_audio|>{speech}<|end_of_audio|>"
    voiced = Template(target, "<|user|>{voice}:{text}<|assistant|>")
    assert model.speak(["two words"], ["en"], voiced, "ann") == [None]
    vocab, encode = model.lm.vocab, model.lm.encode
    begin, end = vocab.control("<|user|>"), vocab.control("<|assistant|>")
    words = [*encode("ann"), *encode(":"), *encode("two words")]
    assert asked[0].ids == (begin, *words, end, vocab.control("<|begin_of_audio|>"))
    with pytest.raises(ValueError, match=r"no \{voice\}"):
        model.speak(["two words"], ["en"], Template(target, "{text}"), "ann")
    with pytest.raises(ValueError, match="voice"):
        model.speak(["two words"], ["en"], voiced)


def test_the_same_weights_have_the_same_hash_and_other_sampling_another(exported: Path) -> None:
    def hashed(temperature: float) -> str:
        sampling = Sampling(temperature=temperature)
        return ModelParts({"lm": str(exported)}, Judges(), torch.device("cpu"), sampling).hash_of("lm")

    assert hashed(0.0) == hashed(0.0) != hashed(0.5)
    assert isinstance(parts(lm=exported).lm, EvaluatedLM)


def test_a_model_without_a_quantiser_is_measured_by_its_transcripts_and_gives_no_tokens(
    tokenizer: Path, tmp_path: Path
) -> None:
    model = parts(speech_tokenizer=tokenizer)
    stage = model.tokens.stage
    stage.model.encoder.quantizer = None
    bare = RunTokenizer(stage, torch.device("cpu"))
    model.__dict__["tokens"] = bare
    with pytest.raises(MissingPart, match="no quantiser"):
        model.hash_of("codes")
    with pytest.raises(MissingPart, match="no quantiser"):
        bare.tokenize([np.zeros(16_000, np.float32)])
    audio = sorted((ROOT / "assets" / "asterisk-en" / "audio").glob("*.ogg"))[:2]
    items = [
        {"id": p.stem, "speech": {"text": "a word", "audio": str(p)}, "language": "en", "speaker": p.stem}
        for p in audio
    ]
    task = TokenizerTask("items", clip=False)
    records = task.answer("answers", items, [], model, Place(tmp_path, tmp_path))
    assert [metric.name for metric in task.score(items, records, tmp_path).metrics] == ["WER en"]
