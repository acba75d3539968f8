"""What the causal floor of the log-mel changes: the tokens of a model that was trained with the other one, and the WER.

    python benchmarks/log_mel_floor.py --cuts MANIFEST [--run runs/<name>] [--whisper-clip FOLDER] [--whisper-running FOLDER]

`--run`, a tokenizer trained with floor "clip": which of its tokens change when the floor hangs from the loudest frame so far
("running", as `LogMel` does it), and when it hangs from the loudest frame up to the end of the attention block, as in a stream
with `approximate_floor` ("stream"). Where the loudest frame has been heard, the floors are the same, so the share of changed
tokens is also given by time since the recording's beginning.

`--whisper-clip` and `--whisper-running`, unquantised models adapted with either floor: WER of each with the floor it was trained
with, and of the first with the other one.
"""

import argparse
import json
from itertools import islice

import torch

from datamodules.cuts import read_cuts
from datamodules.recordings import load_recording
from speechlm.evals.wer import word_error_rate
from speechlm.nn.log_mel import Floor
from speechlm.nn.whisper_encoder import POSITIONS_PER_SEC
from speechlm.nn.whisper_tokens import WhisperTokens
from speechlm.nn.whisper_vq import WhisperVQ
from speechlm.provenance import short_commit
from speechlm.tokenizers import RunTokens
from speechlm.tokens.clock import Clock

SPANS_SEC = ((0, 1), (1, 2), (2, 4), (4, 8), (8, 30))


def tokens_of(tokenizer: WhisperTokens, audio: torch.Tensor, floor: Floor) -> list[int]:
    """Offline tokens with a floor."""
    tokenizer.log_mel.floor = floor
    return tokenizer.tokenize(audio[None], torch.tensor([len(audio)]))[0][0].tolist()


def approximate(tokenizer: WhisperTokens, audio: torch.Tensor) -> list[int]:
    """A stream's tokens with the floor of the released form, approximated."""
    tokenizer.log_mel.floor = "clip"
    stream = tokenizer.stream(approximate_floor=True)
    return stream.push(audio).tolist() + stream.flush().tolist()


def changed(tokenizer: WhisperTokens, recordings: list[torch.Tensor]) -> dict[str, object]:
    """Shares of tokens that differ from the offline ones with floor "clip"."""
    places: dict[str, list[tuple[float, bool]]] = {"running": [], "stream": []}
    whole: dict[str, int] = dict.fromkeys(places, 0)
    for audio in recordings:
        clip = tokens_of(tokenizer, audio, "clip")
        for name, other in (
            ("running", tokens_of(tokenizer, audio, "running")),
            ("stream", approximate(tokenizer, audio)),
        ):
            marks = [a != b for a, b in zip(clip, other, strict=True)]
            places[name] += [(tokenizer.clock.seconds_of_tokens(i), mark) for i, mark in enumerate(marks)]
            whole[name] += not any(marks)
    return {
        name: {
            "changed_percent": percent([mark for _, mark in marks]),
            "changed_percent_by_second": {
                f"{low}-{high}": percent([mark for second, mark in marks if low <= second < high])
                for low, high in SPANS_SEC
            },
            "unchanged_recordings_percent": round(100 * whole[name] / len(recordings), 1),
        }
        for name, marks in places.items()
    } | {"tokens": len(places["running"])}


def percent(marks: list[bool]) -> float | None:
    """Share of what is marked."""
    return round(100 * sum(marks) / len(marks), 2) if marks else None


def errors(folder: str, floor: Floor, recordings: list[torch.Tensor], texts: list[str]) -> str:
    """WER with its interval, greedy, one recording at a time."""
    model = WhisperVQ(folder, Clock(token_rate_hz=POSITIONS_PER_SEC), floor=floor).eval()
    heard = [model.transcribe(audio[None], torch.tensor([len(audio)]))[0] for audio in recordings]
    return str(word_error_rate(texts, heard))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cuts", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--run")
    parser.add_argument("--whisper-clip")
    parser.add_argument("--whisper-running")
    args = parser.parse_args()
    cuts = [cut for cut in islice(read_cuts(args.cuts), args.limit) if 0.1 <= cut.duration <= 29.9]
    recordings = [torch.from_numpy(load_recording(cut, Clock())).float() for cut in cuts]
    texts = [" ".join(supervision.text or "" for supervision in cut.supervisions) for cut in cuts]
    result: dict[str, object] = {
        "commit": short_commit(),
        "cuts": args.cuts,
        "recordings": len(cuts),
        "seconds": round(sum(len(audio) for audio in recordings) / 16_000),
    }
    if args.run:
        result["tokens"] = {"run": args.run, **changed(RunTokens(args.run), recordings)}
    wer = {}
    trials: list[tuple[str, str | None, tuple[Floor, Floor]]] = [
        ("clip", args.whisper_clip, ("clip", "running")),
        ("running", args.whisper_running, ("running", "clip")),
    ]
    for trained, folder, floors in trials:
        if not folder:
            continue
        for floor in floors:
            wer[f"trained with {trained}, heard with {floor}"] = errors(folder, floor, recordings, texts)
    print(json.dumps(result | {"wer": wer}, indent=1))


if __name__ == "__main__":
    main()
