"""The tour's page: what each step did and learnt, with sounds, and the command that does the same at scale."""

from pathlib import Path

from speechlm.evals.pictures import curves
from speechlm.evals.report_page import Page, card, code, picture, plain, words
from speechlm.files import write_text_atomic
from speechlm.guide import sounds
from speechlm.guide.learnt import learnt, measures
from speechlm.guide.plan import Plan
from speechlm.guide.record import Record
from speechlm.guide.samples import interleaved_samples
from speechlm.guide.step import Step


def write_page(out: Path, plan: Plan, steps: list[Step], record: Record) -> Path:
    """Put `report.html` into the tour's folder.

    Args:
        out: the folder.
        plan: of the tour.
        steps: of the tour.
        record: what each took.

    Returns:
        Where it is.
    """
    made = Page("From a recording to a model that speaks: the tour", plan.lead)
    minutes = sum(record.seconds(step) for step in steps) / 60
    made.heading("What was done", f"{len(steps)} commands, {minutes:.1f} minutes in all.")
    made.table(
        ["step", "seconds", "held out: at first, at last"],
        [[s.title, f"{record.seconds(s):.0f}", gain(out, s)] for s in steps],
    )
    made.heading("Learning", "On what was held out. Step 0 is before anything was learnt here.")
    made.cards([card(picture(png, run), words(run)) for run, png in _curves(out, steps)])
    made.heading("Recordings", "As they are, and as decoder and vocoder say their tokens.")
    made.cards(sounds.recordings(plan, out))
    made.heading("Texts that were spoken", "By the text-to-token model, which has seen these texts in training.")
    made.cards(sounds.spoken_texts(out))
    made.heading(
        "Questions and answers", "Recorded questions; the reply's text and sound come in turns from one model."
    )
    made.cards(sounds.answers(plan, out))
    made.heading(
        "Measured", "A small recogniser listens, which itself gets every second word of an unheard prompt wrong."
    )
    made.table(["task", "measure", "value", "95 % interval", "items"], sounds.measured(out))
    made.heading(
        "Interleaved documents", "Text in turns with the tokens of what comes next; numbers are speech tokens."
    )
    samples = interleaved_samples(out / "interleaved" / "heldout", plan.text_tokenizer)
    made.cards([card(plain(text)) for text in samples], grid=False)
    made.heading("The same by hand, and at scale")
    shown = [(s.title, s.command, f"at scale: {s.at_scale}" if s.at_scale else "") for s in steps]
    made.cards([card(words(title), code(here), words(scale)) for title, here, scale in shown], grid=False)
    path = out / "report.html"
    write_text_atomic(path, made.render())
    return path


def gain(out: Path, step: Step) -> str:
    """How far a step's measure fell, "" for one that trains nothing."""
    if not step.run:
        return ""
    found = learnt(out / step.run, step.learnt or next(n for n in measures(out / step.run) if n.endswith("/loss")))
    return f"{found.name} {found.values[0]:.3g} → {found.values[-1]:.3g}"


def _curves(out: Path, steps: list[Step]) -> list[tuple[str, bytes]]:
    made = []
    for run in [step.run for step in steps if step.run]:
        found = [learnt(out / run, name) for name in measures(out / run)]
        series = {one.name.removeprefix("val/"): ([float(n) for n in one.steps], one.values) for one in found}
        made.append((run, curves(series, "step", "loss, error rate")))
    return made
