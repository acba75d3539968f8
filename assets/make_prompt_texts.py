"""Writes sentences in the manner of telephone prompts, for a synthetic voice to read: digits, dates, menus, recombined prompts.

    python assets/make_prompt_texts.py PROMPTS.txt --cuts assets/asterisk-en/train.jsonl.gz \
        --never assets/asterisk-en/heldout.jsonl.gz --count 6000

No sentence equals or contains a transcript of `--never`, compared as the tokenizer of `build_whisper_nano.py` writes them. That
is strict: where a single word is held out, no sentence has that word.
"""

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from build_whisper_nano import ONES, TEENS, TENS, english_normalizer
from lhotse import load_manifest_lazy


def listed(text: str) -> list[str]:
    """The entries of a text, parted by bars."""
    return text.split("|")


DAYS = listed("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
MONTHS = listed("January|February|March|April|May|June|July|August|September|October|November|December")
ORDINALS = listed(
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth|fourteenth|fifteenth|"
    "sixteenth|seventeenth|eighteenth|nineteenth|twentieth|thirtieth|fortieth|fiftieth|sixtieth|seventieth|eightieth|"
    "ninetieth|hundredth|thousandth|millionth"
)
CODE_WORDS = listed(
    "alpha|bravo|charlie|delta|echo|foxtrot|golf|hotel|india|juliet|kilo|lima|mike|november|oscar|papa|quebec|romeo|sierra|"
    "tango|uniform|victor|whiskey|x-ray|yankee|zulu|niner"
)
SIGNS = listed(
    "dash|dot|comma|colon|slash|backslash|star|pound|hash|plus|equals|percent|quote|tilde|space|dollar|at|left bracket|"
    "right brace|open parenthesis|close parenthesis|question mark|semicolon|underscore|ampersand|less than|greater than"
)
THINGS = listed(
    "agent number|account number|extension|password|mailbox number|conference number|channel number|pin number|"
    "telephone number|area code|zip code|credit card number|passcode|new greeting|last name|first name|code"
)
ACTIONS = listed(
    "listen to your messages|hear more options|repeat this menu|speak with an operator|leave a message|change your greeting|"
    "delete this message|save this message|cancel|continue|go back|return to the previous menu|check your balance|"
    "hear the time and date|call this person|transfer this call|record a new greeting|join the conference|try again"
)
PHRASES = listed(
    "please hold|thank you|goodbye|hello|one moment please|please wait|please try again|I'm sorry|you have entered an "
    "invalid number|that is not a valid choice|your message has been sent|message saved|message deleted|no one is available "
    "to take your call|the line is busy|please leave a message after the beep|the office is closed|your call is important "
    "to us|call transferred|recording stopped|access denied|access granted|not available|transfer complete|welcome"
)
PLACES = listed("inbox|old messages|work messages|family messages|friends|urgent messages|saved messages|new messages")
CONTINUE = 0.15  # chance of following one word instead of two, where recombined prompts change over
STOP = ""

Rule = Callable[[random.Random], str]


def number(n: int) -> str:
    """0 to 999999 in words."""
    if n >= 1000:
        rest = number(n % 1000) if n % 1000 else ""
        return f"{number(n // 1000)} thousand {rest}".strip()
    if n >= 100:
        rest = number(n % 100) if n % 100 else ""
        return f"{ONES[n // 100]} hundred {rest}".strip()
    if n >= 20:
        return f"{TENS[n // 10 - 2]} {ONES[n % 10] if n % 10 else ''}".strip()
    return [*ONES, *TEENS][n]


def any_number(rng: random.Random) -> str:
    """As often small as large."""
    return number(rng.randrange(10 ** rng.choice([1, 2, 2, 3, 4, 6])))


def digits(rng: random.Random) -> str:
    """A run of digits, as a telephone number is read."""
    return " ".join(rng.choice(ONES + ["oh"]) for _ in range(rng.randint(2, 8)))


def letters(rng: random.Random) -> str:
    """Letters, code words or signs, one to six."""
    kind = rng.choice([list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), CODE_WORDS, SIGNS, ORDINALS])
    return ", ".join(rng.choice(kind) for _ in range(rng.choice([1, 2, 3, 4, 6])))


