"""What of a run goes into an export, and what is left out and why: every tensor of a stage has a place here, or it fails."""

from collections import Counter

from torch import nn

from speechlm.conservation import Account

#: Beginnings of names of a stage's tensors, the longest that fits counts; "" is what is written.
PARTS = {
    "model.lm.": "",
    "model.encoder.": "",
    "model.decoder.": "",
    "network.": "",
    "generator.": "",
    "ema.": "average of the weights",
    "average.": "average of the weights",
    "letter_readers.": "reader of letters, for training alone",
    "discriminator.": "judge, for training alone",
}


def account_of(stage: nn.Module, averaged: bool = False) -> Account:
    """Tensors of a stage, by what becomes of them.

    Args:
        stage: about to be exported.
        averaged: the average is written in the place of the weights.
    """
    written, left_out, total = 0, Counter[str](), 0
    average = "ema." if any(name.startswith("ema.") for name in stage.state_dict()) else "average."
    for name in stage.state_dict():
        total += 1
        fitting = [begin for begin in PARTS if name.startswith(begin)]
        if not fitting:
            continue
        reason = PARTS[max(fitting, key=len)]
        if averaged and name.startswith(average):
            written += 1
        elif averaged and _is_averaged(name, average, stage):
            left_out["weights, of which the average is written"] += 1
        elif reason:
            left_out[reason] += 1
        else:
            written += 1
    return Account("tensors", total, written, left_out, ("in the run", "written", "left out"))


def _is_averaged(name: str, average: str, stage: nn.Module) -> bool:
    """Whether there is an average in the place of a tensor; of a language model only what is trained has one."""
    place = "ema." + name.removeprefix("model.").replace(".", "/") if average == "ema." else ""
    place = place or name.replace("network.", "average.", 1)
    return place != name and place in stage.state_dict()
