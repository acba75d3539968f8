"""SGLang servers over HTTP: many replicas, requests in groups, a bounded queue, and only what is unfinished sent again.

The protocol is that of SGLang 0.5's native `/generate`. Two of its habits shape this file: an input id outside the vocabulary
ends the whole server, and an unknown sampling parameter is a server error; so prompts are checked before they are sent. The
server draws from the model's whole vocabulary (restricting it would need code sent as a pickle), so what comes back is checked
too: a generation with an id that is not of the target is "invalid", and its ids are dropped.

Start a server for it (loopback, a key, no tokenizer needed):

    python -m sglang.launch_server --model-path EXPORTED --skip-tokenizer-init --host 127.0.0.1 --port 30000 --api-key KEY
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import urllib3

from speechlm.engines.base import Finish, Generation, Prompt, Sampling, Target, check_prompt
from speechlm.engines.replicas import Replicas
from speechlm.tokens.keyed import key_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANSWER_LIMIT = 64 * 2**20  # bytes
TRIES = 5  # per group of prompts, each on a server that says it is well


class BadAnswer(RuntimeError):
    """A server answered with something that is no generation."""


class SGLangEngine:
    """Generates on SGLang servers.

    With temperature 0 the ids are those of `HuggingFaceEngine`, where the model prefers the target's ids by itself. With
    sampling, every prompt has its own seed, which servers heed that were started with `--enable-deterministic-inference`.

    Args:
        urls: one address per replica, "http://127.0.0.1:30000".
        target: ids that may be generated.
        vocab_size: ids of the model.
        max_length: positions the servers were started with.
        api_key_env: name of the environment variable with the servers' key; servers on other machines need one.
        group: prompts in a request.
        in_flight: requests one replica works on at a time.
        timeout_sec: for one request.
        patience_sec: how long all replicas may be away together before the run stops.
    """

    def __init__(
        self,
        urls: list[str],
        target: Target,
        vocab_size: int,
        max_length: int = 1024,
        api_key_env: str = "SGLANG_API_KEY",
        group: int = 16,
        in_flight: int = 4,
        timeout_sec: float = 600.0,
        patience_sec: float = 300.0,
    ) -> None:
        self.target, self.vocab_size, self.max_length = target, vocab_size, max_length
        self.group = group
        key = os.environ.get(api_key_env, "")
        for url in urls:
            check_address(url, key, api_key_env)
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._http = urllib3.PoolManager(
            maxsize=in_flight,
            num_pools=len(urls),
            timeout=urllib3.Timeout(connect=5.0, read=timeout_sec),
            retries=False,
        )
        self._replicas = Replicas([url.rstrip("/") for url in urls], in_flight, self._healthy, patience_sec)
        self._threads = in_flight * len(urls)

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[Generation]:
        """See `Engine.generate`.

        Raises:
            NoServer: no replica answers any more.
            BadAnswer: replicas that are well refuse the same prompts again and again.
        """
        waiting = iter(prompts)
        working: deque[Future[list[Generation]]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="sglang")
        try:
            while True:
                while len(working) < self._threads and (group := list(islice(waiting, self.group))):
                    for prompt in group:
                        check_prompt(prompt, self.vocab_size, self.max_length)
                    working.append(pool.submit(self._ask, group, sampling))
                if not working:
                    return
                done, _ = wait(working, return_when=FIRST_COMPLETED)
                for future in done:
                    working.remove(future)
                    yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, group: list[Prompt], sampling: Sampling) -> list[Generation]:
        """One request, on one replica after another until one answers."""
        body = json.dumps({
            "input_ids": [list(prompt.ids) for prompt in group],
            "sampling_params": [sampling_params(prompt, sampling, self.target.stop) for prompt in group],
        }).encode()  # fmt: skip
        error = ""
        for _ in range(TRIES):
            replica = self._replicas.take()
            try:
                answers = self._post(replica.url + "/generate", body)
                found = [generation(prompt, one, self.target) for prompt, one in zip(group, answers, strict=True)]
            except (urllib3.exceptions.HTTPError, OSError, BadAnswer, ValueError) as caught:
                error = f"{type(caught).__name__}: {caught}"
                self._replicas.failed(replica, error)
                continue
            self._replicas.answered(replica)
            return found
        raise BadAnswer(f"{TRIES} tries failed for prompts {group[0].key!r} to {group[-1].key!r}; the last: {error}")

    def _post(self, url: str, body: bytes) -> list[Any]:
        response = self._http.request(
            "POST", url, body=body, headers=self._headers, redirect=False, preload_content=False
        )
        try:
            content = response.read(ANSWER_LIMIT + 1)
        finally:
            response.release_conn()
        if response.status != 200:
            raise BadAnswer(f"{url} answered {response.status}: {content[:500].decode(errors='replace')}")
        if len(content) > ANSWER_LIMIT:
            raise BadAnswer(f"{url} answered with more than {ANSWER_LIMIT} bytes")
        answers = json.loads(content)
        if not isinstance(answers, list):
            raise BadAnswer(f"{url} answered with a {type(answers).__name__}, expected a list of generations")
        return answers

    def _healthy(self, url: str) -> bool:
        """Whether a server generates: `/health` makes it generate one id."""
        try:
            timeout = urllib3.Timeout(connect=5.0, read=30.0)
            return self._http.request("GET", url + "/health", headers=self._headers, timeout=timeout).status == 200
        except (urllib3.exceptions.HTTPError, OSError):
            return False


def sampling_params(prompt: Prompt, sampling: Sampling, stop: int) -> dict[str, Any]:
    """What SGLang calls it."""
    return {
        "max_new_tokens": prompt.max_new,
        "min_new_tokens": prompt.min_new,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "stop_token_ids": [stop],
        "sampling_seed": key_of("engine", sampling.seed, prompt.key) % 2**31,
    }


def generation(prompt: Prompt, answer: Any, target: Target) -> Generation:
    """What SGLang's answer for one prompt says.

    Raises:
        BadAnswer: it says that the server gave up, or nothing that can be understood.
    """
    try:
        ids, reason = list(answer["output_ids"]), answer["meta_info"]["finish_reason"]
        kind = reason["type"]
    except (KeyError, TypeError) as error:
        raise BadAnswer(f"an answer without output_ids and finish_reason: {str(answer)[:300]}") from error
    if kind not in ("stop", "length"):
        raise BadAnswer(f"the server gave up on prompt {prompt.key!r}: {str(reason)[:300]}")
    stopped = bool(ids) and ids[-1] == target.stop
    ids = ids[:-1] if stopped else ids
    finish: Finish = "stop" if stopped else "length"
    if any(not isinstance(i, int) or i == target.stop or i not in target for i in ids) or (
        kind == "stop" and not stopped
    ):
        return Generation(prompt.key, (), "invalid")
    return Generation(prompt.key, tuple(ids), finish)


def check_address(url: str, key: str, api_key_env: str) -> None:
    """Refuse what is no address, and other machines' without a key.

    Raises:
        ValueError: it is.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a server; expected something like http://127.0.0.1:30000")
    if parts.hostname not in LOOPBACK and not key:
        raise ValueError(
            f"{url} is another machine; start its server with --api-key and put the key into the environment variable "
            f"{api_key_env}"
        )
