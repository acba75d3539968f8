"""A process that has imported everything and forks jobs of several ranks, so that starting one takes a tenth of a second.

Reads a JSON line per command and answers with one: `{"start": …}` with the ranks' process ids, `{"poll": [pid, …]}` with their
exit codes, null for those that run.
"""

import json
import os
import sys
import traceback
from typing import Any

from tests.faults import jobs

_codes: dict[int, int] = {}


def start(job: dict[str, Any]) -> list[int]:
    """Fork the ranks of a job."""
    return [_fork(job, rank) for rank in job["ranks"]]


def poll(pids: list[int]) -> list[int | None]:
    """Exit codes, negative for signals, None for those that run."""
    for pid in pids:
        if pid not in _codes:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                _codes[pid] = os.waitstatus_to_exitcode(status)
    return [_codes.get(pid) for pid in pids]


def _fork(job: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(f"{job['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        os.setpgid(0, 0)
        if job["world_size"] > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(job["world_size"]),
                "LOCAL_WORLD_SIZE": str(job["world_size"]),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(job["port"]),
                "TORCHELASTIC_RUN_ID": "faults",
            }
        os.environ |= job["env"]
        code = _run(job)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(job: dict[str, Any]) -> int:
    try:
        getattr(jobs, job["function"])(**job["arguments"])
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        done = start(command["start"]) if "start" in command else poll(command["poll"])
        print(json.dumps(done), file=answers, flush=True)
