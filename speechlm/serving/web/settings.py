"""What a server permits whom."""

import os
from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerSettings:
    """Address, key and bounds of a server.

    Args:
        host: to listen at; others than this machine's own need a key.
        port: likewise.
        api_key: that clients must show; "" asks for none.
        body_bytes: longest body of a request, and half of it the longest event of live voice.
        body_sec: longest time that a body takes.
        header_sec: longest time that a request's head takes, and that a connection may wait for one.
        requests: at work at once, bodies that are being read included.
        replies: at work at once.
        sessions: of live voice, at once.
        idle_sec: of live voice without an event, after which the session ends.
        send_sec: longest time that a client may take to accept what is sent.

    Raises:
        ValueError: a bound is not above 0, or the address is another than this machine's own and there is no key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    body_bytes: int = 24 * 2**20
    body_sec: float = 20.0
    header_sec: float = 10.0
    requests: int = 64
    replies: int = 8
    sessions: int = 16
    idle_sec: float = 300.0
    send_sec: float = 20.0

    def __post_init__(self) -> None:
        bounds = (self.body_bytes, self.body_sec, self.header_sec, self.requests, self.replies, self.sessions)
        if min(*bounds, self.idle_sec, self.send_sec) <= 0:
            raise ValueError(f"the bounds of a server are above 0, got {self}")
        if self.host not in LOOPBACK and not self.api_key:
            raise ValueError(
                f"whoever reaches {self.host} could talk to the model: put a key into the environment variable that "
                f"--api_key_env names, or listen at 127.0.0.1"
            )


def key_from(variable: str) -> str:
    """The key in an environment variable, "" where there is none.

    Raises:
        ValueError: it is too short to keep anybody out.
    """
    key = os.environ.get(variable, "")
    if key and (len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(f"the key in {variable} has at least 8 printable characters without spaces")
    return key
