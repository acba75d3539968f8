"""A small world of facts, some of which are only ever written: what a model knows of them when asked in speech, it carried over.

Made-up people have a home, an animal, a food and a colour. Every fact is told in text. A part of the facts, drawn at random
over people and relations, is told in text alone; the others are also spoken. Names, relations and values are all heard, in other
facts. So a model that hears "the food of Belmo is" can only go on rightly about a written-only fact if what it read reaches what
it hears.

Speech is made up: a code for each letter in its surroundings, in one of several voices, some letters held for longer. That is a
tokenizer and a text-to-token model without errors, so what is measured is the language model and its data alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from speechlm.evals.items import Item, Said

RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "home": (
        ("{name} lives in", "the home of {name} is", "to visit {name} go to"),
        ("paris", "london", "cairo", "tokyo", "lima", "oslo", "delhi", "rome", "boston", "dublin"),
    ),
    "animal": (
        ("{name} has a", "the pet of {name} is a", "{name} takes care of a"),
        ("dog", "horse", "goat", "parrot", "turtle", "rabbit", "pigeon", "donkey", "monkey", "lizard"),
    ),
    "food": (
        ("{name} likes to eat", "the food of {name} is", "{name} always cooks"),
        ("bread", "soup", "rice", "cheese", "pasta", "beans", "apples", "noodles", "carrots", "pancakes"),
    ),
    "colour": (
        ("{name} wears", "the colour of {name} is", "{name} paints the door in"),
        ("red", "blue", "green", "yellow", "purple", "orange", "silver", "black", "white", "brown"),
    ),
}
ONSETS, VOWELS, CODAS = list("bdfgklmnprstvz"), "aeiou", ["", "n", "l", "r", "s"]
HELD = 0.25  # chance that a vowel is held for a second code
NEIGHBOURS = 4  # a letter sounds by what follows: a vowel, a consonant, a pause, or nothing
ALPHABET = " abcdefghijklmnopqrstuvwxyz"

Part = Literal["text", "speech"]


class Fact(NamedTuple):
    """Somebody's value of a relation."""

    name: str
    relation: str
    value: str
    written_only: bool


@dataclass(frozen=True)
class World:
    """Facts, the same for the same numbers.

    Args:
        people: how many.
        written_only: share of the facts that nobody ever says.
        voices: how many ways each sound is coded.
        seed: of all of it.
    """

    people: int = 100
    written_only: float = 0.25
    voices: int = 3
    seed: int = 0
    facts: tuple[Fact, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.people < 1 or not 0 <= self.written_only < 1 or self.voices < 1:
            raise ValueError(f"a world needs people, voices and a share of written facts below 1, got {self}")
        object.__setattr__(self, "facts", tuple(self._facts()))

    @property
    def num_codes(self) -> int:
        """Size of the codebook that the world speaks in."""
        return len(ALPHABET) * NEIGHBOURS * self.voices

    def documents(self, count: int, said: bool, rng: np.random.Generator) -> Iterator[str]:
        """Texts of a few sentences about one person each.

        Args:
            count: how many.
            said: leave out the facts that are only written.
            rng: draws people, order and wording.
        """
        by_name: dict[str, list[Fact]] = {}
        for fact in self.facts:
            by_name.setdefault(fact.name, []).extend([fact] * (not (said and fact.written_only)))
        able = [name for name, facts in by_name.items() if facts]
        for _ in range(count):
            facts = by_name[able[rng.integers(len(able))]]
            yield " . ".join(sentence(facts[i], int(rng.integers(3))) for i in rng.permutation(len(facts)))

    def spoken(self, text: str, rng: np.random.Generator) -> np.ndarray:
        """(T,) codes of a text, in a voice and a rhythm that `rng` draws."""
        voice = int(rng.integers(self.voices))
        codes: list[int] = []
        for letter, following in zip(text, text[1:] + "\0", strict=True):
            if letter not in ALPHABET:
                continue
            around = 3 if following == "\0" else 2 if following not in ALPHABET[1:] else int(following in VOWELS)
            code = (ALPHABET.index(letter) * NEIGHBOURS + around) * self.voices + voice
            codes += [code] * (1 + (letter in VOWELS and rng.random() < HELD))
        return np.array(codes, np.int64)

    def _facts(self) -> Iterator[Fact]:
        rng = np.random.default_rng(self.seed)
        for name in _names(self.people, rng):
            for relation, (_, values) in RELATIONS.items():
                yield Fact(name, relation, values[rng.integers(len(values))], bool(rng.random() < self.written_only))


class Question(NamedTuple):
    """What is heard or read, and what may follow; the first option is right."""

    fact: Fact
    prompt: str
    options: tuple[str, ...]


def questions(facts: Sequence[Fact], wording: int = 0) -> list[Question]:
    """Each fact with its value left open, and all values of its relation to choose from."""
    return [
        Question(
            fact,
            RELATIONS[fact.relation][0][wording].format(name=fact.name),
            (fact.value, *(value for value in RELATIONS[fact.relation][1] if value != fact.value)),
        )
        for fact in facts
    ]


def pairs(world: World, wording: int = 0, seed: int = 0) -> Iterator[Item]:
    """Each fact as a context with its value and a wrong one, in text and in speech; items of `speechlm.evals.pairs`.

    The two parts are spoken by themselves, in the same voice. Groups are facts that are only written, and those also spoken.
    """
    rng = np.random.default_rng(seed)
    for question in questions(world.facts, wording):
        fact, voice = question.fact, int(rng.integers(2**32))
        wrong = question.options[rng.integers(1, len(question.options))]
        texts = {"context": question.prompt, "positive": fact.value, "negative": wrong}
        said = {field: _said(world, text, voice) for field, text in texts.items()}
        group = "written only" if fact.written_only else "also spoken"
        yield {"id": f"{fact.name} {fact.relation}", **said, "group": group}


def recordings(world: World, count: int = 60, seed: int = 3) -> Iterator[Item]:
    """Texts with their speech; items of `speechlm.evals.base_asr`."""
    rng = np.random.default_rng(seed)
    for number, text in enumerate(world.documents(count, True, rng)):
        yield {"id": f"document {number}", "speech": _said(world, text, int(rng.integers(2**32))), "language": "en"}


def _said(world: World, text: str, voice: int) -> Said:
    return {"text": text, "tokens": world.spoken(text, np.random.default_rng(voice)).tolist()}


def sentence(fact: Fact, wording: int) -> str:
    """A fact in one of three wordings, each of which ends with the value."""
    return f"{RELATIONS[fact.relation][0][wording].format(name=fact.name)} {fact.value}"


def _names(count: int, rng: np.random.Generator) -> list[str]:
    """Made-up names of two syllables, all different."""
    syllables = [onset + vowel + coda for onset in ONSETS for vowel in VOWELS for coda in CODAS]
    names = sorted(a + b for a in syllables for b in syllables)
    return [names[i] for i in rng.choice(len(names), count, replace=False)]
