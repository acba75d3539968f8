"""What a way through all stages is made of: corpora, and a config for each stage."""

from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser

PARTS = ("train", "heldout")


@dataclass(frozen=True)
class Plan:
    """One way from recordings and texts to a model that answers in speech.

    Args:
        name: of the folder under `runs` where everything goes.
        lead: what the page says first: what came of it, and what did not.
        cuts: manifests of recordings with transcripts, `train` and `heldout`.
        texts: files of texts, likewise.
        chats: files of text chats, likewise.
        text_tokenizer: name or folder, of the language models.
        tokenizer: config of the speech tokenizer's training.
        tokenize: config of the tokens' making.
        text_to_token: config of the text-to-token model's training.
        synthesize: config of the interleaved documents' making.
        speech_lm: config of the language model's training, which is trained once more without interleaved documents.
        synthesize_chat: config of the spoken dialogues' making.
        chat: config of the chat tuning.
        flow_decoder: config of the flow decoder's training, on the tokens of `cuts`.
        vocoder: config of the vocoder's training, likewise.
        evaluate: config of the evaluation.
        tasks: of the evaluation, with the part of `cuts` that each is asked, "" where its config says.
        recordings: heard again through tokens, by name.
        questions: recordings that are answered at the end, by name.
        row_len: ids of a row.
        language: of all of it.
        hours: wall time that a training may take, by run; a run without one takes the steps of its config.
    """

    name: str
    lead: str
    cuts: dict[str, str]
    texts: dict[str, str]
    chats: dict[str, str]
    text_tokenizer: str
    tokenizer: str
    tokenize: str
    text_to_token: str
    synthesize: str
    speech_lm: str
    synthesize_chat: str
    chat: str
    flow_decoder: str
    vocoder: str
    evaluate: str
    tasks: dict[str, str]
    recordings: dict[str, str] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    row_len: int = 256
    language: str = "en"
    hours: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, parts in (("cuts", self.cuts), ("texts", self.texts), ("chats", self.chats)):
            if set(parts) != set(PARTS):
                raise ValueError(f"{what} must name {' and '.join(PARTS)}, got {sorted(parts)}")
        odd = {task: part for task, part in self.tasks.items() if part and part not in PARTS}
        if odd:
            raise ValueError(f"tasks are asked {' or '.join(PARTS)}, or '' for what their config says, got {odd}")
        if any(hours <= 0 for hours in self.hours.values()):
            raise ValueError(f"hours must be positive, got {self.hours}")


def load_plan(path: str | Path) -> Plan:
    """A plan from its YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the message names what is wrong in it.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Plan, "plan")
    text = Path(path).read_text(encoding="utf-8")
    try:
        indented = "".join(f"  {line}\n" for line in text.splitlines())
        parsed = parser.parse_string(f"plan:\n{indented}")
        plan = parser.instantiate(parsed).plan
    except Exception as error:  # jsonargparse raises what its readers do
        raise ValueError(f"{path}: {error}") from error
    assert isinstance(plan, Plan)
    return plan
