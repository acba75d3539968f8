"""The page in a real browser, its microphone fed from a recording."""

import shutil
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_chat import LIMITS, Running, serving, speech, tiny_voice

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
WAIT_MS = 60_000
KEY = "a-key-for-tests"


def recording(path: Path, speech_sec: float, silence_sec: float, rate_hz: int = 48_000) -> Path:
    """What the fake microphone hears, again and again: silence, then somebody."""
    audio = np.concatenate([np.zeros(round(silence_sec * rate_hz), np.float32), speech(speech_sec, rate_hz)])
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((audio * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    voice = tiny_voice(bundle, LIMITS)
    with serving(voice, api_key=KEY) as running:
        yield running
    voice.close()


@pytest.fixture(scope="module")
def open_page(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Opens the page in a browser of its own with a recording for a microphone; complaints of the page fail the test."""
    playwright = pytest.importorskip("playwright.sync_api")
    browsers: list[Any] = []
    with playwright.sync_playwright() as engine:

        def opened(speech_sec: float = 30.0, silence_sec: float = 0.1, key: str = KEY, **settings: Any) -> Any:
            heard = recording(tmp_path_factory.mktemp("heard") / "speech.wav", speech_sec, silence_sec)
            flags = [*FLAGS, f"--use-file-for-fake-audio-capture={heard}"]
            browser = engine.chromium.launch(executable_path=CHROMIUM, args=flags, headless=True)
            browsers.append(browser)
            page = browser.new_context(**settings).new_page()
            page.complaints = []
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.set_default_timeout(WAIT_MS)
            page.goto(server.url)
            if key:
                page.fill("#key", key)
                page.click("#door button")
                page.wait_for_selector("#connection[data-state=on]")
            return page

        yield opened
        for browser in browsers:
            browser.close()


def wait(page: Any, condition: str) -> None:
    """Until a condition holds; the page's own policy forbids what playwright would do for it."""
    for _ in range(WAIT_MS // 50):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}; {page.complaints}; {page.inner_text('body')[-300:]}")


def hold(page: Any, ms: int) -> None:
    """Hold the button and let go."""
    box = page.locator("#talk").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    wait(page, "talk.sending")
    page.wait_for_timeout(ms)
    page.mouse.up()


def done(page: Any, replies: int) -> None:
    """Wait for so many whole replies."""
    wait(page, f"document.querySelectorAll('#log .assistant .foot').length >= {replies} && !talk.underWay")


def seconds_of(page: Any, number: int = -1) -> float:
    """Sound of a reply that has come to the page."""
    return float(page.evaluate(f"[...talk.items.values()].filter(i => i.role === 'assistant').at({number}).seconds"))


def test_hold_speak_hear_a_reply_interrupt_it_and_go_on(open_page: Callable[..., Any], server: Running, tmp_path: Path):
    page = open_page()
    assert page.inner_text("#model") == "random" and page.inner_text("#template") == "plain"
    page.evaluate("""() => { window.usages = []; const old = talk.socket.onmessage;
        talk.socket.onmessage = (m) => { const e = JSON.parse(m.data);
        if (e.type === 'response.done') usages.push(e.response.usage); old(m); } }""")
    # a first turn: reply's sound, transcript, latency
    hold(page, 1200)
    done(page, 1)
    assert seconds_of(page) > 0.3 and page.inner_text("#log .assistant .said").strip()
    wait(page, "document.querySelector('#log .user .said').textContent.length > 0")
    assert page.inner_text("#first").endswith(" ms") and page.locator("#parts li").count() == 5
    assert page.evaluate("talk.player.queued") > 0.3, "it was played"
    # a second one, which has the first in its prompt
    hold(page, 1200)
    wait(page, "talk.items.size >= 4 && talk.player.playing")
    page.keyboard.press("Escape")
    assert not page.evaluate("talk.player.playing")
    done(page, 2)
    assert "interrupted" in page.inner_text("#log .assistant:last-child .foot")
    first, second = page.evaluate("usages")
    assert second["input_tokens"] > first["input_tokens"] + 20  # of the first reply as much as was heard
    # a third one, after the interruption, typed; what was not heard of the second is gone
    page.fill("#text", "and then?")
    page.keyboard.press("Enter")
    done(page, 3)
    third = page.evaluate("usages")[2]
    assert third["input_tokens"] < second["input_tokens"] + second["output_tokens"] + 30
    assert page.inner_text("#log .user:nth-last-child(2) .said") == "and then?"
    page.click("#log .assistant .replay >> nth=0")
    assert page.evaluate("talk.player.playing"), "a replay sounds"
    page.click("#stop")
    assert not page.evaluate("talk.player.playing") and page.complaints == []


def test_hands_free_finds_the_end_of_a_turn_and_speech_interrupts(open_page: Callable[..., Any]):
    page = open_page(speech_sec=1.2, silence_sec=1.0)  # somebody who does not stop asking
    page.check("#handsfree")
    page.wait_for_selector("#log .user")
    page.wait_for_selector("#log .assistant")
    wait(page, "[...talk.items.values()].some(i => i.role === 'assistant' && i.interrupted)")
    wait(page, "document.querySelectorAll('#log .assistant').length >= 2")
    page.click("#talk")
    assert page.get_attribute("#talk", "aria-pressed") == "false" and page.complaints == []


def test_a_wrong_key_is_asked_for_again(open_page: Callable[..., Any]):
    page = open_page(key="")
    page.wait_for_selector("#door[open]")
    page.fill("#key", "wrong")
    page.click("#door button")
    wait(page, "document.querySelector('#door').open && document.querySelector('#connection').dataset.state !== 'on'")
    page.fill("#key", KEY)
    page.click("#door button")
    page.wait_for_selector("#connection[data-state=on]")


CONTRAST = """() => {
  const luminance = (text) => { const c = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!/rgba\\(.*, 0\\)|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  const texts = [...document.querySelectorAll('body *')].filter((e) => e.offsetParent && !e.disabled
      && !e.closest('canvas, .unseen') && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return texts.map((e) => { const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))].sort((x, y) => y - x);
      return [e.id || e.className || e.tagName, (a + 0.05) / (b + 0.05)]; }).filter(([, ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_readable_and_named(open_page: Callable[..., Any], scheme: str):
    page = open_page(viewport={"width": 360, "height": 640}, color_scheme=scheme, has_touch=True, is_mobile=True)
    page.fill("#text", "hello")
    page.keyboard.press("Enter")
    done(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing is wider than the screen"
    for name in ("#talk", "#text", "#send", "#handsfree"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["y"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640, (
            name
        )
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, input')].filter((e) => !e.closest('dialog') &&
        !(e.ariaLabel || e.labels?.length || e.textContent.trim())).length""")
    assert unnamed == 0 and page.locator("#announce[aria-live=polite]").count() == 1
    assert page.inner_text("#announce").startswith("random: ")
    assert page.evaluate(CONTRAST) == [], "text has at least 4.5 : 1 of contrast with what is behind it"


def test_everything_is_reached_by_the_keyboard(open_page: Callable[..., Any]):
    page = open_page()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"log", "handsfree", "talk", "text", "send"} <= reached
    page.focus("#talk")
    page.keyboard.down(" ")
    wait(page, "talk.sending")
    page.wait_for_timeout(800)
    page.keyboard.up(" ")
    done(page, 1)
    assert seconds_of(page) > 0.1 and page.complaints == []
