"""Another sample rate for a sound that is still arriving, without seams: what the whole recording would give, piece by piece."""

from math import gcd

import numpy as np
from scipy.signal import firwin, resample_poly

ZEROS = 16  # crossings of the windowed sine on each side
KAISER = 8.0
#: Others make filters of any length.
RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)


class Resampler:
    """One recording, from one rate to another.

    Args:
        from_hz: of what comes.
        to_hz: of what is wanted.

    Raises:
        ValueError: a rate is none that sound has.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        for rate in (from_hz, to_hz):
            if rate not in RATES_HZ:
                raise ValueError(f"a sample rate is one of {', '.join(map(str, RATES_HZ))} Hz, got {rate}")
        shared = gcd(from_hz, to_hz)
        self.up, self.down = to_hz // shared, from_hz // shared
        steepest = max(self.up, self.down)
        half = ZEROS * steepest
        self._window = firwin(2 * half + 1, 1.0 / steepest, window=("kaiser", KAISER)) if steepest > 1 else None
        self._reach = -(-half // self.up) + 1  # samples on each side that an output hears
        self._held = np.zeros(0, np.float64)
        self._before = 0  # samples that came before the held ones; a multiple of `down`
        self._given = 0  # outputs so far

    def push(self, audio: np.ndarray, last: bool = False) -> np.ndarray:
        """(N,) further samples -> (M,) float32 outputs that are final now; all that are left at the `last`."""
        if self._window is None:
            return np.asarray(audio, np.float32)
        self._held = np.concatenate([self._held, np.asarray(audio, np.float64)])
        heard = self._before + len(self._held)
        known = heard if last else heard - self._reach
        final = max(-(-known * self.up // self.down), self._given)
        if final == self._given or not len(self._held):
            return np.zeros(0, np.float32)
        first = self._before // self.down * self.up  # the output that the first held sample makes
        made = resample_poly(self._held, self.up, self.down, window=self._window)
        outputs = made[self._given - first : final - first].astype(np.float32)
        self._given = final
        self._forget()
        return outputs

    def _forget(self) -> None:
        """Drop what no output to come hears, in whole steps."""
        needed = self._given * self.down // self.up - self._reach
        dropped = max(0, (needed - self._before) // self.down) * self.down
        self._held, self._before = self._held[dropped:], self._before + dropped
