"""Talk to a model: `python -m speechlm.chat serve|file|terminal --model <folder>`; `bundle` and `random` make such folders.

serve     an OpenAI-compatible server with a page to talk in: http://127.0.0.1:8000
file      a recording in, the reply as a recording out
terminal  turns are typed, or are sound files; replies are printed, and written as sound files
bundle    the parts that were trained, put together into one folder
random    a folder with random weights, to try the rest with
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from speechlm.engines.base import Sampling
from speechlm.engines.streaming import EngineBusy, EngineFailed
from speechlm.export import DTYPES, export_lm
from speechlm.hidden_secrets import hide_secrets
from speechlm.load import load_stage
from speechlm.serving.bundle import Manifest, copy_folder, write_bundle
from speechlm.serving.open import Runtime, open_voice
from speechlm.serving.parts import write_stage
from speechlm.serving.random_parts import write_random_bundle
from speechlm.serving.reply import Reply, TextDelta
from speechlm.serving.resample import Resampler
from speechlm.serving.session import VoiceSession
from speechlm.serving.voice import Limits, Voice
from speechlm.stages.speech_lm import SpeechLM
from speechlm.tokens.chat_templates import CHAT_TEMPLATES

WARM_UP_SEC = 1.0


def read_audio(path: str | Path, voice: Voice) -> np.ndarray:
    """(N,) samples of a sound file at the rate of the voice's ear.

    Raises:
        ValueError: it is no sound file, or too long.
    """
    try:
        info = sf.info(path)
        if info.duration > voice.limits.audio_sec:
            raise ValueError(
                f"{path} is {info.duration:.0f} s long, more than the {voice.limits.audio_sec:g} s of a turn"
            )
        audio, rate = sf.read(path, dtype="float32", always_2d=True)
    except (sf.LibsndfileError, OSError) as error:
        raise ValueError(f"{path} can not be read as sound: {error}") from error
    if not np.isfinite(audio).all():
        raise ValueError(f"{path} has samples that are no numbers")
    return np.clip(Resampler(rate, voice.input_hz).push(audio.mean(axis=1), last=True), -1.0, 1.0)


def hear_file(session: VoiceSession, path: str | Path) -> None:
    """A sound file as a turn of the user.

    Raises:
        ValueError: it is no sound file, or too long, or empty.
    """
    session.hear(read_audio(path, session.voice))
    if session.commit() is None:
        raise ValueError(f"{path} has no samples")


def speak_reply(session: VoiceSession, out: str | Path | None) -> Reply:
    """Print a reply's text as it comes, and write its sound."""
    reply = session.reply()
    samples = [np.zeros(0, np.float32)]
    for delta in reply:
        if isinstance(delta, TextDelta):
            print(delta.text, end="", flush=True)
        else:
            samples.append(delta.samples)
    session.remember(reply)
    print()
    audio = np.concatenate(samples)
    if out is not None and len(audio):
        sf.write(out, audio, session.voice.output_hz)
    return reply


def warm_up(voice: Voice) -> None:
    """One reply to silence: what is made at the first call is made before somebody waits for it."""
    session = VoiceSession(voice)
    session.hear(np.zeros(round(WARM_UP_SEC * voice.input_hz), np.float32))
    session.commit()
    for delta in session.reply():
        if not isinstance(delta, TextDelta):
            break


def serve(settings: argparse.Namespace) -> None:
    """Start the server, and stay until it is stopped."""
    try:
        from speechlm.serving.web.app import build_server
        from speechlm.serving.web.settings import ServerSettings, key_from
    except ImportError as error:
        raise ValueError(
            f"the server needs more packages ({error}); install with pip install 'speechlm[serve]'"
        ) from error
    bounds = ServerSettings(
        settings.host,
        settings.port,
        key_from(settings.api_key_env),
        replies=settings.replies,
        sessions=settings.sessions,
    )
    voice = opened(settings)
    warm_up(voice)
    key = f", with the key in {settings.api_key_env}" if bounds.api_key else ""
    print(f"{voice.name} listens at http://{bounds.host}:{bounds.port}{key}", flush=True)
    try:
        build_server(voice, bounds).run()
    finally:
        voice.close()


def file(settings: argparse.Namespace) -> None:
    """One recording, one reply."""
    voice = opened(settings)
    try:
        session = VoiceSession(voice)
        hear_file(session, settings.input)
        reply = speak_reply(session, settings.output)
        print(f"{settings.output}: {reply.num_samples / voice.output_hz:.1f} s, {reply.end}")
    finally:
        voice.close()


def terminal(settings: argparse.Namespace) -> None:
    """Turns until an empty line or the end of the input."""
    voice = opened(settings)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    session, number = VoiceSession(voice), 0
    print("Type, or name a sound file. An empty line ends it.")
    try:
        for line in iter(lambda: _asked("you: "), ""):
            try:
                if Path(line).is_file():
                    hear_file(session, line)
                else:
                    session.write(line)
                number += 1
                print(f"{voice.name}: ", end="")
                reply = speak_reply(session, out / f"reply_{number}.wav")
                print(f"  [{out / f'reply_{number}.wav'}, first sound after {1000 * reply.times.total:.0f} ms]")
            except (ValueError, EngineBusy, EngineFailed) as error:
                print(f"  {error}")
    finally:
        voice.close()


