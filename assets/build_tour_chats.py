"""Writes `assets/tour-chats`: questions and replies for the tour's chat tuning, all of them embedded prompts.

    python assets/build_tour_chats.py assets

Somebody says one thing, a number, a day, a letter, and the exchange answers by its kind, with a prompt that it has. Questions in
`train.jsonl` are texts of training recordings, those in `heldout.jsonl` of held-out ones; `questions.jsonl` and `known.jsonl` are
the recordings themselves, for `speechlm.evaluate`: of held-out words, and of words that were tuned on, by another voice's tokens.
"""

import argparse
import json
import re
from pathlib import Path
from typing import NamedTuple

from lhotse import load_manifest_lazy


def listed(text: str) -> list[str]:
    """The entries of a text, parted by bars."""
    return text.split("|")


TIMES = listed(
    "sunday|monday|tuesday|wednesday|thursday|friday|saturday|january|february|march|april|may|june|july|august|september|"
    "october|december|today|tomorrow|yesterday|a.m.|p.m.|o'clock|hours|minute|minutes"
)
NUMBERS = listed(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion"
)
CODE_WORDS = listed(
    "alpha|bravo|charlie|delta|echo|foxtrot|golf|hotel|india|juliet|kilo|lima|mike|oscar|papa|quebec|romeo|sierra|tango|"
    "uniform|victor|whiskey|xray|yankee|zulu|niner|zed"
)
SIGNS = listed(
    "dollar sign|semicolon|question mark|right bracket|caret|left brace|pipe|right brace|tilde|quote|percent|ampersand|tick|"
    "open parenthesis|close parenthesis|comma|colon|less than|greater than|left bracket|backslash|underscore|backtick|"
    "asterisk|dash|dot|equals|exclamation-point|plus|slash|space|minus|pound"
)
COPIES = 2  # of every training question; each is spoken anew
KNOWN = 5  # recordings of a kind in known.jsonl


class Kind(NamedTuple):
    """Things that get the same reply.

    Attributes:
        reply: a training prompt, as it is written there.
        answer: words of its beginning that no other reply has.
    """

    reply: str
    answer: str


KINDS = {
    "number": Kind("Please hold while I try that extension.", "hold"),
    "time": Kind("At the sound of the tone, the time will be exactly", "sound tone"),
    "ordinal": Kind("You are currently caller number", "currently caller"),
    "letter": Kind("There are no more compatible entries in the directory.", "no more"),
    "sign": Kind("That option is invalid. Please try again.", "option"),
    "menu": Kind("Thank you for your patience", "thank you"),
}


def kind_of(text: str) -> str:
    """The kind of a prompt, "" where it is none of them."""
    said = text.strip().lower()
    said = said if said in ("a.m.", "p.m.") else said.rstrip(".!")
    if said in TIMES:
        return "time"
    if said in NUMBERS:
        return "number"
    if re.fullmatch(r"[a-z]", said) or said in CODE_WORDS:
        return "letter"
    if said in SIGNS:
        return "sign"
    if re.fullmatch(r"(?:first|third|fi?f?th|[a-z]+th|[a-z]+ieth)", said) and said != "with":
        return "ordinal"
    return "menu" if re.match(r"press \w+ .*\w+ \w+", said) and len(said.split()) < 12 else ""


def chats(cuts: list, part: str, copies: int) -> list[dict]:
    """A line for each recording and copy, of those that have a kind; a text that was read twice counts once."""
    texts = {cut.supervisions[0].text.strip(): kind_of(cut.supervisions[0].text) for cut in cuts}
    return [
        {"id": f"{part}-{number}-{copy}", "question": text, "answer": KINDS[kind].reply}
        for number, (text, kind) in enumerate(texts.items())
        if kind
        for copy in range(copies)
    ]


def questions(cuts: list, root: str, of_a_kind: int | None) -> list[dict]:
    """Items of `speechlm.evals.spoken_qa`."""
    found: dict[str, list] = {kind: [] for kind in KINDS}
    for cut in cuts:
        if kind := kind_of(cut.supervisions[0].text):
            found[kind].append(cut)
    return [
        {
            "id": cut.id,
            "group": kind,
            "question": {
                "text": cut.supervisions[0].text,
                "audio": f"{root}/{Path(cut.recording.sources[0].source).name}",
            },
            "answers": [KINDS[kind].answer],
        }
        for kind, some in found.items()
        for cut in some[: of_a_kind or len(some)]
    ]


def main() -> None:
    """Write the four files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    folder = out / "tour-chats"
    folder.mkdir(exist_ok=True)
    cuts = {part: list(load_manifest_lazy(out / "asterisk-en" / f"{part}.jsonl.gz")) for part in ("train", "heldout")}
    lines = {
        "train": chats(cuts["train"], "train", COPIES),
        "heldout": chats(cuts["heldout"], "heldout", 1),
        "questions": questions(cuts["heldout"], "../asterisk-en/audio", None),
        "known": questions(cuts["train"], "../asterisk-en/audio", KNOWN),
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(name, len(rows))


if __name__ == "__main__":
    main()
