"""Text to token: what was learnt is spoken, by the run and by its export, and a corpus is made of it."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datamodules.interleaved import read_interleaved
from speechlm import export, fit, pack, synthesize
from speechlm.batch import RowBatch
from speechlm.engines import speaking
from speechlm.engines.base import Generation, Prompt, Sampling
from speechlm.engines.checks import SpeechChecks
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.load import load_stage
from speechlm.stages.text_to_token import TextToToken
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.clock import Clock
from speechlm.tokens.templates import Template, Writer
from speechlm.tokens.vocab import Vocab

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs/text_to_token/tiny/qwen2.5_1.5b.yaml"
GREEDY = Sampling(temperature=0)
LOOSE = SpeechChecks(min_per_text_id=0.1, max_repeats=50, max_run=50)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        torch.set_num_threads(1)
        arguments = ["--config", str(TINY), "--runs_dir", str(folder), "--trainer.precision", "32-true"]
        fit.main([*arguments, "--trainer.max_steps", "4"])
    return folder / "tiny_text_to_token"


@pytest.fixture(scope="module")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "text_to_token"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        export.main(["--run", str(run_folder), "--out", str(out), "--dtype", "float32", "--verify"])
    return out


def test_a_pair_learnt_by_heart_is_spoken(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    stage = load_stage(run_folder)
    tokenizer = TextTokenizer(stage.text_tokenizer)
    writer = Writer(
        "tts", None, stage.vocab, lambda text: tokenizer.encode([text])[0].tolist(), tokenizer.specials, tokenizer.end
    )
    text, speech = "two small words", [5, 9, 9, 1, 60, 3, 3, 8]
    ids = torch.from_numpy(writer.write(tokenizer.encode([text])[0], np.array(speech)).ids)[None]
    optimizer = torch.optim.AdamW(stage.lm.parameters(), lr=1e-2)
    for _ in range(150):
        logits = stage.lm(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[0, -len(speech) - 3 : -1], ids[0, -len(speech) - 2 :])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    said = stage.speak([text, text], sampling=GREEDY, checks=LOOSE)
    assert [one.tolist() for one in said if one is not None] == [speech, speech]


def test_a_voice_is_asked_for_as_training_rows_name_it(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    stage = load_stage(run_folder)
    packed = yaml.safe_load((ROOT / "configs/pack/text_to_token_voices.yaml").read_text(encoding="utf-8"))
    (template,) = {Template(**source["template"]) for source in packed["sources"].values()}
    made = yaml.safe_load((ROOT / "configs/synthesize/fineweb_edu_voices.yaml").read_text(encoding="utf-8"))
    assert Template(**made["interleave"]["template"]) == template and made["interleave"]["voices"]
    asked: list[Prompt] = []

    class Listening(HuggingFaceEngine):
        def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[Generation]:
            asked.extend(prompts)
            return super().generate(asked, sampling)

    monkeypatch.setattr(speaking, "HuggingFaceEngine", Listening)
    stage.speak(["two small words", "go"], template=template, voice="p225")
    tokenizer = TextTokenizer(stage.text_tokenizer)

    def encode(text: str) -> list[int]:
        return tokenizer.encode([text])[0].tolist()

    writer = Writer("tts", template, stage.vocab, encode, tokenizer.specials, tokenizer.end)
    row = writer.write(np.array(encode("two small words")), np.array([5, 9]), voice="p225").ids.tolist()
    speech = row.index(stage.vocab.speech_offset + 5)
    assert list(asked[0].ids) == row[:speech]
    assert encode("p225") in [row[n : n + len(encode("p225"))] for n in range(speech)]
    with pytest.raises(ValueError, match=r"has \{voice\}, and nothing says who speaks"):
        stage.speak(["go"], template=template)
    with pytest.raises(ValueError, match=r"has no \{voice\}, so nobody can be asked to speak as 'p225'"):
        stage.speak(["go"], voice="p225")


def test_a_run_is_loaded_without_the_rows_it_was_trained_on(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    moved = tmp_path / "moved"
    shutil.copytree(run_folder, moved)
    config = yaml.safe_load((moved / "config.yaml").read_text(encoding="utf-8"))
    rows = config["model"]["init_args"]["vocab"]
    config["model"]["init_args"]["vocab"] = "data/gone/vocab.json"
    (moved / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert load_stage(moved).vocab == Vocab.load(rows)


def test_the_softmax_over_speech_alone_is_that_over_all_without_the_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    whole, part = (tiny_stage(predict) for predict in ("all", "speech"))
    part.load_state_dict(whole.state_dict())
    vocab, draw = whole.vocab, np.random.default_rng(0)
    codes = torch.from_numpy(draw.integers(0, vocab.num_speech, (2, 12))) + vocab.speech_offset
    ids = torch.cat([torch.from_numpy(draw.integers(0, vocab.num_text, (2, 6))), codes], 1)
    mask = ids >= vocab.num_text
    batch = RowBatch(ids, mask, torch.zeros(2, 18, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))
    logits = whole.model.logits(ids, batch.doc_ids, batch.position_ids)[:, 5:-1, vocab.num_text :]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), codes.flatten() - vocab.num_text, reduction="none"
    )
    torch.testing.assert_close(part.score(batch).losses, expected)
    assert not torch.allclose(whole.score(batch).losses, expected)
    rows = len(whole.lm.get_output_embeddings().weight)
    assert part.cost.per_target == pytest.approx(whole.cost.per_target * (rows - vocab.num_text) / rows)
    mask[0, 3] = True
    with pytest.raises(ValueError, match="the rows predict text"):
        part.score(batch)


def tiny_stage(predict: str) -> TextToToken:
    """Of random weights."""
    clock = Clock(16_000, 12.5)
    return TextToToken(clock, Vocab(100, 64), "assets/tiny-lm/qwen2", from_scratch=True, predict=predict)


def test_a_text_longer_than_the_model_reaches_is_not_spoken_and_holds_up_no_other(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    stage = load_stage(run_folder)
    positions = stage.lm.config.max_position_embeddings
    asked: list[Prompt] = []

    class Listening(HuggingFaceEngine):
        def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[Generation]:
            asked.extend(prompts)
            return iter([])

    monkeypatch.setattr(speaking, "HuggingFaceEngine", Listening)
    stage.speak(["word " * positions, "word " * (positions // 8), "go"])
    assert [prompt.key for prompt in asked] == ["1", "2"]
    assert all(len(prompt.ids) + prompt.max_new <= positions for prompt in asked)
    assert stage.speak(["word " * positions]) == [None]


def test_an_export_makes_documents_that_rows_are_packed_from(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    texts = tmp_path / "texts"
    texts.mkdir()
    lines = [
        json.dumps({"id": str(n), "text": "a small text of some words that goes on and on " * 4}) for n in range(12)
    ]
    (texts / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = yaml.safe_load((ROOT / "configs/synthesize/tiny/fineweb_edu.yaml").read_text(encoding="utf-8"))
    config |= {"model": str(exported), "out": str(tmp_path / "out")}
    config["sources"]["en"]["paths"] = [str(texts)]
    file = tmp_path / "synthesize.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    synthesize.main(["--config", str(file)])
    said = capsys.readouterr().out
    assert "12 documents in = 12 out + 0 skipped" in said
    documents = [
        one for shard in sorted((tmp_path / "out/en").glob("*-*.safetensors")) for one in read_interleaved(shard)
    ]
    assert len(documents) == 12
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/en").iterdir()}
    synthesize.main(["--config", str(file)])  # nothing is left to do
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/en").iterdir()} == before
    pack.main([
        "--out", str(tmp_path / "rows"), "--text_tokenizer", str(ROOT / "assets/whisper-nano-en"),
        "--vocab", str(exported / "vocab.json"), "--packing.row_len", "256",
        "--sources", json.dumps({"interleaved": {"kind": "interleaved", "paths": [str(tmp_path / "out/en")]}}),
    ])  # fmt: skip
    assert "12 documents in = 12 out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fineweb_edu.yaml", "fineweb_edu_voices.yaml", "tiny/fineweb_edu.yaml"])
def test_synthesis_configs_parse(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert synthesize.SynthesizeCLI(
        synthesize.build_parser(), ["--config", f"configs/synthesize/{name}"]
    ).config.sources


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--interleave.ratoi", "0.3"], "ratoi"),
        (["--interleave.shard_documents", "0"], "interleave"),
        (["--model", "no/such/folder"], "model"),
        (["--rank", "3", "--world_size", "2"], "rank"),
    ],
)
def test_wrong_arguments_exit_2_and_are_named(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        synthesize.main(["--config", "configs/synthesize/tiny/fineweb_edu.yaml", *arguments])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err
