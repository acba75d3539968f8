"""Writes assets/eval-tiny: items of every task in miniature, whose speech is a tone per letter (`speechlm.evals.planted`).

    python assets/build_eval_tiny.py

Everything is made up here, and in the public domain.
"""

import json
from pathlib import Path

from speechlm.evals.items import Item, Said, write_items
from speechlm.evals.planted import codes_of, write_tones

OUT = Path(__file__).parent / "eval-tiny"
SENTENCES = [
    ("the cat sat on the mat", "ann"),
    ("seven birds fly over the lake", "bob"),
    ("please close the door", "ann"),
    ("we will meet at noon", "bob"),
]
#: Right and wrong word; the right one is shorter, equal, and twice longer, so that what lengths do is known.
WORDS = [("cat", "catz"), ("dog", "dgo"), ("house", "hose"), ("river", "rivr")]
GRAMMAR = [
    ("agreement", "the dogs run", "the dogs runs"),
    ("agreement", "she sings", "she sing"),
    ("order", "a big tree", "big a tree"),
]
STORIES = [
    ("tom lost his key he looked all day", "he found it at last", "the moon is made of cheese"),
    ("mia baked bread it smelled good", "they all ate it", "she sold her car"),
    ("the rain fell for days the river rose", "the bridge was closed", "it closed the book"),
]
QUESTIONS = [
    ("what is the capital of france", ["Paris"]),
    ("how many legs has a spider", ["eight", "8"]),
    ("who wrote hamlet", ["William Shakespeare", "Shakespeare"]),
]
CONSISTENCY = [("gender_consistency", "hello there", "hello zhere"), ("bg_alignment", "good rain", "bad rain")]


def said(text: str) -> Said:
    """Text and its speech."""
    return {"text": text, "tokens": codes_of(text), "made_by": "tones"}


def pair(number: int, positive: str, negative: str, group: str = "") -> Item:
    """Of two sides without a context."""
    return {"id": f"pair-{number}", "group": group, "positive": said(positive), "negative": said(negative)}


def recordings() -> list[Item]:
    """Speech in files."""
    items = []
    for number, (text, speaker) in enumerate(SENTENCES):
        write_tones(OUT / "audio" / f"{number}.flac", text)
        speech = {"text": text, "audio": f"audio/{number}.flac"}
        items.append({"id": f"speech-{number}", "speech": speech, "language": "en", "speaker": speaker})
    return items


def main() -> None:
    """All files."""
    stories = [
        {"id": f"story-{n}", "context": said(context), "positive": said(right), "negative": said(wrong)}
        for n, (context, right, wrong) in enumerate(STORIES)
    ]
    topics = [{**story, "negative": said(STORIES[(n + 1) % len(STORIES)][1])} for n, story in enumerate(stories)]
    questions = [
        {"id": f"question-{n}", "question": said(question), "answers": answers}
        for n, (question, answers) in enumerate(QUESTIONS)
    ]
    shots = [{"id": "shot", "question": said("what colour is snow"), "answer": said("white"), "answers": ["white"]}]
    chats = [
        {"id": f"chat-{n}", "instruction": said(question), "references": answers}
        for n, (question, answers) in enumerate(QUESTIONS)
    ]
    files = {
        "swuggy": [
            pair(n, right, wrong, "in-vocabulary" if n < 2 else "oov") for n, (right, wrong) in enumerate(WORDS)
        ],
        "sblimp": [pair(n, right, wrong, group) for n, (group, right, wrong) in enumerate(GRAMMAR)],
        "salmon": [pair(n, right, wrong, group) for n, (group, right, wrong) in enumerate(CONSISTENCY)],
        "story_cloze": stories,
        "topic_story_cloze": topics,
        "questions": questions,
        "shots": shots,
        "chats": chats,
        "recordings": recordings(),
        "lm_eval": [{"id": "none", "task": "hellaswag", "limit": 10}],
    }
    for name, items in files.items():
        write_items(OUT / f"{name}.jsonl", items)
    (OUT / "README.md").write_text(
        "Items of every evaluation in miniature, written by `assets/build_eval_tiny.py`; made up, public domain.\n"
    )
    print(json.dumps({name: len(items) for name, items in files.items()}))


if __name__ == "__main__":
    main()
