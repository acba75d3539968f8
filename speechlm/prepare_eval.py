"""Evaluation sets as they are published -> items, spoken by a text-to-token model where they are only written.

python -m speechlm.prepare_eval swuggy --corpus data/zerospeech2021 --out data/eval/swuggy.jsonl
python -m speechlm.prepare_eval sblimp --corpus data/zerospeech2021 --out data/eval/sblimp.jsonl
python -m speechlm.prepare_eval salmon --corpus data/salmon_benchmark --out data/eval/salmon.jsonl
python -m speechlm.prepare_eval story_cloze --table data/cloze_test.csv --out data/eval/story_cloze.jsonl --speak models/text_to_token
python -m speechlm.prepare_eval spoken_story_cloze --corpus data/sSC --out data/eval/spoken_story_cloze.jsonl
python -m speechlm.prepare_eval web_questions --path data/webquestions.test.json --out data/eval/web_questions.jsonl --speak models/text_to_token
python -m speechlm.prepare_eval trivia_qa --path data/verified-web-dev.json --out data/eval/trivia_qa.jsonl --speak models/text_to_token
python -m speechlm.prepare_eval llama_questions --table data/llama.csv --audio data/llama/audio --out data/eval/llama_questions.jsonl
python -m speechlm.prepare_eval seed_tts --corpus data/seedtts_testset --language zh --out data/eval/seed_tts_zh.jsonl
python -m speechlm.prepare_eval general_qa --alpaca data/alpaca_eval.json --vicuna data/question.jsonl --out data/eval/general_qa.jsonl --speak models/text_to_token
python -m speechlm.prepare_eval knowledge --sets '[data/eval/web_questions.jsonl, data/eval/trivia_qa.jsonl]' --out data/eval/knowledge.jsonl
python -m speechlm.prepare_eval recordings --cuts data/librispeech/test-clean.jsonl.gz --group test-clean --out data/eval/test_clean.jsonl
python -m speechlm.prepare_eval closed_world --people 40 --out data/eval/closed_world.jsonl --asr data/eval/closed_world_asr.jsonl
"""  # noqa: E501 - commands as they are typed

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from datamodules.eval_sets import questions, recordings, salmon, stories, texts, zerospeech
from datamodules.recipes.part_writer import Tally
from speechlm.conservation import Account
from speechlm.devices import choose_device
from speechlm.engines.base import Sampling
from speechlm.evals import closed_world
from speechlm.evals.items import Item, said_fields, write_items
from speechlm.evals.parts import TextToSpeechTokens
from speechlm.evaluated import Judges, ModelParts
from speechlm.hidden_secrets import hide_secrets
from speechlm.ranks import find_rank

GROUP = 64  # fields that are spoken together


def speak_items(items: Sequence[Item], speaker: TextToSpeechTokens, made_by: str, language: str = "en") -> list[Item]:
    """Items with `tokens` for everything that is only written; those that can not be spoken are left out.

    Args:
        items: whose fields have a text.
        speaker: the text-to-token model.
        made_by: hash of the tokenizer whose codes it speaks.
        language: of the texts.
    """
    silent = [s for item in items for s in said_fields(item).values() if s.get("text") and not _is_said(s)]
    for begin in range(0, len(silent), GROUP):
        group = silent[begin : begin + GROUP]
        for said, codes in zip(group, speaker.speak([s["text"] for s in group], [language] * len(group)), strict=True):
            said["made_by"] = made_by
            said["tokens"] = codes
    return [item for item in items if all(s.get("audio") or s.get("tokens") for s in said_fields(item).values())]


def write(
    items: Iterable[Item],
    out: Path,
    speak: str = "",
    language: str = "en",
    device: str = "auto",
    tally: Tally | None = None,
) -> None:
    """Write items, spoken where a model is given, and say what became of how many.

    Args:
        items: of the set.
        out: the file.
        speak: folder of a text-to-token model.
        language: of what it speaks.
        device: of it.
        tally: of a reader that leaves something out; it has counted everything once `items` are at their end.

    Raises:
        Unaccounted: an item is neither in the file nor left out for a reason.
    """
    found = list(items)
    tally, kept = tally or Tally(found=len(found)), found
    if speak:
        parts = ModelParts(
            {"text_to_token": speak}, Judges(), choose_device(device, find_rank().local_rank), Sampling(temperature=0.0)
        )
        kept = speak_items(found, parts.text_to_token, parts.hash_of("codes"), language)
    there = set(map(id, kept))
    lost = [item["id"] for item in found if id(item) not in there]
    tally.left_out["not spoken"] += len(lost)
    words = ("found", "written", "left out")
    account = Account("items", tally.found, write_items(out, kept), tally.left_out, words).require(str(out))
    print(f"{out}: {account}" + (f"; not spoken: {', '.join(lost[:5])}" if lost else ""))


