"""Released weights as parts: put into a bundle and talked to, told apart by what is in their folders."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from speechlm import chat, evaluate, export
from speechlm.engines.base import Sampling
from speechlm.evals.items import write_items
from speechlm.evals.task import Place
from speechlm.evals.tokenizer import TokenizerTask
from speechlm.evaluated import Judges, ModelParts, roles_of
from speechlm.nn.flow_released import ReleasedFlow, write_flow
from speechlm.nn.hift_released import read_hift, write_hift
from speechlm.nn.length_regulator import StretchedTokens
from speechlm.nn.token_encoder import TokenEncoder
from speechlm.nn.token_to_mel import TokenToMel
from speechlm.nn.unet import UNet
from speechlm.released import released_stage
from speechlm.serving.parts import read_stage, write_stage
from speechlm.serving.random_parts import write_random_bundle
from speechlm.tokenizers import Glm4VoiceTokens
from tests.tiny_chat import WHISPER, speech, write_wav
from tests.tiny_flow import CLOCK

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
TOKENIZER = GOLDEN / "glm4voice_tokenizer"
CODES, MELS = 64, 16  # of the golden tokenizer and vocoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the released decoder's: flow.pt and hift.pt, of small networks that fit the golden tokenizer."""
    folder = tmp_path_factory.mktemp("released") / "decoder"
    folder.mkdir()
    torch.manual_seed(0)
    network = TokenToMel(
        CLOCK,
        num_tokens=CODES,
        num_mels=MELS,
        encoder=TokenEncoder(16, 2, 32, 2),
        length_regulator=StretchedTokens(MELS, convolutions=2),
        estimator=UNet(MELS, (16, 16), transformers=1, mid_stages=1, heads=1),
        speaker_width=6,
    )
    write_flow(network, folder / "flow.pt")
    write_hift(read_hift(GOLDEN / "glm4voice_hift" / "hift.safetensors"), folder / "hift.pt")
    return folder


@torch.no_grad()
def test_released_parts_are_stored_as_they_are(decoder: Path, tmp_path: Path):
    sources = {"tokenizer": TOKENIZER, "decoder": decoder, "vocoder": decoder}
    for part, source in sources.items():
        write_stage(source, tmp_path / part, part)
    tokenizer, flow, vocoder = (read_stage(tmp_path / part) for part in sources)
    audio, lens = torch.from_numpy(speech(1.0))[None], torch.tensor([16_000])
    assert torch.equal(tokenizer.tokenize(audio, lens)[0], released_stage(TOKENIZER).tokenize(audio, lens)[0])
    assert all(
        torch.equal(a, b)
        for a, b in zip(flow.used.parameters(), ReleasedFlow(CLOCK, str(decoder / "flow.pt")).parameters(), strict=True)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(vocoder.generator.parameters(), read_hift(decoder / "hift.pt").parameters(), strict=True)
    )


def test_a_bundle_of_released_parts_answers(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_random_bundle(tmp_path / "random", WHISPER)
    question, answer = write_wav(tmp_path / "question.wav", speech(1.0)), tmp_path / "answer.wav"
    out = tmp_path / "bundle"
    parts = ["--tokenizer", str(TOKENIZER), "--decoder", str(decoder), "--vocoder", str(decoder / "hift.pt")]
    chat.main(["bundle", "--out", str(out), "--lm", str(tmp_path / "random" / "lm"), *parts])
    chat.main(["file", str(question), str(answer), "--model", str(out), "--max_new", "120", "--device", "cpu"])
    assert "talk to it with" in capsys.readouterr().out
    assert soundfile.info(answer).samplerate == CLOCK.sample_rate_hz and soundfile.info(answer).frames > 0


def test_what_is_neither_a_run_nor_released_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match="is no run folder"):
        write_stage(tmp_path, tmp_path / "out", "decoder")


def test_the_codebook_of_a_released_tokenizer_goes_out_for_others_to_start_from(tmp_path: Path):
    export.main(["--run", str(TOKENIZER), "--format", "codebook", "--out", str(tmp_path / "out")])
    (written,) = load_file(tmp_path / "out" / "codebook.safetensors").values()
    released = load_file(TOKENIZER / "model.safetensors")["model.encoder.codebook.weight"]
    assert torch.equal(written, released) and len(written) == CODES
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["codebook.safetensors"]


def test_released_parts_are_told_apart_and_evaluated(decoder: Path):
    roles = roles_of([str(TOKENIZER), str(decoder)])
    assert roles == {"speech_tokenizer": str(TOKENIZER), "flow_decoder": str(decoder)}
    parts = ModelParts(roles, Judges(), torch.device("cpu"), Sampling(temperature=0.0))
    (audio,) = parts.decoder.sound([[1, 2, 3, 4, 5]])
    assert len(audio) > 0 and parts.hash_of("decoder")


def test_a_recording_longer_than_the_tokenizer_hears_is_tokenized_in_pieces_and_its_transcript_not_counted(
    tmp_path: Path,
):
    lengths = {"short": 1.0, "long": 2.9}
    said = {name: write_wav(tmp_path / f"{name}.wav", speech(length)) for name, length in lengths.items()}
    parts = ModelParts({"speech_tokenizer": str(TOKENIZER)}, Judges(), torch.device("cpu"), Sampling(temperature=0.0))
    audio = [soundfile.read(path, dtype="float32")[0] for path in said.values()]
    for own, whole in zip(parts.tokens.tokenize(audio), audio, strict=True):
        alone, _ = Glm4VoiceTokens(str(TOKENIZER)).tokenize(torch.from_numpy(whole)[None], torch.tensor([len(whole)]))
        assert own.tolist() == alone[0].tolist()
    items = [{"id": name, "speech": {"text": "hello", "audio": path.name}} for name, path in said.items()]
    write_items(tmp_path / "items.jsonl", items)
    task = TokenizerTask(str(tmp_path / "items.jsonl"))
    good, bad = task.answer("answers", items, [], parts, Place(tmp_path, tmp_path))
    assert good["codes"] and bad["problem"] == "longer than 1.2 s"


def test_recordings_are_evaluated_through_released_parts_at_their_own_rate(decoder: Path, tmp_path: Path):
    items = [
        {
            "id": str(n),
            "language": "en",
            "speech": {"text": "a", "audio": str(write_wav(tmp_path / f"{n}.wav", speech(1.0, seed=n)))},
        }
        for n in range(2)
    ]
    write_items(tmp_path / "items.jsonl", items)
    suite = ROOT / "configs" / "evaluate" / "recordings.yaml"
    tasks = yaml.safe_load(suite.read_text())["tasks"]
    named = [word for task in tasks for word in (f"--tasks.{task}.init_args.items", str(tmp_path / "items.jsonl"))]
    out, asr = tmp_path / "out", json.dumps({"en": str(WHISPER)})
    evaluate.main(
        [
            "--config",
            str(suite),
            "--out",
            str(out),
            "--judges.asr",
            asr,
            *named,
            "--model",
            str(TOKENIZER),
            str(decoder),
        ]
    )
    result = json.loads((out / "evaluation.json").read_text())["tasks"]
    assert result["resynthesis"]["metrics"] and result["tokenizer"]["metrics"]
    assert result["speech"]["skipped"] and "<audio" in (out / "evaluation.html").read_text()
