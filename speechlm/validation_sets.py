"""Validation sets go by the names that the data gives them, in metrics, samples and tables alike."""

from typing import Any


def set_name(trainer: Any, index: int) -> str:
    """What the data calls a validation set, or its number."""
    names = getattr(getattr(trainer, "datamodule", None), "val_names", None)
    return names[index] if names else str(index)
