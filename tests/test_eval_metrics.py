"""Error rates, token edits and grades of sound, against those who are not us."""

import random
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torchmetrics.functional.text as text_metrics
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from datamodules.cuts import read_cuts
from datamodules.recordings import load_recording
from speechlm.evals.error_rates import error_metrics
from speechlm.evals.parts import MissingPart
from speechlm.evals.quality import GRADES, grades, load_quality, quality_metrics
from speechlm.tokens.clock import Clock

WORDS = ["one", "two", "three", "four", "red", "blue"]
ROOT = Path(__file__).parents[1]


def transcripts(seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(20)]
    hypotheses = [" ".join(w for w in line.split() if rng.random() > 0.2) for line in references]
    return references, [" ".join([*line.split(), rng.choice(WORDS)][: rng.randint(0, 14)]) for line in hypotheses]


@pytest.mark.parametrize("seed", range(3))
def test_ours_jiwers_and_torchmetrics_error_rates_agree(seed: int) -> None:
    references, hypotheses = transcripts(seed)
    (ours,) = error_metrics(references, hypotheses, ["de"] * 20)  # German: no spelling is changed
    expected = 100 * jiwer.wer(references, hypotheses)
    theirs = 100 * float(text_metrics.word_error_rate(hypotheses, references))
    assert ours.value == pytest.approx(expected) == pytest.approx(theirs, rel=1e-6)
    assert ours.name == "WER de" and ours.count == 20


def test_chinese_is_counted_by_character_as_torchmetrics_does() -> None:
    references, hypotheses = ["今天天气很好", "我们走吧"], ["今天天很好", "我们走把"]
    (ours,) = error_metrics(references, hypotheses, ["zh", "zh"])
    assert ours.name == "CER zh"
    assert ours.value == pytest.approx(100 * float(text_metrics.char_error_rate(hypotheses, references)))


def test_every_language_and_part_has_its_own_rate() -> None:
    found = error_metrics(["a b", "c", "走"], ["a x", "c", "跑"], ["en", "en", "zh"], groups=["clean", "other", ""])
    assert {m.name: m.value for m in found} == {"WER en clean": 50.0, "WER en other": 0.0, "CER zh": 100.0}


class Grades:
    """Parts that have grades alone."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}

    def quality(self, name: str) -> Any:
        return self.loaded.setdefault(name, load_quality(name))


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    cuts = list(read_cuts(ROOT / "assets" / "asterisk-en" / "heldout.jsonl.gz"))
    return load_recording(max(cuts, key=lambda cut: cut.duration), Clock())[: 4 * 16_000]


@pytest.mark.parametrize("name", ["stoi", "pesq", "visqol", "dnsmos"])
def test_a_grade_is_best_for_the_recording_itself_and_worse_with_noise(name: str, speech: np.ndarray) -> None:
    module = {"stoi": "pystoi", "pesq": "pesq", "visqol": "visqol", "dnsmos": "speechmos.dnsmos"}[name]
    pytest.importorskip(module)
    noise = np.random.default_rng(0).normal(size=len(speech)).astype(np.float32)
    parts: Any = Grades()
    clean, noisy = (grades([name], audio, 16_000, speech, parts)[name] for audio in (speech, speech + 0.1 * noise))
    assert clean is not None and noisy is not None and clean > noisy + 0.05
    if name != "dnsmos":
        assert clean == pytest.approx({"stoi": 1.0, "pesq": 4.64, "visqol": 5.0}[name], abs=0.1)


def test_every_grade_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("speechlm.evals.quality.importlib.import_module", missing)
    for name in GRADES:
        with pytest.raises(MissingPart, match=r"speechlm\[eval\]"):
            load_quality(name)
    with pytest.raises(ValueError, match="there are stoi"):
        load_quality("loudness")


def test_sound_that_can_not_be_graded_is_counted_apart() -> None:
    found = {m.name: m for m in quality_metrics([{"quality": {"pesq": 2.0}}, {"quality": {"pesq": None}}])}
    assert found["pesq"].value == 2.0 and found["pesq"].count == 1
    assert found["pesq: not graded"].value == 50.0 and found["pesq: not graded"].count == 2


def test_speaker_similarity_is_one_with_oneself(tmp_path: Path, speech: np.ndarray) -> None:
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_kernel=(10, 8), conv_stride=(160, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, tdnn_dim=(8, 8), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=8,
        do_stable_layer_norm=False,
    )  # fmt: skip
    WavLMForXVector(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    quality = load_quality("speaker_similarity", str(tmp_path))
    assert quality.grade(speech, speech) == pytest.approx(1.0, abs=1e-5)
    assert quality.version.startswith("transformers ")
