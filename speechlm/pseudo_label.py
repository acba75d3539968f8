"""Speech without transcripts to speech with them: `python -m speechlm.pseudo_label --whisper NAME --audio FOLDER --out FOLDER`.

Any number of processes share the work. Whatever was interrupted, the identical command goes on; see docs/pseudo_label.md.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from jsonargparse import auto_cli
from transformers.utils import logging as transformers_logging

from callbacks.work_progress import WorkProgress
from datamodules.cut_shards import ManifestCount
from datamodules.cuts import manifests_of
from datamodules.label_folder import LabelFolder, LabelPlan
from datamodules.labelling import Labeller, Listening, manifest_of_audio
from datamodules.labels import Trust
from datamodules.token_plan import count_manifests
from speechlm.devices import choose_device
from speechlm.hidden_secrets import hide_secrets
from speechlm.nn.hub_asr import load_asr
from speechlm.ranks import find_rank

AUDIO = "audio.jsonl.gz"


def label(
    whisper: str,
    audio: Path,
    out: Path,
    language: str = "",
    listening: Listening = Listening(),  # noqa: B008 - frozen, and the schema of the command line
    trust: Trust = Trust(),  # noqa: B008
    device: str = "auto",
    rank: int | None = None,
    world_size: int | None = None,
) -> None:
    """Transcribe recordings with any recogniser of the Hugging Face hub, and keep what it is sure of.

    Args:
        whisper: name or folder of the recogniser, sequence-to-sequence such as Whisper, or CTC such as Wav2Vec2.
        audio: a folder of recordings, at any depth, or a cut manifest or a folder of them, whose transcripts are not used.
        out: folder of the labels; an interrupted one is gone on with. `<out>/cuts` is what a config names.
        language: code such as zh, of recordings that name none; "" lets a multilingual Whisper find out.
        listening: how recordings are heard.
        trust: what is kept; other thresholds choose again among what was heard already.
        device: auto, cpu, cuda or cuda:N.
        rank: this process, from 0, where neither torchrun nor Slurm says.
        world_size: number of processes.

    Raises:
        ValueError: there is no audio, the recogniser can not be used, or `out` was begun with something else.
    """
    place = find_rank(rank, world_size)
    manifests = count_audio(audio, out, listening.decode_threads)
    recogniser = load_asr(whisper, choose_device(device, place.local_rank), listening.bf16)
    known = recogniser.languages
    if language and known and language not in known:
        raise ValueError(f"{whisper} does not know the language {language!r}; it knows {', '.join(sorted(known))}")
    settings = {k: v for k, v in asdict(listening).items() if k not in ("shard_size", "decode_threads")}
    plan = LabelPlan(manifests, listening.shard_size, whisper, recogniser.hash, {"language": language, **settings})
    folder = LabelFolder.start(out, plan)
    name = place.title
    mine = range(place.rank, plan.num_shards, place.world_size)
    with WorkProgress(sum(map(plan.shard_length, mine)), name, bar=None if place.world_size == 1 else False) as watcher:
        work = Labeller(folder, recogniser, listening, trust, language, watcher, place.rank, place.world_size)
        counts = work.run()
    print(f"{name + ': ' if name else ''}{counts}")
    print(f"{watcher.times_real_time:.1f} x real time, {watcher.padding_share:.1%} padding")
    total = folder.summarise(asdict(trust))
    print(f"{out} is complete: {total}" if total else f"{out} is not complete: other processes have shards to hear yet")


def count_audio(audio: Path, out: Path, jobs: int) -> tuple[ManifestCount, ...]:
    """The manifests to be labelled; of a folder of recordings, one that is made first, in the folder of the labels.

    Raises:
        ValueError: there is nothing to be heard.
    """
    if audio.is_dir() and not manifests_of(audio):
        manifest_of_audio(audio, out / AUDIO, jobs)
        audio = out / AUDIO
    return count_manifests([str(audio)])


def main(args: list[str] | None = None) -> None:
    """The command line; exits with 2 for an argument that is wrong, with 1 for audio or a model that is."""
    hide_secrets()
    transformers_logging.set_verbosity_error()  # it warns of what it does itself when a Whisper generates
    try:
        auto_cli(label, args=args, as_positional=False, prog="python -m speechlm.pseudo_label")
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
