"""What a process prints and logs, without secrets: so that a key in a message or a traceback reaches no log file of a cluster."""

import logging
import sys
import traceback
from typing import Any, TextIO

from speechlm.provenance import redact


class _Hiding:
    """A stream that passes everything on, texts without secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; its own length, as if nothing had been hidden."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hide_secrets() -> None:
    """From here on nothing that this process prints, logs or dies with shows a secret; see `redact` for what is one.

    Called first by every verb; a second call changes nothing.
    """
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Hiding):
            setattr(sys, name, _Hiding(stream))
    if not isinstance(logging.getLogRecordFactory(), _Records):  # handlers keep the streams they were made with
        logging.setLogRecordFactory(_Records(logging.getLogRecordFactory()))


class _Records:
    """Makes log records as before, their texts without secrets."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        try:
            said = record.getMessage()
        except (TypeError, ValueError):  # a wrong format; logging says so itself
            return record
        if (hidden := redact(said)) != said:
            record.msg, record.args = hidden, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record