def bundle(settings: argparse.Namespace) -> None:
    """Put trained parts together, and open the result once, so that what does not fit is said now."""
    manifest = Manifest(
        settings.name or Path(settings.out).name,
        settings.template,
        instructions=settings.instructions,
        sampling=Sampling(settings.temperature, top_p=settings.top_p),
        max_length=settings.max_length,
    )
    writers = {part: _stage_writer(part, getattr(settings, part)) for part in ("tokenizer", "decoder", "vocoder")}
    lm = _lm_writer(settings)
    write_bundle(settings.out, manifest, {"lm": lm, **writers})
    open_voice(settings.out, Runtime(device="cpu", verify=False)).close()
    print(f"{settings.out}: talk to it with python -m speechlm.chat serve --model {settings.out}")


def random(settings: argparse.Namespace) -> None:
    """A bundle of random weights."""
    write_random_bundle(settings.out, settings.whisper, seed=settings.seed)
    print(f"{settings.out}: its replies are noise; python -m speechlm.chat serve --model {settings.out}")


def opened(settings: argparse.Namespace) -> Voice:
    """The voice that a command line names."""
    runtime = Runtime(
        settings.device,
        settings.dtype,
        replies=settings.replies,
        sglang=settings.sglang,
        activity=settings.activity,
        verify=not settings.trust,
    )
    limits = Limits(settings.max_audio_sec, reply_ids=settings.max_new, reply_sec=settings.max_reply_sec)
    return open_voice(settings.model, runtime, limits)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m speechlm.chat",
        description=(__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="serve|file|terminal|bundle|random")
    serving = commands.add_parser("serve", help="an OpenAI-compatible server with a page to talk in")
    serving.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; another than this machine's own needs a key"
    )
    serving.add_argument("--port", type=int, default=8000)
    serving.add_argument("--api_key_env", default="SPEECHLM_API_KEY", help="environment variable with the clients' key")
    serving.add_argument("--sessions", type=int, default=16, help="of live voice at once")
    one = commands.add_parser("file", help="a recording in, the reply as a recording out")
    one.add_argument("input", help="sound file")
    one.add_argument("output", help="WAV file to write")
    typed = commands.add_parser("terminal", help="turns are typed, or are sound files")
    typed.add_argument("--out", default="replies", help="folder for the replies' sound")
    for command, call in ((serving, serve), (one, file), (typed, terminal)):
        _add_runtime(command)
        command.set_defaults(call=call)
    _add_bundle(commands.add_parser("bundle", help="trained parts put together into one folder"))
    made = commands.add_parser("random", help="a folder with random weights, to try the rest with")
    made.add_argument("--out", required=True, help="folder to write")
    made.add_argument(
        "--whisper", default="assets/whisper-nano-en", help="folder of a Whisper for ear and text tokenizer"
    )
    made.add_argument("--seed", type=int, default=0)
    made.set_defaults(call=random)
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Parse and call."""
    hide_secrets()
    parser = build_parser()
    settings = parser.parse_args(args)
    try:
        settings.call(settings)
    except (ValueError, OSError, EngineBusy, EngineFailed) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    limits, runtime = Limits(), Runtime()
    parser.add_argument("--model", required=True, help="folder that `bundle` wrote")
    parser.add_argument("--device", default=runtime.device, help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default=runtime.dtype, choices=["float32", "bfloat16"], help="of the language model")
    parser.add_argument("--sglang", default="", help="address of an SGLang server that runs the folder's lm")
    parser.add_argument("--replies", type=int, default=runtime.replies, help="at once")
    parser.add_argument("--activity", default=runtime.activity, choices=["auto", "silero", "loudness"],
                        help="what hears that somebody speaks")  # fmt: skip
    parser.add_argument("--max_audio_sec", type=float, default=limits.audio_sec, help="longest turn")
    parser.add_argument("--max_new", type=int, default=limits.reply_ids, help="ids of a reply at most")
    parser.add_argument("--max_reply_sec", type=float, default=limits.reply_sec, help="longest time that a reply takes")
    parser.add_argument("--trust", action="store_true", help="do not compute the hashes of the folder's files")


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--lm", required=True, help="run folder, or a folder that speechlm.export wrote")
    parser.add_argument("--tokenizer", required=True, help="run folder, or the released tokenizer's")
    parser.add_argument(
        "--decoder", required=True, help="run folder of the flow decoder, or one with a released flow.pt"
    )
    parser.add_argument("--vocoder", required=True, help="run folder, or a released hift.pt or the folder that has it")
    parser.add_argument("--name", default="", help="what clients call it; the folder's name where not said")
    parser.add_argument(
        "--template", default="plain", choices=sorted(CHAT_TEMPLATES), help="that the model was tuned with"
    )
    parser.add_argument("--instructions", default="", help="what a conversation begins with")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--top_p", type=float, default=0.8)
    parser.add_argument("--max_length", type=int, default=4096, help="ids of a conversation")
    parser.add_argument("--text_tokenizer", default="", help="of a run's model, where its config names none")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of a run's model")
    parser.add_argument("--ema", action="store_true", help="of a run's model the averaged weights")
    parser.set_defaults(call=bundle, verify=False)


def _stage_writer(part: str, run: str) -> Callable[[Path], Any]:
    return lambda folder: write_stage(run, folder, part)


def _lm_writer(settings: argparse.Namespace) -> Callable[[Path], Any]:
    """A run is exported, a folder is copied."""
    if (Path(settings.lm) / "vocab.json").is_file() and (Path(settings.lm) / "tokenizer.json").is_file():
        return copy_folder(settings.lm)
    stage = load_stage(settings.lm)
    if not isinstance(stage, SpeechLM):
        raise ValueError(f"--lm {settings.lm} trained a {type(stage).__name__}, expected a SpeechLM")
    return lambda folder: export_lm(stage, folder, settings)


def _asked(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
