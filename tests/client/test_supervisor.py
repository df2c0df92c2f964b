"""The supervisor, run as a process with small scripts in place of router and shards."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from pagewire.serve import sockets

# Logs what happens to it; ends on SIGTERM and when standard input ends, as routers and shards do.
CHILD = """
import json, os, signal, sys, threading
arguments = sys.argv[1:]
if arguments[0] == "spare":
    if "slow-spare" not in arguments:
        print("pagewire-spare has imported", flush=True)
    with open(arguments[1], "a") as file:
        file.write(f"spare waits {os.getpid()}\\n")
    line = sys.stdin.readline()
    if not line:
        sys.exit()
    arguments = json.loads(line)["arguments"]
name, address, log, script = arguments

def note(text):
    with open(log, "a") as file:
        file.write(f"{name} {text} {os.getpid()}\\n")

def end(signum, frame):
    note("terminated")
    os._exit(0)

def watch_parent():
    while os.read(0, 4096):
        pass
    note("orphaned")
    os._exit(0)

def ready():
    print(f"pagewire-{name} ready on {address}", flush=True)

signal.signal(signal.SIGTERM, end)
threading.Thread(target=watch_parent, daemon=True).start()
note("started")
exec(script)
threading.Event().wait()
"""

SUPERVISE = """
import asyncio, sys
from pagewire.serve.config import ServeConfig
from pagewire.serve.supervisor import Supervisor

child, log, shard, router = sys.argv[1:5]
config = ServeConfig(
    port=4321, replicas=2, drain_grace_s=5, exit_with_parent="orphan" in sys.argv, spare_shards="spare" in sys.argv
)

def shard_command(config, replica, tp_rank, listen, rendezvous):
    return [sys.executable, "-u", child, f"shard{replica}", listen, log, shard]

def router_command(config, shards, listen, health):
    assert len(shards) == 2
    with open(f"{log}.http", "a") as file:
        file.write(f"{config.http_port} ")
    return [sys.executable, child, "router", listen, log, router]

async def probe(address):
    # A child whose name is a flag hangs until it has been started again.
    name = "router" if address.endswith("health.sock") else "shard" + address.split("-")[-2]
    return name not in sys.argv or open(log).read().count(f"{name} started") > 1

async def main():
    from pagewire.serve import probe as probing, spares
    probing.INTERVAL_S = 0.05
    spares.Spares.__init__.__defaults__ = (0.05,)
    supervisor = Supervisor(
        config, shard_command=shard_command, router_command=router_command, probe=probe, min_backoff_s=0.05,
        spare_command=[sys.executable, child, "spare", log, *sys.argv[5:]],
    )
    return await supervisor.run()

sys.exit(asyncio.run(main()))
"""

# A server that is killed with its folder in place.
LEAVE_FOLDER = """
import os, sys
from pagewire.serve import sockets
sockets.tempfile.gettempdir = lambda: sys.argv[1]
with sockets.private_directory() as directory:
    print(directory, flush=True)
    os._exit(0)
