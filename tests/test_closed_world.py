"""The closed world: what is only written is never said, and speech says what the text says."""

import numpy as np
import pytest

from speechlm.evals.base_asr import BaseASR
from speechlm.evals.closed_world import ALPHABET, NEIGHBOURS, RELATIONS, World, pairs, questions, recordings, sentence
from speechlm.evals.story_cloze import StoryCloze


def test_a_world_is_the_same_for_the_same_numbers_and_another_for_another_seed():
    assert World(20).facts == World(20).facts
    assert World(20).facts != World(20, seed=1).facts
    assert len({fact.name for fact in World(200).facts}) == 200


def test_what_is_only_written_is_told_in_text_and_never_said():
    world = World(20)
    hidden = [fact for fact in world.facts if fact.written_only]
    assert 0.1 * len(world.facts) < len(hidden) < 0.4 * len(world.facts)
    for fact in hidden:
        forms = {sentence(fact, wording) for wording in range(3)}
        said = " . ".join(world.documents(500, True, np.random.default_rng(0)))
        told = " . ".join(world.documents(500, False, np.random.default_rng(0)))
        assert not any(form in said for form in forms)
        assert any(form in told for form in forms)


def test_names_and_values_of_what_is_only_written_are_heard_in_other_facts():
    world = World(40)
    said = " ".join(world.documents(2000, True, np.random.default_rng(0))).split()
    able = {fact.name for fact in world.facts if not fact.written_only}
    assert able <= set(said)
    assert {value for _, values in RELATIONS.values() for value in values} <= set(said)


def test_letters_can_be_read_from_speech_whatever_the_voice_and_rhythm():
    world = World(5)
    text = "belmo lives in paris . belmo wears red"
    for seed in range(6):
        codes = world.spoken(text, np.random.default_rng(seed))
        assert 0 <= codes.min() and codes.max() < world.num_codes
        letters = codes // (NEIGHBOURS * world.voices)
        heard = "".join(ALPHABET[i] for i, before in zip(letters, [-1, *codes[:-1]], strict=True) if i >= 0)
        squeezed = "".join(c for i, c in enumerate(heard) if i == 0 or codes[i] != codes[i - 1])
        assert squeezed == text.replace(".", "").replace("  ", "  ")
    assert len({tuple(world.spoken(text, np.random.default_rng(seed))) for seed in range(6)}) > 3


def test_what_is_said_first_sounds_the_same_whatever_comes_later():
    world = World(5)
    opening = world.spoken("the food of belmo is ", np.random.default_rng(3))
    whole = world.spoken("the food of belmo is soup", np.random.default_rng(3))
    assert whole[: len(opening) - 1].tolist() == opening[:-1].tolist()  # the pause itself sounds by what follows


def test_the_first_option_is_right_and_all_options_differ():
    for question in questions(World(10).facts, wording=1):
        assert question.options[0] == question.fact.value
        assert sorted(question.options) == sorted(RELATIONS[question.fact.relation][1])
        assert question.prompt + " " + question.fact.value == sentence(question.fact, 1)


@pytest.mark.parametrize("bad", [{"people": 0}, {"written_only": 1.0}, {"voices": 0}])
def test_impossible_worlds_are_refused(bad: dict[str, float]):
    with pytest.raises(ValueError, match="a world needs"):
        World(**bad)


def test_pairs_ask_every_fact_once_and_say_what_they_write():
    world = World(20)
    made = list(pairs(world))
    assert made == list(pairs(world)) and len({item["id"] for item in made}) == len(made) == len(world.facts)
    for item, fact in zip(made, world.facts, strict=True):
        assert StoryCloze("items").check(item) == ""
        assert item["positive"]["text"] == fact.value != item["negative"]["text"]
        assert item["negative"]["text"] in RELATIONS[fact.relation][1]
        assert f"{item['context']['text']} {fact.value}" == sentence(fact, 0)
        assert item["group"] == ("written only" if fact.written_only else "also spoken")
        voices = {
            code % world.voices for field in ("context", "positive", "negative") for code in item[field]["tokens"]
        }
        assert len(voices) == 1
        assert item["negative"]["tokens"] != item["positive"]["tokens"]
    assert all(BaseASR("items").check(item) == "" for item in recordings(world, 5))
