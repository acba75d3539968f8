"""A language model as a judge, behind any address that speaks OpenAI's chat completions.

What it says is kept whole and read by strict rules; an answer that has no verdict, or more than one, is a problem with a name and
never a score. Nothing is sent but the prompt; the key is read from the environment.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from speechlm.evals.items import Unusable

RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
#: In the manner of MT-Bench's single-answer grading (https://arxiv.org/abs/2306.05685), which General QA is judged by.
GENERAL = (
    "Judge the reply of a spoken assistant to a user, transcribed from speech. Consider its helpfulness, relevance, "
    "accuracy, depth, creativity and level of detail, and be objective. Explain in a few sentences, then rate the reply "
    'from 1 to 10 in exactly this form: "[[rating]]", for example "[[5]]".\n\n[User]\n{instruction}\n\n[Reply]\n{reply}\n'
)
#: A reply to a question with known answers.
KNOWLEDGE = (
    "A question was answered in speech, and transcribed. Decide whether the reply means the same as any one of the references; "
    'spelling does not count. Answer with JSON alone: {{"analysis": "...", "judgment": "correct" or "incorrect"}}.\n\n'
    "[Question]\n{instruction}\n\n[References]\n{references}\n\n[Reply]\n{reply}\n"
)


@dataclass(frozen=True)
class Judge:
    """Where the judge is.

    Args:
        url: up to and with /v1.
        model: its name there.
        api_key_env: environment variable with the key; "" sends none.
        temperature: of its answers.
        max_tokens: of an answer.
        timeout_sec: for one answer.
        attempts: before an answer is given up, where the address does not answer, or answers 429 or 5xx.
        pause_sec: before the second attempt; twice as long before each further one.
    """

    url: str = "https://api.openai.com/v1"
    model: str = "gpt-4o-2024-05-13"
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 1024
    timeout_sec: float = 120.0
    attempts: int = 4
    pause_sec: float = 2.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or self.attempts < 1 or self.timeout_sec <= 0:
            raise ValueError(f"a judge needs an address with http(s)://, attempts >= 1 and timeout_sec > 0, got {self}")

    @property
    def protocol(self) -> dict[str, Any]:
        """What of it is part of the protocol."""
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}

    def ask(self, prompt: str) -> str:
        """What it says.

        Raises:
            Unusable: it did not answer in time, refused, or did not answer in the form of a chat completion.
        """
        body = {**self.protocol, "messages": [{"role": "user", "content": prompt}]}
        failure = Unusable("judge did not answer")
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause_sec * 2 ** (attempt - 1))
            try:
                return _content(self._post(json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                failure = Unusable(f"judge refused ({error.code})", _shown(error))
                if error.code != 429 and error.code < 500:
                    break
            except TimeoutError as error:
                failure = Unusable("judge timed out", str(error))
            except (OSError, ValueError) as error:
                late = isinstance(getattr(error, "reason", None), TimeoutError)
                failure = Unusable("judge timed out" if late else "judge did not answer", str(error))
        raise failure

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.api_key_env, "") if self.api_key_env else ""
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url.rstrip("/") + "/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=self.timeout_sec) as answer:
            return bytes(answer.read())


def rating_of(said: str) -> float:
    """The rating, 1 to 10.

    Raises:
        Unusable: there is none, more than one, or it is out of range.
    """
    found = {float(value) for value in RATING.findall(said)}
    if len(found) != 1:
        raise Unusable("judge gave no rating" if not found else "judge gave several ratings", said)
    value = found.pop()
    if not 1 <= value <= 10:
        raise Unusable("judge's rating is out of range", said)
    return value


def judgment_of(said: str) -> float:
    """1 for correct, 0 for incorrect.

    Raises:
        Unusable: it is not the JSON object that was asked for.
    """
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", said.strip())
    try:
        verdict = json.loads(text)["judgment"]
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable("judge gave no judgment", said) from error
    if verdict not in ("correct", "incorrect"):
        raise Unusable("judge gave no judgment", said)
    return float(verdict == "correct")


def _content(body: bytes) -> str:
    try:
        said = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not a chat completion: {body[:200]!r}") from error
    if not isinstance(said, str):
        raise ValueError(f"not a chat completion: {body[:200]!r}")
    return said


def _shown(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(300).decode("utf-8", "replace")
    except OSError:
        return str(error)
