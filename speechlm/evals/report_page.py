"""One HTML page that needs nothing else, of sounds, pictures and numbers: what every report is written with."""

import base64
from dataclasses import dataclass, field
from html import escape

import numpy as np

from speechlm.sound import encoded, resample

OPUS_RATES_HZ = (8000, 12_000, 16_000, 24_000, 48_000)

STYLE = """
:root { color-scheme: light dark;
  --ink: #1d2430; --soft: #5b6472; --line: #d9dee6; --paper: #fbfcfd; --card: #fff; --bad: #c22f3d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa4b2; --line: #2c3442; --paper: #12161d; --card: #191f29; --bad: #ff7d88; }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.2rem 5rem }
h1 { font-size: 2rem; margin: 0 0 .3rem; letter-spacing: -.02em }
h2 { margin: 2.8rem 0 .6rem; font-size: 1.25rem }
p.lead { color: var(--soft); margin: 0 0 1.6rem }
.note { color: var(--soft); font-size: .9rem }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto }
th, td { text-align: left; padding: .45rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap }
td:first-child { white-space: normal; min-width: 9rem }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.1rem;
  margin: 1rem 0 }
.card img { max-width: 100%; height: auto; display: block; margin: .5rem 0 }
audio { width: 100%; max-width: 24rem; height: 34px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .9rem }
.grid .card { margin: 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .6rem 0 0 }
dt { color: var(--soft) }
dd { margin: 0 }
mark { background: none; color: var(--bad); text-decoration: underline; text-underline-offset: 3px }
.spoken { background: color-mix(in srgb, #2a7de1 22%, transparent); border-radius: 4px; padding: .05em .15em;
  box-decoration-break: clone; -webkit-box-decoration-break: clone }
.text { white-space: pre-wrap; overflow-wrap: anywhere }
code { font-size: .88em; overflow-wrap: anywhere }
"""


@dataclass
class Page:
    """A page written from top to bottom. Everything handed in as text is escaped; markup comes from these methods alone."""

    title: str
    lead: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str, note: str = "") -> None:
        """A section's heading and a sentence under it."""
        self.parts.append(f"<h2>{escape(text)}</h2>" + (f'<p class="note">{escape(note)}</p>' if note else ""))

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        """A table of texts."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self.parts.append(
            f'<div class="scroll card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def cards(self, cards: list[str], grid: bool = True) -> None:
        """Cards made by `card`, side by side or one under the other."""
        inner = "".join(cards)
        self.parts.append(f'<div class="grid">{inner}</div>' if grid else inner)

    def render(self) -> str:
        """The whole page."""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
            f'initial-scale=1"><title>{escape(self.title)}</title><style>{STYLE}</style></head><body><main>'
            f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p>{"".join(self.parts)}</main></body></html>'
        )


def card(*parts: str) -> str:
    """A framed group of parts made by the functions below."""
    return f'<div class="card">{"".join(parts)}</div>'


def words(text: str) -> str:
    """A line of text."""
    return f"<div>{escape(text)}</div>"


def code(text: str) -> str:
    """A command, to be copied."""
    return f"<div><code>{escape(text)}</code></div>"


def picture(png: bytes, alt: str) -> str:
    """An inline picture."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def player(audio: np.ndarray, sample_rate_hz: int) -> str:
    """An inline player of a (N,) waveform, as Opus, at the next rate that Opus knows."""
    rate_hz = next((rate for rate in OPUS_RATES_HZ if rate >= sample_rate_hz), OPUS_RATES_HZ[-1])
    sound = base64.b64encode(encoded(resample(audio, sample_rate_hz, rate_hz), rate_hz, "OGG", "OPUS")).decode()
    return f'<audio controls preload="none" src="data:audio/ogg;base64,{sound}"></audio>'


def facts(pairs: list[tuple[str, str]]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def marked(pairs: list[tuple[str, bool]]) -> str:
    """Words, the wrong ones marked."""
    return " ".join(f"<mark>{escape(word)}</mark>" if wrong else escape(word) for word, wrong in pairs) or "&nbsp;"


def highlighted(pieces: list[tuple[str, bool]]) -> str:
    """A text in pieces, some of them on a coloured ground."""
    shown = (f'<span class="spoken">{escape(text)}</span>' if spoken else escape(text) for text, spoken in pieces)
    return f'<div class="text">{"".join(shown)}</div>'


def plain(text: str) -> str:
    """Text as it is."""
    return escape(text) or "&nbsp;"
