"""How much of what: the parts that sources of rows have in a mixture, and how it changes in the course of training."""

from dataclasses import dataclass

from speechlm.tokens.order import Phase


@dataclass(frozen=True)
class RowSource:
    """A folder of packed rows and its part of the mixture: a weight, or so many epochs, or what the others leave.

    Args:
        path: folder that `speechlm.pack` has made.
        weight: share of all rows.
        epochs: how often each row comes, before annealing; needs `total_tokens`.
        rest: shares what sources with a weight or epochs leave, by number of rows with the others of this kind.
        name: in metrics; the folder's name if empty.
        language: code such as "en"; what the folder says if empty.
    """

    path: str
    weight: float | None = None
    epochs: float | None = None
    rest: bool = False
    name: str = ""
    language: str = ""

    def __post_init__(self) -> None:
        if (self.weight is not None) + (self.epochs is not None) + self.rest != 1:
            raise ValueError(f"a source has one of weight, epochs and rest, got {self}")
        share = self.weight if self.weight is not None else self.epochs
        if share is not None and not 0 <= share < float("inf"):
            raise ValueError(f"weight and epochs must be numbers of at least 0, got {self}")

    @property
    def label(self) -> str:
        """The name, or that of the folder."""
        return self.name or self.path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Anneal:
    """Another mixture at the end of training, usually of the best data.

    Args:
        share: of all rows.
        weights: share of each source by name, summing to 1; what is not named does not come.
    """

    share: float
    weights: dict[str, float]

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"annealing takes a share between 0 and 1 of the rows, got {self.share}")


@dataclass(frozen=True)
class Lesson:
    """Shorter sequences for a part of training: rows are cut into equal parts, so a batch has as many ids as ever.

    Args:
        until: share of all rows, counted from the beginning.
        seq_len: ids of a sequence, which must divide the rows' length.
    """

    until: float
    seq_len: int


def phases(sources: list[RowSource], sizes: list[int], total: int | None, anneal: Anneal | None) -> list[Phase]:
    """The mixtures of a training run.

    Args:
        sources: of the rows.
        sizes: rows of each.
        total: rows of the run; None never ends.
        anneal: the mixture at the end.

    Raises:
        ValueError: weights do not add up, or the annealing names a source that is not there.
    """
    if anneal is None or total is None:
        return [Phase(shares(sources, sizes, total), total)]
    labels = [source.label for source in sources]
    unknown = set(anneal.weights) - set(labels)
    if unknown:
        raise ValueError(f"anneal.weights names {sorted(unknown)}; the sources are {labels}")
    last = min(max(1, round(anneal.share * total)), total - 1)
    main = Phase(shares(sources, sizes, total - last), total - last)
    return [main, Phase(tuple(anneal.weights.get(label, 0.0) for label in labels), last)]


def shares(sources: list[RowSource], sizes: list[int], total: int | None) -> tuple[float, ...]:
    """Weights that sum to 1, from weights, epochs and rests.

    Raises:
        ValueError: they do not add up.
    """
    given = [
        source.weight if source.weight is not None else (source.epochs or 0.0) * size / (total or 1)
        for source, size in zip(sources, sizes, strict=True)
    ]
    resting = sum(size for source, size in zip(sources, sizes, strict=True) if source.rest)
    left = 1.0 - sum(given)
    said = ", ".join(f"{source.label} {share:.6g}" for source, share in zip(sources, given, strict=True))
    if resting and left <= 0:
        raise ValueError(f"weights and epochs take {1 - left:.6g} of the rows and leave no rest: {said}")
    if not resting and abs(left) > 1e-6:
        raise ValueError(f"the weights sum to {1 - left:.6g} instead of 1, and no source takes the rest: {said}")
    return tuple(
        left * size / resting if source.rest else share
        for source, size, share in zip(sources, sizes, given, strict=True)
    )
