"""W&B that refuses, fails or never answers: the run trains to its end, what it logged is kept, no key is written anywhere."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from callbacks.jsonl import read_metrics
from tests.fit_runs import CONFIG, write_config

ROOT = Path(__file__).parents[1]
KEY = "canary0123456789" * 2 + "01234567"  # as long as a real one


@pytest.fixture(params=["refuses", "fails", "hangs"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a server of that kind."""
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_POST(self) -> None:
            if request.param == "hangs":
                done.wait(300)
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    if request.param == "refuses":
        server.server_close()
    else:
        thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    done.set()
    if thread.is_alive():
        server.shutdown()
        server.server_close()


def test_training_ends_well_what_was_logged_is_kept_and_the_key_is_not(address: str, tmp_path: Path):
    logger = {
        "class_path": "callbacks.wandb_log.WandbLog",
        "init_args": {"init_timeout_sec": 2.0, "finish_timeout_sec": 5.0},
    }
    config = write_config(tmp_path, trainer={**CONFIG["trainer"], "logger": logger})
    own = {
        name: value for name, value in os.environ.items() if not name.startswith("WANDB")
    }  # no service of another test
    env = {**own, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "speechlm.fit", "--config", str(config)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "this run is logged offline" in done.stderr
    folder = tmp_path / "runs/dummy"
    assert len(read_metrics(folder)["train/loss"]) == 4
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in log.read_bytes()
    assert KEY not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert written == []