def date(rng: random.Random) -> str:
    """A weekday, a month and a day, a clock time, or all of them."""
    hour = number(rng.randint(1, 12))
    minute = rng.choice([f"oh {number(rng.randint(1, 9))}", number(rng.randint(10, 59))])
    time = f"{rng.choice(['', 'at '])}{hour} {minute} {rng.choice(['A.M.', 'P.M.', ''])}".strip()
    day = f"{rng.choice(MONTHS)} {rng.choice(ORDINALS[:20])}"
    return rng.choice([time, day, rng.choice(DAYS), f"{rng.choice(DAYS)}, {day}", f"{rng.choice(DAYS)} {time}"])


def key(rng: random.Random) -> str:
    """A key of the telephone."""
    return rng.choice([*ONES, "star", "pound"])


def menu(rng: random.Random) -> str:
    """One to three choices."""
    sentences = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        verb, pressed, action = rng.choice(["press", "press", "dial"]), key(rng), rng.choice(ACTIONS)
        sentences.append(rng.choice([f"{verb} {pressed} to {action}", f"to {action}, {verb} {pressed}"]))
    return rng.choice([", ", ". ", " or "]).join(sentences)


def service(rng: random.Random) -> str:
    """What voicemail, queues and conferences say."""
    n, thing = any_number(rng), rng.choice(THINGS)
    return rng.choice(
        [
            f"please enter your {thing}, followed by the {rng.choice(['pound', 'hash', 'star'])} key",
            f"your {thing} is {digits(rng)}",
            f"that {thing} is not valid, please try again",
            f"you have {n} {rng.choice(['new', 'old', 'urgent', 'unheard'])} messages",
            f"there are {n} {rng.choice(['callers', 'participants', 'users'])} in the {rng.choice(['queue', 'conference'])}",
            f"extension {digits(rng)} is {rng.choice(['busy', 'unavailable', 'not answering', 'on the phone'])}",
            f"press {key(rng)} for {rng.choice(PLACES)}",
            f"message received {date(rng)}",
            f"this message lasts {n} {rng.choice(['seconds', 'minutes', 'hours'])}",
            f"the total is {n} dollars and {number(rng.randrange(100))} cents",
            f"{rng.choice(PHRASES)}, {rng.choice(PHRASES)}",
            rng.choice(PHRASES),
        ]
    )


def recombiner(texts: list[str]) -> Rule:
    """A rule that walks through prompts word by word and now and then crosses over into another one."""
    follow: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for text in texts:
        words = [STOP, *text.split(), STOP]
        for before, word, after in zip([STOP, *words], words, words[1:], strict=False):
            follow[before, word].append(after)
            follow[word,].append(after)

    def rule(rng: random.Random) -> str:
        words = [STOP, STOP]
        while len(words) < 3 or (words[-1] != STOP and len(words) < 32):
            crossing = len(words) > 2 and rng.random() < CONTINUE
            words.append(rng.choice(follow[words[-1],] if crossing else follow[words[-2], words[-1]]))
        return " ".join(words).strip()

    return rule


def transcripts(paths: list[Path]) -> list[str]:
    """Sentences of cut manifests as the tokenizer writes them."""
    whole = [cut.supervisions[0].text for path in paths for cut in load_manifest_lazy(path)]
    normalise = english_normalizer().normalize_str
    return [normalise(part) for text in whole for part in [text, *re.split(r"(?<=[.?!]) ", text)] if normalise(part)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="text file to write, a sentence a line")
    parser.add_argument("--cuts", type=Path, nargs="+", required=True, help="manifests whose prompts are recombined")
    parser.add_argument("--never", type=Path, nargs="*", default=[], help="manifests of held-out recordings")
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, normalise = random.Random(args.seed), english_normalizer().normalize_str
    held = {normalise(cut.supervisions[0].text) for path in args.never for cut in load_manifest_lazy(path)}
    banned = re.compile(rf"(?<![a-z'])({'|'.join(map(re.escape, sorted(held)))})(?![a-z'])") if held else None
    recombined = recombiner(transcripts(args.cuts))
    rules = [recombined, recombined, recombined, menu, service, service, any_number, digits, letters, date]
    kept: dict[str, str] = {}
    while len(kept) < args.count:
        text = rng.choice(rules)(rng)
        if text and not (banned and banned.search(normalise(text))):
            kept.setdefault(normalise(text), text)
    args.out.write_text("\n".join(kept.values()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