def _is_said(said: dict[str, Any]) -> bool:
    return bool(said.get("audio")) or bool(said.get("tokens"))


def swuggy(corpus: Path, out: Path, split: str = "dev") -> None:
    """sWUGGY of ZeroSpeech 2021."""
    write(zerospeech.swuggy(corpus, out, split), out)


def sblimp(corpus: Path, out: Path, split: str = "dev") -> None:
    """sBLIMP of ZeroSpeech 2021."""
    write(zerospeech.sblimp(corpus, out, split), out)


def salmon_set(corpus: Path, out: Path) -> None:
    """SALMon."""
    write(salmon.salmon(corpus, out), out)


def story_cloze(
    table: Path, out: Path, topic: bool = False, seed: int = 0, speak: str = "", device: str = "auto"
) -> None:
    """StoryCloze, or with --topic true Topic-StoryCloze, from the table of stories."""
    write(stories.story_cloze(table, topic, seed), out, speak, device=device)


def spoken_story_cloze(corpus: Path, out: Path) -> None:
    """Recordings of SpokenStoryCloze."""
    write(stories.spoken_story_cloze(corpus, out), out)


def web_questions(path: Path, out: Path, speak: str = "", device: str = "auto") -> None:
    """Web Questions."""
    write(questions.web_questions(path), out, speak, device=device)


def trivia_qa(path: Path, out: Path, speak: str = "", device: str = "auto") -> None:
    """TriviaQA."""
    write(questions.trivia_qa(path), out, speak, device=device)


def llama_questions(table: Path, out: Path, audio: Path | None = None, speak: str = "", device: str = "auto") -> None:
    """Llama Questions."""
    write(questions.llama_questions(table, out, audio), out, speak, device=device)


def seed_tts(corpus: Path, out: Path, language: str = "en") -> None:
    """Seed-TTS eval."""
    write(texts.seed_tts(corpus, out, language), out)


def general_qa(alpaca: Path, vicuna: Path, out: Path, speak: str = "", device: str = "auto") -> None:
    """Instructions of General QA."""
    tally = Tally()
    write(texts.general_qa(alpaca, vicuna, tally), out, speak, device=device, tally=tally)


def knowledge(
    sets: list[Path], out: Path, count: int = 100, seed: int = 0, speak: str = "", device: str = "auto"
) -> None:
    """Questions of Knowledge."""
    tally = Tally()
    write(texts.knowledge(sets, out, tally, count, seed), out, speak, device=device, tally=tally)


def recordings_set(cuts: Path, out: Path, group: str = "", language: str = "") -> None:
    """Recordings of a cut manifest: LibriSpeech, AISHELL-1, LibriTTS, VCTK."""
    write(recordings.recordings(cuts, out, group, language), out)


def closed_world_set(out: Path, asr: Path | None = None, people: int = 100) -> None:
    """Facts of the closed world as pairs, and with --asr its speech with transcripts."""
    world = closed_world.World(people)
    write(closed_world.pairs(world), out)
    if asr:
        write(closed_world.recordings(world), asr)


COMMANDS: dict[str, Callable[..., None]] = {
    "swuggy": swuggy,
    "sblimp": sblimp,
    "salmon": salmon_set,
    "story_cloze": story_cloze,
    "spoken_story_cloze": spoken_story_cloze,
    "web_questions": web_questions,
    "trivia_qa": trivia_qa,
    "llama_questions": llama_questions,
    "seed_tts": seed_tts,
    "general_qa": general_qa,
    "knowledge": knowledge,
    "recordings": recordings_set,
    "closed_world": closed_world_set,
}


def main(args: list[str] | None = None) -> None:
    """The command line; exits with 2 for an argument that is wrong, with 1 for a set that is."""
    hide_secrets()
    try:
        auto_cli(dict(COMMANDS), args=args, as_positional=False, prog="python -m speechlm.prepare_eval")
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
