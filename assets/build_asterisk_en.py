"""Builds `assets/asterisk-en`: real recordings with transcripts as Opus, and Lhotse cut manifests for training and held-out.

    python assets/build_asterisk_en.py SOURCE assets/asterisk-en

SOURCE/speech/en.jsonl has one recording a line: `id`, `path` (a file soundfile reads, relative to SOURCE, 16 kHz mono),
`text`, `speaker`, `license`. It is made from Debian's asterisk-core-sounds-en-g722: the .g722 files decoded to FLAC, their
transcripts from core-sounds-en.txt.

The split is by recording and by text: near-duplicate prompts ("...to leave the conference." and "To leave the
conference...", or the five versions of one menu) fall on the same side, and a prompt whose words occur inside another
prompt is never held out.
"""

import argparse
import hashlib
import json
import re
from difflib import SequenceMatcher
from pathlib import Path

import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

SAMPLE_RATE_HZ = 16_000
MIN_SEC = 0.3
WINDOW_SEC = 30.0  # Whisper's; what is longer is for training only, cut as the trainer likes
HELDOUT_SHARE = 0.12  # of the seconds
SIMILAR = 0.75  # share of words in common, in order, from which two prompts count as one
MISSPELT = {"umute": "unmute", "exclaimation": "exclamation", "indentified": "identified", "witheld": "withheld"}
OPUS_COMPRESSION = 0.9  # soundfile's scale; 33 kbit/s on this voice, and no change in Whisper's word error rate


def clean_text(text: str) -> str:
    """The words that are spoken: without the script's notes ('at [@]', 'IAX (note: ...)') and slips, keys by their names."""
    text = re.sub(r"\[.?\]|\(.*?\)", " ", text)
    for wrong, right in {"*": "star", "#": "pound", "...": " ", **MISSPELT}.items():
        text = text.replace(wrong, right)
    return re.sub(r"\s+", " ", text).strip()


def words_of(text: str) -> list[str]:
    """Lower-cased words without punctuation; joined they are the key by which prompts are compared."""
    return re.findall(r"[a-z0-9']+", text.lower().replace("-", " "))


def similar(a: list[str], b: list[str]) -> bool:
    """True where two prompts share most of their words in the same order."""
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    return matcher.real_quick_ratio() >= SIMILAR and matcher.ratio() >= SIMILAR


def group_similar(keys: list[str]) -> list[list[str]]:
    """Distinct texts -> groups of near-duplicates (connected through `similar`), in the order of their first member."""
    groups: list[list[str]] = []
    for key in keys:
        near = [g for g in groups if any(similar(key.split(), other.split()) for other in g)]
        groups = [g for g in groups if g not in near] + [[other for g in near for other in g] + [key]]
    return groups


def choose_heldout(seconds: dict[str, float]) -> set[str]:
    """Keys to hold out: whole groups in the order of their hash, until `HELDOUT_SHARE` of the seconds is reached.

    Args:
        seconds: normalised text -> seconds of its recordings.
    """
    padded = [f" {key} " for key in seconds]

    def is_free(key: str) -> bool:
        return seconds[key] <= WINDOW_SEC and sum(f" {key} " in other for other in padded) == 1

    groups = [sorted(g) for g in group_similar(sorted(seconds))]
    free = [g for g in groups if all(map(is_free, g))]
    heldout: set[str] = set()
    for group in sorted(free, key=lambda g: hashlib.sha256(g[0].encode()).hexdigest()):
        if sum(seconds[key] for key in heldout) >= HELDOUT_SHARE * sum(seconds.values()):
            break
        heldout.update(group)
    return heldout


def encode(row: dict, source: Path, target: Path) -> MonoCut:
    """Re-encodes one recording as Opus and describes it as a cut with a path relative to `target`."""
    audio, rate = soundfile.read(source / row["path"], dtype="float32")
    if rate != SAMPLE_RATE_HZ or audio.ndim != 1:
        raise ValueError(
            f"{row['path']}: expected mono audio at {SAMPLE_RATE_HZ} Hz, got {rate} Hz, shape {audio.shape}"
        )
    path = target / "audio" / f"{row['id']}.ogg"
    soundfile.write(path, audio, rate, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION)
    if soundfile.info(path).frames != len(audio):
        raise ValueError(f"{path}: {soundfile.info(path).frames} samples after encoding, {len(audio)} before")
    recording = Recording.from_file(path, recording_id=row["id"])
    recording.sources[0].source = path.relative_to(target).as_posix()
    supervision = SupervisionSegment(
        id=row["id"], recording_id=row["id"], start=0.0, duration=recording.duration, channel=0,
        text=clean_text(row["text"]), language="en", speaker=row["speaker"], custom={"license": row["license"]},
    )  # fmt: skip
    return MonoCut(
        id=row["id"], start=0.0, duration=recording.duration, channel=0, supervisions=[supervision], recording=recording
    )


def write_checksums(folder: Path) -> None:
    """SHA256SUMS of recordings and manifests, as `sha256sum -c` reads it."""
    files = sorted([*folder.glob("audio/*.ogg"), *folder.glob("*.jsonl.gz")])
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def build(source: Path, target: Path) -> None:
    """Writes audio, both manifests and the checksums; the notices beside them are kept as they are."""
    (target / "audio").mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (source / "speech" / "en.jsonl").read_text(encoding="utf-8").splitlines()]
    cuts = [cut for cut in (encode(row, source, target) for row in rows) if cut.duration >= MIN_SEC]
    key_of = {cut.id: " ".join(words_of(cut.supervisions[0].text)) for cut in cuts}
    seconds: dict[str, float] = {}
    for cut in cuts:
        seconds[key_of[cut.id]] = seconds.get(key_of[cut.id], 0.0) + cut.duration
    heldout = choose_heldout(seconds)
    for name, chosen in [
        ("train", [c for c in cuts if key_of[c.id] not in heldout]),
        ("heldout", [c for c in cuts if key_of[c.id] in heldout]),
    ]:
        CutSet.from_cuts(chosen).to_file(target / f"{name}.jsonl.gz")
        words = sum(len(key_of[c.id].split()) for c in chosen)
        print(f"{name}: {len(chosen)} recordings, {sum(c.duration for c in chosen) / 60:.2f} min, {words} words")
    write_checksums(target)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with speech/en.jsonl and the recordings it names")
    parser.add_argument("target", type=Path, help="folder to write")
    args = parser.parse_args()
    build(args.source, args.target)


if __name__ == "__main__":
    main()
