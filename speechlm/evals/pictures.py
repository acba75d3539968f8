"""Pictures of sound and codes, as PNG bytes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend must be chosen first
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#5b6472"


@contextmanager
def _drawn(out: io.BytesIO, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    figure, axes = plt.subplots(figsize=(width, height), dpi=110, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=8)
    for side in axes.spines.values():
        side.set_color(INK)
    yield figure, axes
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(9)
    figure.savefig(out, format="png")
    plt.close(figure)


def mel_with_codes(mel: np.ndarray, codes: np.ndarray, seconds_per_token: float) -> bytes:
    """A (M, F) log-mel with each token's span coloured by its code underneath, and its number where there is room."""
    out = io.BytesIO()
    seconds = mel.shape[1] / 100.0
    with _drawn(out, min(14.0, 2.0 + 1.6 * seconds), 2.3) as (_, axes):
        axes.imshow(mel, origin="lower", aspect="auto", extent=(0, seconds, 0, mel.shape[0]), cmap="magma")
        depth = mel.shape[0] * 0.22
        colours = plt.get_cmap("hsv")((codes * 0.6180339887) % 1.0)
        starts = np.arange(len(codes)) * seconds_per_token
        axes.bar(
            starts, depth, seconds_per_token, bottom=-depth, align="edge", color=colours, edgecolor="white", lw=0.4
        )
        if seconds_per_token >= 0.07:
            for start, code in zip(starts, codes, strict=True):
                centre = start + seconds_per_token / 2
                axes.text(centre, -depth / 2, str(code), rotation=90, fontsize=5.5, ha="center", va="center")
        axes.set(xlim=(0, max(seconds, len(codes) * seconds_per_token)), ylim=(-depth, mel.shape[0]), xlabel="seconds")
        axes.set_yticks([])
    return out.getvalue()


def mel_above_mel(original: np.ndarray, made: np.ndarray, seconds_per_frame: float) -> bytes:
    """Two (M, F) log-mels, the original above, in the same colours; their lengths may differ."""
    out = io.BytesIO()
    frames = max(original.shape[1], made.shape[1])
    seconds = frames * seconds_per_frame
    low, high = float(np.min(original, initial=0.0)), float(np.max(original, initial=-1.0))
    gap = np.full((2, frames), np.nan)
    rows = [np.pad(mel, ((0, 0), (0, frames - mel.shape[1])), constant_values=low) for mel in (made, original)]
    with _drawn(out, min(14.0, 2.0 + 1.6 * seconds), 3.6) as (_, axes):
        stacked = np.concatenate([rows[0], gap, rows[1]])
        extent = (0, seconds, 0, len(stacked))
        axes.imshow(stacked, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=low, vmax=high)
        axes.set_yticks([len(rows[0]) / 2, len(stacked) - len(rows[1]) / 2], ["made", "original"])
        axes.set(xlabel="seconds")
    return out.getvalue()


def rank_frequency(counts: np.ndarray | dict[str, np.ndarray]) -> bytes:
    """How often the most frequent code occurs, the second, …; both axes logarithmic. A line for each set with a name."""
    out = io.BytesIO()
    by_set = counts if isinstance(counts, dict) else {"": counts}
    colours = ["#2a7de1", *plt.get_cmap("tab10")(np.arange(1, 10))]
    with _drawn(out, 5.0, 3.0) as (_, axes):
        for i, (name, of_set) in enumerate(by_set.items()):
            ordered = np.sort(of_set[of_set > 0])[::-1]
            axes.loglog(np.arange(1, len(ordered) + 1), ordered, color=colours[i % len(colours)], lw=2, label=name)
        axes.set(xlabel="code, by rank", ylabel="occurrences")
        if any(by_set):
            axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return out.getvalue()


def codebook_map(codebook: np.ndarray, counts: np.ndarray) -> bytes:
    """(V, D) vectors on their two main axes, coloured and sized by how often they occur."""
    out = io.BytesIO()
    centred = codebook - codebook.mean(axis=0)
    _, _, axes_of_variance = np.linalg.svd(centred, full_matrices=False)
    x, y = (centred @ axes_of_variance[:2].T).T
    with _drawn(out, 5.0, 3.0) as (figure, axes):
        points = axes.scatter(x, y, s=4 + 30 * counts / max(1, counts.max()), c=np.log10(1 + counts), cmap="viridis")
        axes.set(xlabel="first main axis", ylabel="second")
        figure.colorbar(points, ax=axes, label="log10(1 + occurrences)")
    return out.getvalue()


def curves(series: dict[str, tuple[list[float], list[float]]], xlabel: str, ylabel: str) -> bytes:
    """Lines by name, each from its x and y."""
    out = io.BytesIO()
    with _drawn(out, 5.0, 3.0) as (_, axes):
        for name, (x, y) in series.items():
            axes.plot(x, y, lw=1.6, label=name, marker="o" if len(x) < 8 else None, ms=3)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return out.getvalue()


def bars(edges: list[float], counts: list[int], xlabel: str, log: bool = False) -> bytes:
    """Counts over the lower limits of their bins; `log` for limits that grow by a factor."""
    out = io.BytesIO()
    with _drawn(out, 5.0, 2.6) as (_, axes):
        last = edges[-1] + (edges[-1] - edges[-2] if len(edges) > 1 else 1.0)
        axes.stairs(counts, [*edges, last], fill=True, color="#2a7de1")
        if log:
            axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel="how many")
    return out.getvalue()
