"""The voice session and its parts, without a server."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from speechlm import chat
from speechlm.engines.base import Sampling
from speechlm.engines.id_kinds import IdKinds
from speechlm.engines.streaming import Ask, EngineBusy, Kind, ReplyForm
from speechlm.serving.bundle import read_manifest
from speechlm.serving.history import History, cut_speech
from speechlm.serving.open import require_fit
from speechlm.serving.parts import read_stage
from speechlm.serving.reply import AudioDelta, TextDelta, Wish
from speechlm.serving.resample import Resampler
from speechlm.serving.session import VoiceSession
from speechlm.serving.turns import FRAME, Loudness, Silero, TurnDetector, TurnSettings
from speechlm.serving.voice import Limits, Voice
from speechlm.tokens.chat_templates import Turn
from speechlm.tokens.vocab import Vocab
from tests.tiny_chat import WHISPER, speech, tiny_voice, write_wav

GREEDY = Wish(Sampling(temperature=0.0))


@pytest.fixture(scope="module")
def voice(bundle: Path) -> Iterator[Voice]:
    voice = tiny_voice(bundle)
    yield voice
    voice.close()


def asked(voice: Voice, seed: int = 0, seconds: float = 1.0) -> VoiceSession:
    session = VoiceSession(voice)
    session.hear(speech(seconds, seed=seed))
    session.commit()
    return session


def whole(session: VoiceSession, wish: Wish = GREEDY) -> tuple[Any, str, np.ndarray]:
    reply = session.reply(wish)
    text, samples = "", [np.zeros(0, np.float32)]
    for delta in reply:
        if isinstance(delta, TextDelta):
            text += delta.text
        else:
            samples.append(delta.samples)
    return reply, text, np.concatenate(samples)


# ---- a reply --------------------------------------------------------------------------------------------------------


def test_a_reply_says_its_ids_and_nothing_else(voice: Voice):
    reply, text, audio = whole(asked(voice))
    ids = np.concatenate([values for kind, values in reply.turn.parts if kind == "text"])
    codes = np.concatenate([values for kind, values in reply.turn.parts if kind == "speech"])
    assert text == voice.text.backend.decode(ids.tolist()) != "" and codes.max() < voice.vocab.num_speech
    mouth = voice.mouth()
    mel = mouth.frames(codes.tolist(), last=True)
    alone = mouth.samples(mel, last=True)
    assert len(alone) == len(audio) and np.allclose(audio, alone, atol=1e-4)
    assert reply.times.total > 0 and reply.end in ("stop", "length")


def test_tokens_of_a_committed_turn_are_those_of_the_whole_recording(voice: Voice):
    audio = speech(1.7)
    session = VoiceSession(voice)
    for at in range(0, len(audio), 777):
        session.hear(audio[at : at + 777])
    turn = session.commit()
    waveform = torch.from_numpy(audio)[None]
    codes, lens = voice.tokenizer.tokenize(waveform, torch.tensor([len(audio)]))
    assert turn is not None and turn.parts[0][1].tolist() == codes[0, : int(lens[0])].tolist()


def test_conversations_side_by_side_get_what_each_gets_alone(voice: Voice):
    alone = [whole(asked(voice, seed))[0].turn for seed in range(4)]
    beside: list[Any] = [None] * 4

    def talk(seed: int) -> None:
        beside[seed] = whole(asked(voice, seed))[0].turn

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one, other in zip(alone, beside, strict=True):
        assert [(k, v.tolist()) for k, v in one.parts] == [(k, v.tolist()) for k, v in other.parts]


def test_a_reply_that_is_interrupted_ends_and_what_was_said_is_remembered(voice: Voice):
    session = asked(voice)
    reply = session.reply(GREEDY)
    heard = 0
    for delta in reply:
        if isinstance(delta, AudioDelta):
            heard += len(delta.samples)
            session.interrupt()
    assert reply.end == "interrupted" and heard > 0
    number = session.remember(reply)
    session.truncate(number, 2 * 1764 / 22_050)
    kept = session.history.turns[-1]
    assert sum(len(values) for kind, values in kept.parts if kind == "speech") == 2
    before = len(session.voice.template.prompt(session.history.turns[:1]))
    session.write("go on")
    assert session.reply(GREEDY).num_prompt > before + 2


def test_a_silent_reply_is_its_text_alone(voice: Voice):
    spoken, text, _ = whole(asked(voice))
    silent, same, audio = whole(asked(voice), Wish(GREEDY.sampling, silent=True))
    assert same == text and len(audio) == 0 and silent.end == "stop"
    assert {kind for kind, _ in silent.turn.parts} == {"text"} and len(spoken.turn.parts) > 1


@pytest.mark.parametrize("codes", [0, 1, 3])
def test_replies_of_almost_no_speech_are_made_whole(voice: Voice, monkeypatch: pytest.MonkeyPatch, codes: int):
    offset = voice.vocab.speech_offset

    class Few:
        end = ""

        def __init__(self) -> None:
            self.ids = iter([5, *range(offset, offset + codes)])

        def __iter__(self) -> "Few":
            return self

        def __next__(self) -> int:
            value = next(self.ids, None)
            if value is None:
                self.end = "stop"
                raise StopIteration
            return value

        def close(self) -> None:
            return

    monkeypatch.setattr(voice.engine, "open", lambda ask: Few())
    reply, text, audio = whole(asked(voice))
    assert reply.end == "stop" and text and abs(len(audio) - codes * 1764) < 256 and np.isfinite(audio).all()


def test_bounds_of_a_conversation_are_kept(bundle: Path):
    voice = tiny_voice(bundle, Limits(audio_sec=1.0, text_chars=20, reply_ids=8, turns=3))
    session = VoiceSession(voice)
    with pytest.raises(ValueError, match="at most 1 s"):
        session.hear(speech(1.5))
    with pytest.raises(ValueError, match="at most 20 characters"):
        session.write("x" * 21)
    with pytest.raises(ValueError, match="nothing to reply to"):
        session.reply()
    for _ in range(6):
        session.write("hello")
        reply, _, _ = whole(session)
        session.remember(reply)
    assert reply.num_new == 8 and reply.end == "length" and len(session.history.turns) == 3
    voice.close()


def test_an_engine_takes_no_more_than_may_wait(voice: Voice, monkeypatch: pytest.MonkeyPatch):
    engine: Any = voice.engine
    free, inside = threading.Event(), threading.Event()
    step = engine._lm.begin
    monkeypatch.setattr(engine._lm, "begin", lambda *args: (inside.set(), free.wait(20), step(*args))[2])
    ask = Ask("one", [1, 2, 3], voice.form, Sampling(temperature=0.0), 4)
    streams = [engine.open(ask)]
    assert inside.wait(10)
    streams += [engine.open(ask) for _ in range(engine.max_waiting)]
    with pytest.raises(EngineBusy):
        engine.open(ask)
    for stream in streams[2:]:
        stream.close()
    free.set()
    assert len(list(streams[0])) == len(list(streams[1])) > 0


# ---- the form of a reply --------------------------------------------------------------------------------------------

VOCAB = Vocab(num_text=10, num_speech=8)
END = VOCAB.control("<|user|>")


def test_blocks_take_turns_until_the_text_ends():
    progress = ReplyForm(END, 2, 3).begin()
    text, sound, end = Kind.TEXT, Kind.SPEECH, Kind.END
    steps = [(text, text), (text | sound, text), (sound, sound), (sound | end, sound), (sound | end, sound),
             (sound | end | text, text), (text | sound, sound), (sound | end, sound)]  # fmt: skip
    for allowed, kind in steps:
        assert progress.allowed == allowed
        progress.take(kind)
    assert progress.text_over
    for _ in range(5):
        progress.take(sound)
        assert progress.allowed == sound | end, "the text ended early, so all that follows is speech"


@pytest.mark.parametrize(("blocks", "kinds"), [((0, 1), Kind.SPEECH), ((1, 0), Kind.TEXT)])
def test_replies_of_one_kind_have_no_other(blocks: tuple[int, int], kinds: Kind):
    progress = ReplyForm(END, *blocks).begin()
    assert progress.allowed == kinds, "an empty reply is none"
    for _ in range(20):
        progress.take(kinds)
        assert progress.allowed == kinds | Kind.END


def test_ids_that_no_reply_has_have_no_probability():
    kinds = IdKinds(VOCAB, specials=[3])
    table = kinds.table(END, 40, torch.device("cpu"))
    possible = {i for i in range(40) if table[int(Kind.TEXT | Kind.SPEECH | Kind.END)][i] == 0}
    assert possible == set(range(10)) - {3} | {END} | set(range(17, 25))
    for i in range(-3, 45):
        assert (kinds.kind(i, END) is not Kind.NONE) == (i in possible)


# ---- turns ----------------------------------------------------------------------------------------------------------


class Scripted:
    """Certainty as a test says."""

    def __init__(self, certainties: list[float]) -> None:
        self.certainties = iter(certainties)

    def speech(self, frame: np.ndarray) -> float:
        return next(self.certainties)


def test_a_turn_begins_with_its_first_frame_of_speech_and_ends_after_enough_silence():
    settings = TurnSettings(silence_duration_ms=96, min_speech_ms=64)
    script = [0.1, 0.9, 0.1, 0.9, 0.9, 0.4, 0.9, 0.2, 0.2, 0.2, 0.2]
    detector = TurnDetector(Scripted(script), settings)
    events = [
        e for at in range(0, 11 * FRAME, 100) for e in detector.push(np.zeros(min(100, 11 * FRAME - at), np.float32))
    ]
    assert events == [("started", 3 * FRAME), ("stopped", 7 * FRAME)], "a click is no turn, a soft frame no end of one"


@pytest.mark.parametrize("judge", [Loudness, Silero])
def test_a_real_recording_is_one_turn(judge: Any):
    audio = real_speech()
    quiet = 0.001 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    whole = np.concatenate([quiet, audio, quiet])
    events = list(TurnDetector(judge(), TurnSettings(silence_duration_ms=700)).push(whole))
    assert [event.kind for event in events] == ["started", "stopped"]
    assert 15_000 < events[0].sample < 20_000 and abs(events[1].sample - 16_000 - len(audio)) < 6000


def real_speech() -> np.ndarray:
    """A recording that ships with the code, at 16 kHz, its silence cut off."""
    audio, rate = sf.read(WHISPER.parent / "asterisk-en" / "audio" / "en-call-fwd-on-busy.ogg", dtype="float32")
    audio = Resampler(rate, 16_000).push(audio, last=True)
    loud = np.flatnonzero(np.abs(audio) > 0.02)
    return audio[loud[0] : loud[-1]].astype(np.float32)


def test_listening_makes_turns_of_what_is_said_and_of_nothing_else(voice: Voice):
    session = VoiceSession(voice, turns=TurnSettings(silence_duration_ms=300))
    silence = np.zeros(16_000, np.float32)
    events = [
        event
        for part in (silence, speech(1.0), silence, speech(0.7, seed=1), silence)
        for event in session.listen(part)
    ]
    assert [event.kind for event in events] == ["started", "stopped"] * 2 and len(session.history.turns) == 2
    lengths = [len(turn.parts[0][1]) / 12.5 for turn in session.history.turns]
    assert 1.2 < lengths[0] < 1.9 and 0.9 < lengths[1] < 1.6, "what was said, with 0.3 s before and behind"


def test_who_never_stops_speaking_is_cut_at_the_longest_turn(bundle: Path):
    voice = tiny_voice(bundle, Limits(audio_sec=2.0))
    session = VoiceSession(voice)
    events = [event.kind for _ in range(6) for event in session.listen(speech(1.0))]
    assert events[:2] == ["started", "stopped"] and len(session.history.turns) >= 2
    voice.close()


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_cut_reply_keeps_the_text_that_its_speech_had_reached():
    def some(*values: int) -> np.ndarray:
        return np.array(values)

    parts = (("text", some(1, 2)), ("speech", some(5, 6)), ("text", some(3)), ("speech", some(7, 8, 9)))
    turn = Turn("assistant", parts)
    shown = [[(kind, values.tolist()) for kind, values in cut_speech(turn, tokens).parts] for tokens in (0, 1, 3, 9)]
    assert shown[0] == [("text", [1, 2])]
    assert shown[1] == [("text", [1, 2]), ("speech", [5])]
    assert shown[2] == [("text", [1, 2]), ("speech", [5, 6]), ("text", [3]), ("speech", [7])]
    assert shown[3] == [(kind, values.tolist()) for kind, values in parts]


def test_what_does_not_fit_is_forgotten_oldest_first(voice: Voice):
    history = History(64)
    for number in range(40):
        history.append(Turn("user", (("speech", np.full(30, number)),)))
        history.append(Turn("assistant", (("speech", np.full(20, number)),)))
    history.append(Turn("user", (("speech", np.full(30, 63)),)))
    ids = history.fitting(voice.template, 512, 64)
    speech_ids = ids[voice.vocab.is_speech(ids)] - voice.vocab.speech_offset
    assert 300 < len(ids) <= 448 and speech_ids[-1] == 63 and speech_ids[0] == speech_ids[29] > 30
    history.append(Turn("user", (("speech", np.zeros(600, np.int64)),)))
    with pytest.raises(ValueError, match="room for 48"):
        history.fitting(voice.template, 64, 64)


# ---- rates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [(22_050, 24_000), (48_000, 16_000), (44_100, 16_000), (22_050, 48_000)])
def test_a_stream_is_resampled_as_the_whole_and_a_tone_stays_a_tone(source: int, target: int):
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 1000 * np.arange(20_000) / source)
    whole = Resampler(source, target).push(tone, last=True)
    pieces, resampler, at = [], Resampler(source, target), 0
    while at < len(tone):
        size = int(rng.integers(1, 900))
        pieces.append(resampler.push(tone[at : at + size]))
        at += size
    pieces.append(resampler.push(tone[:0], last=True))
    assert np.array_equal(np.concatenate(pieces), whole) and abs(len(whole) - 20_000 * target / source) <= 1
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(whole)) / target)
    assert np.abs(whole - expected)[300:-300].max() < 1e-4


# ---- bundles --------------------------------------------------------------------------------------------------------


def copied(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def test_a_changed_missing_or_added_file_is_found(bundle: Path, tmp_path: Path):
    read_manifest(bundle)
    copy = copied(bundle, tmp_path)
    weights = copy / "vocoder" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"vocoder.*hash differs"):
        read_manifest(copy)
    weights.unlink()
    with pytest.raises(ValueError, match="missing or too many"):
        read_manifest(copy)
    with pytest.raises(ValueError, match=r"no chat\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 2, "sha256": {}}', '{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(bundle: Path, tmp_path: Path, damage: str):
    copy = copied(bundle, tmp_path)
    (copy / "chat.json").write_text(damage)
    with pytest.raises(ValueError, match="no manifest of format 1"):
        read_manifest(copy)


@pytest.mark.parametrize("name", ["os.system", "torch.load", "subprocess.Popen"])
def test_a_part_builds_classes_of_this_package_only(bundle: Path, tmp_path: Path, name: str):
    copy = copied(bundle, tmp_path)
    config = copy / "vocoder" / "config.yaml"
    config.write_text(config.read_text().replace("speechlm.nn.hift.HiFT", name))
    with pytest.raises(ValueError, match="only classes of speechlm"):
        read_stage(copy / "vocoder")


def test_a_part_reads_no_file_outside_of_its_folder(bundle: Path, tmp_path: Path):
    copy = copied(bundle, tmp_path)
    config = copy / "tokenizer" / "config.yaml"
    config.write_text(config.read_text().replace("bundle:files/0_whisper-nano-en", "bundle:../../etc"))
    with pytest.raises(ValueError, match="leads out of the folder"):
        read_stage(copy / "tokenizer")


def test_parts_that_were_not_made_for_each_other_are_refused(bundle: Path):
    tokenizer, decoder, vocoder = (read_stage(bundle / part) for part in ("tokenizer", "decoder", "vocoder"))
    require_fit(Vocab(10, 64), tokenizer, decoder, vocoder)
    with pytest.raises(ValueError, match="codebooks of different sizes"):
        require_fit(Vocab(10, 63), tokenizer, decoder, vocoder)
    with pytest.raises(ValueError, match="expected a Vocoder"):
        require_fit(Vocab(10, 64), tokenizer, decoder, decoder)


# ---- the command line -----------------------------------------------------------------------------------------------


def test_a_file_is_replied_to_with_a_file(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    heard = write_wav(tmp_path / "in.wav", speech(1.0, 44_100), 44_100)
    chat.main(["file", str(heard), str(tmp_path / "out.wav"), "--model", str(bundle), "--max_new", "60"])
    audio, rate = sf.read(tmp_path / "out.wav")
    assert rate == 22_050 and len(audio) > 5000 and "out.wav" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        chat.main(["file", str(tmp_path / "none.wav"), "x.wav", "--model", str(bundle)])
    assert stopped.value.code == 2 and "can not be read as sound" in capsys.readouterr().err


def test_a_terminal_takes_text_and_files(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    lines = iter(["hello", str(write_wav(tmp_path / "in.wav", speech(1.0))), ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    chat.main(["terminal", "--model", str(bundle), "--out", str(tmp_path / "replies"), "--max_new", "40"])
    shown = capsys.readouterr().out
    assert shown.count("random: ") == 2 and shown.count("first sound after") == 2
    assert (tmp_path / "replies" / "reply_2.wav").stat().st_size > 1000


def test_the_manifest_says_what_is_in_the_folder(bundle: Path):
    said = json.loads((bundle / "chat.json").read_text())
    assert set(said["sha256"]) == {"lm", "tokenizer", "decoder", "vocoder"} and said["template"] == "plain"
    assert "vocab.json" in said["sha256"]["lm"] and len(said["sha256"]["lm"]["vocab.json"]) == 64
