"""What somebody sees who tries pagewire for the first time: the demo, and a server started on a terminal."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

PAGEWIRE = (sys.executable, "-m", "pagewire")
TIMEOUT_S = 280


def test_the_demo_completes_prompts_and_says_what_to_try_next():
    command = [*PAGEWIRE, "demo", "--max-tokens", "4"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert run.returncode == 0, run.stderr
    assert "The capital of France is" in run.stdout
    assert "12 tokens" in run.stdout
    assert "curl -s http://localhost:8000/v1/completions" in run.stdout.partition("12 tokens")[2]


def test_a_server_on_a_terminal_says_where_to_reach_it():
    ours, theirs = pty.openpty()
    command = [*PAGEWIRE, "serve", "--port", "0", "--metrics-port", "0", "--device", "cpu", "--cpu-threads", "1"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, start_new_session=True)
    os.close(theirs)
    try:
        shown = ""
        deadline_s = time.monotonic() + TIMEOUT_S
        while "Anthropic" not in shown:
            assert time.monotonic() < deadline_s, shown
            shown += os.read(ours, 4096).decode()
        port = re.search(r"^pagewire http on 127\.0\.0\.1:(\d+)\r$", shown, re.MULTILINE)
        assert port, shown
        assert f"In a browser: http://127.0.0.1:{port[1]}\r" in shown
        assert f"base URL http://127.0.0.1:{port[1]}/v1" in shown
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(TIMEOUT_S) == 0
        os.close(ours)