"""


class Supervised:
    """A running supervisor and the log its children write."""

    def __init__(self, folder: Path, shard: str, router: str, *flags: str, errors: int | None = None) -> None:
        child, supervise = folder / "child.py", folder / "supervise.py"
        child.write_text(CHILD)
        supervise.write_text(SUPERVISE)
        self.log = folder / "log"
        self.log.touch()
        self.errors = folder / "errors"
        command = [
            *(sys.executable, str(supervise), str(child), str(self.log)),
            *(textwrap.dedent(shard), textwrap.dedent(router), *flags),
        ]
        with self.errors.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file if errors is None else errors,
                text=True,
            )

    def notes(self, text: str = "") -> list[tuple[str, str, int]]:
        words = [line.split() for line in self.log.read_text().splitlines()]
        return [(name, what, int(pid)) for name, what, pid in words if what.startswith(text)]

    def wait_ready(self) -> None:
        assert self.process.stdout.readline() == "pagewire ready on 127.0.0.1:4321\n"
        # These routers do not wait for their shards, so one of those may only just be starting.
        self.wait_for(lambda: len(self.notes("started")) >= 3)

    def finish(self) -> tuple[int, str, str]:
        """Exit status, rest of standard output, and standard error, when it has ended."""
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output, self.errors.read_text()

    def wait_for(self, condition) -> None:
        deadline_s = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.01)

    def children_are_gone(self) -> bool:
        return not any(psutil.pid_exists(pid) for _, _, pid in self.notes("started"))


@pytest.fixture
def supervise(tmp_path):
    started: list[Supervised] = []

    def start(shard: str = "ready()", router: str = "ready()", *flags: str) -> Supervised:
        started.append(Supervised(tmp_path, shard, router, *flags))
        return started[-1]

    yield start
    for supervised in started:
        supervised.process.kill()
        supervised.process.wait()
        for pipe in (supervised.process.stdin, supervised.process.stdout):
            pipe.close()
        supervised.wait_for(supervised.children_are_gone)


def test_one_line_says_where_it_serves_and_sigterm_ends_it_in_order(supervise):
    supervised = supervise()
    supervised.wait_ready()
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.finish() == (0, "", "")
    ended = [name for name, _, _ in supervised.notes("terminated")]
    assert ended[0] == "router"
    assert sorted(ended[1:]) == ["shard0", "shard1"]


def test_ctrl_c_reaches_the_children_only_through_the_supervisor(supervise):
    supervised = supervise()
    supervised.wait_ready()
    groups = {os.getpgid(pid) for _, _, pid in supervised.notes("started")}
    assert os.getpgid(supervised.process.pid) not in groups
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.finish() == (0, "", "")
    assert len(supervised.notes("terminated")) == 3


def test_a_shard_that_cannot_start_fails_the_start_with_its_own_message(supervise):
    shard = """
    print("loading weights", file=sys.stderr)
    print("error: the model nowhere is neither a directory nor on the hub", file=sys.stderr)
    sys.exit(1)
    """
    supervised = supervise(shard, "pass")
    status, output, errors = supervised.finish()
    assert (status, output) == (1, "")
    assert errors.count("error: the model nowhere is neither a directory nor on the hub\n") == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert supervised.children_are_gone()


def test_a_router_that_cannot_start_fails_the_start_with_its_own_message(supervise):
    supervised = supervise("ready()", 'sys.exit("error: port 4321 is taken")')
    assert supervised.finish() == (1, "", "error: port 4321 is taken\n")


def test_a_child_that_ends_without_a_word_is_named(supervise):
    supervised = supervise("ready()", "os._exit(7)")
    assert supervised.finish() == (1, "", "error: the router ended with status 7 before it was ready\n")


@pytest.mark.parametrize("name", ["shard1", "router"])
def test_a_child_that_dies_is_started_again(supervise, name):
    supervised = supervise()
    supervised.wait_ready()
    for round_ in (1, 2):
        starts = [pid for who, _, pid in supervised.notes("started") if who == name]
        assert len(starts) == round_
        os.kill(starts[-1], signal.SIGKILL)
        supervised.wait_for(
            lambda expected=round_ + 1: [who for who, _, _ in supervised.notes("started")].count(name) == expected
        )
    others = [who for who, _, _ in supervised.notes("started") if who != name]
    assert len(others) == 2
    supervised.process.send_signal(signal.SIGTERM)
    status, _, errors = supervised.finish()
    assert status == 0
    assert errors.count("starting it again") == 2


def test_a_restarted_router_serves_http_on_the_same_port(supervise):
    supervised = supervise("ready()", 'print("pagewire-router http on 127.0.0.1:4444", flush=True); ready()')
    supervised.wait_ready()
    assert supervised.process.stdout.readline() == "pagewire http on 127.0.0.1:4444\n"
    assert supervised.log.with_suffix(".http").read_text() == "8000 4444 "


@pytest.mark.parametrize("name", ["shard1", "router"])
def test_a_child_that_hangs_is_killed_and_started_again(supervise, name):
    supervised = supervise("ready()", "ready()", name)
    supervised.wait_ready()
    supervised.wait_for(lambda: [who for who, _, _ in supervised.notes("started")].count(name) == 2)
    supervised.process.send_signal(signal.SIGTERM)
    status, _, errors = supervised.finish()
    assert status == 0
    assert errors.count("hangs; killing it") == 1
    assert [who for who, _, _ in supervised.notes("started")].count(name) == 2


def test_folders_of_killed_servers_are_removed_and_those_of_living_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(sockets.tempfile, "gettempdir", lambda: str(tmp_path))
    left = subprocess.run(
        [sys.executable, "-c", LEAVE_FOLDER, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    (tmp_path / "pagewire-somebody").mkdir()
    assert Path(left).is_dir()
    with sockets.private_directory() as living:
        assert not Path(left).exists()
        with sockets.private_directory():
            assert Path(living).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["pagewire-somebody"]


def test_children_end_when_the_supervisor_is_killed(supervise):
    supervised = supervise()
    supervised.wait_ready()
    supervised.process.kill()
    supervised.wait_for(supervised.children_are_gone)
    assert len(supervised.notes("orphaned")) == 3


def test_the_end_of_standard_input_stops_it_when_it_belongs_to_a_parent(supervise):
    supervised = supervise("ready()", "ready()", "orphan")
    supervised.wait_ready()
    supervised.process.stdin.close()
    assert supervised.process.wait(timeout=20) == 0
    assert supervised.notes("terminated")[0][0] == "router"


def test_a_second_signal_does_not_wait(supervise):
    supervised = supervise("ready()", "signal.signal(signal.SIGTERM, lambda *_: note('draining')); ready()")
    supervised.wait_ready()
    supervised.process.send_signal(signal.SIGTERM)
    supervised.wait_for(lambda: supervised.notes("draining"))
    supervised.process.send_signal(signal.SIGTERM)
    started_s = time.monotonic()
    supervised.process.wait(timeout=20)
    assert time.monotonic() - started_s < 5  # the grace


def test_a_child_that_does_not_drain_in_time_is_killed(supervise):
    supervised = supervise("ready()", "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready()")
    supervised.wait_ready()
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(timeout=20) == 0
    assert supervised.children_are_gone()


def test_a_stop_during_the_start_is_no_error(supervise):
    supervised = supervise("pass", "pass")
    supervised.wait_for(lambda: len(supervised.notes("started")) == 3)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.finish() == (0, "", "")


def test_long_and_undecodable_lines_of_a_child_are_passed_on(supervise):
    router = """
    os.write(2, b"x" * 300_000 + b"\\xff\\n")
    ready()
    """
    supervised = supervise("ready()", router)
    supervised.wait_ready()
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.finish()[2] == "x" * 300_000 + "�\n"


def test_a_child_is_started_again_also_when_nobody_reads_what_the_supervisor_says(tmp_path):
    reading, writing = os.pipe()
    supervised = Supervised(tmp_path, "print('loads', file=sys.stderr); ready()", "ready()", errors=writing)
    os.close(writing)
    os.close(reading)
    try:
        supervised.wait_ready()
        first = [pid for who, _, pid in supervised.notes("started") if who == "shard1"]
        os.kill(first[0], signal.SIGKILL)
        supervised.wait_for(lambda: [who for who, _, _ in supervised.notes("started")].count("shard1") == 2)
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.process.wait(timeout=30) == 0
        assert supervised.children_are_gone()
    finally:
        supervised.process.kill()
        supervised.process.communicate()


def test_a_spare_takes_the_place_of_a_lost_shard_and_another_spare_comes(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "ready()", "ready()", "spare")
    supervised.wait_ready()
    supervised.wait_for(lambda: len(supervised.notes("waits")) == 1)
    ((_, _, spare),) = supervised.notes("waits")
    lost = next(pid for name, _, pid in supervised.notes("started") if name == "shard1")
    os.kill(lost, signal.SIGKILL)
    supervised.wait_for(lambda: ("shard1", "started", spare) in supervised.notes())
    supervised.wait_for(lambda: len(supervised.notes("waits")) == 2)
    (_, _, second) = supervised.notes("waits")[1]
    supervised.process.terminate()
    status, _, _ = supervised.finish()
    assert status == 0
    assert not psutil.pid_exists(second)
    assert not psutil.pid_exists(spare)


def test_without_a_live_spare_a_shard_is_started_as_ever(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "ready()", "ready()", "spare")
    supervised.wait_ready()
    supervised.wait_for(lambda: len(supervised.notes("waits")) == 1)
    lost = next(pid for name, _, pid in supervised.notes("started") if name == "shard0")
    os.kill(supervised.notes("waits")[0][2], signal.SIGKILL)
    os.kill(lost, signal.SIGKILL)
    supervised.wait_for(lambda: [name for name, _, _ in supervised.notes("started")].count("shard0") == 2)
    supervised.process.terminate()
    assert supervised.finish()[0] == 0


def test_a_spare_that_still_imports_is_not_waited_for(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "ready()", "ready()", "spare", "slow-spare")
    supervised.wait_ready()
    supervised.wait_for(lambda: len(supervised.notes("waits")) == 1)
    ((_, _, spare),) = supervised.notes("waits")
    lost = next(pid for name, _, pid in supervised.notes("started") if name == "shard0")
    os.kill(lost, signal.SIGKILL)
    supervised.wait_for(lambda: [name for name, _, _ in supervised.notes("started")].count("shard0") == 2)
    assert spare not in [pid for _, _, pid in supervised.notes("started")]
    supervised.process.terminate()
    assert supervised.finish()[0] == 0
