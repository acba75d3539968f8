"""Long recordings in stretches that a recogniser can hear at once, cut where it is quietest."""

import numpy as np

FRAME_SEC = 0.02
QUIET_SEC = 0.2  # so long it should be quiet around a cut


def quiet_splits(audio: np.ndarray, sample_rate_hz: int, max_seconds: float) -> list[tuple[int, int]]:
    """(N,) waveform -> (first, end) samples of consecutive stretches, together all of it, none longer than asked for.

    Each but the last ends at the quietest place of the last third of what it may have.
    """
    limit = int(max_seconds * sample_rate_hz)
    frame = int(FRAME_SEC * sample_rate_hz)
    stretches, start = [], 0
    while len(audio) - start > limit:
        earliest = start + limit * 2 // 3
        end = earliest + _quietest(audio[earliest : start + limit], frame)
        stretches.append((start, end))
        start = end
    return [*stretches, (start, len(audio))]


def _quietest(audio: np.ndarray, frame: int) -> int:
    """The sample in the middle of the quietest `QUIET_SEC`."""
    frames = audio[: len(audio) // frame * frame].reshape(-1, frame)
    power = np.square(frames, dtype=np.float32).mean(1)
    width = min(len(power), round(QUIET_SEC / FRAME_SEC))
    return (int(np.convolve(power, np.ones(width), "valid").argmin()) + width // 2) * frame
