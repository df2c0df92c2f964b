"""The commands and programs of README and quick start run as they stand there, against live servers."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import Service, free_port

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVERS = ("pagewire serve", "pagewire-router", "pagewire-shard")
CLIENTS = ("pagewire complete", "pagewire chat", "pagewire bench")
TIMEOUT_S = 120
NOT_RUN = {
    "make": "it would set up the environment that runs this test",
    "source": "the environment is set already",
    "pip": "it would change the environment that runs this test",
    "buf": "a tool of its own; tests/operate/ has it",
}
"""Commands that are left out, by their first word, and why."""
PORTS = ("50051", "50052", "50053", "9400", "9401", "8000")
"""As the pages have them. Others may be taken by something else on the machine of the test."""


def blocks_of(page: str) -> list[tuple[str, str]]:
    """(language, text) of every block of commands or Python."""
    return [(match[1], match[2]) for match in BLOCK.finditer((ROOT / page).read_text())]


def commands_of(text: str) -> list[str]:
    """The lines of a block of commands, continued lines joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.partition("  #")[0].strip())]


def in_environment(command: str) -> str:
    """What `make serve` runs; other commands as they are."""
    return "pagewire serve" if command == "make serve" else command


@dataclass
class Reader:
    """Somebody who does what a page says, once."""

    directory: Path
    servers: ExitStack
    ports: dict[str, str] = field(default_factory=lambda: {port: str(free_port()) for port in PORTS})
    done: set[str] = field(default_factory=set)

    def follow(self, language: str, text: str) -> None:
        """Does what a block says, unless it has been done before."""
        for step in [text] if language == "python" else map(in_environment, commands_of(text)):
            if step not in self.done:
                self.done.add(step)
                self._do(language, step)

    def _do(self, language: str, step: str) -> None:
        here = re.sub(rf"\b({'|'.join(PORTS)})\b", lambda match: self.ports[match[1]], step)
        if language == "python":
            self._run([sys.executable, "-c", here], step)
        elif step.startswith(SERVERS):
            self._serve(here)
        elif step.split()[0] not in NOT_RUN:
            self._run(["bash", "-euo", "pipefail", "-c", self._to_our_server(here)], step)

    def _serve(self, command: str) -> None:
        words = shlex.split(command)
        words[0] = str(Path(sys.executable).parent / words[0])
        if command == "pagewire serve":
            words += ["--port", self.ports["50051"], "--metrics-port", self.ports["9400"]]
            words += ["--http-port", self.ports["8000"]]
        service = Service(f"server{len(self.done)}", words, self.directory)
        self.servers.callback(service.stop)
        service.wait_ready()

    def _to_our_server(self, command: str) -> str:
        """Commands that rely on the default port are told of ours."""
        talks_to_default = any(client in command for client in CLIENTS) and "--server" not in command
        return f"{command} --server localhost:{self.ports['50051']}" if talks_to_default else command

    def _run(self, command: list[str], step: str) -> None:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TMPDIR": str(self.directory),
        }
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False, cwd=self.directory
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{step}\nsays nothing\n{done.stderr}"


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with tempfile.TemporaryDirectory(prefix="pw-") as directory, ExitStack() as servers:
        yield Reader(Path(directory), servers)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/openai.md",
        pytest.param("docs/index.md", marks=pytest.mark.slow),
        pytest.param("docs/quickstart.md", marks=pytest.mark.slow),
    ],
)
def test_what_a_page_tells_to_do_works(page: str, reader: Reader) -> None:
    blocks = blocks_of(page)
    assert blocks
    for language, text in blocks:
        reader.follow(language, text)


def test_a_step_that_fails_is_noticed(tmp_path: Path) -> None:
    with ExitStack() as servers:
        reader = Reader(tmp_path, servers)
        with pytest.raises(AssertionError, match="no-such-command"):
            reader.follow("sh", "echo fine\nno-such-command --flag\n")
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            reader.follow("python", "print(1)\n1 / 0\n")
