"""The behaviour that every client of examples/clients/ must have, whatever its language.

A test module inherits the contract, and has the fixtures `client`, built, and `cluster`, which serves the demo model.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, free_port, shards_and_router
from cutting_proxy import cutting_proxy
from operate_tools import ROOT, require_tool, set_up
from pagewire import Client, SamplingParams

TEXT = "The capital of France is"
MAX_MODEL_LEN = 2048
"""Context length of the demo model."""
TIMEOUT_S = 200.0


@dataclass(frozen=True)
class ExampleClient:
    """A built client, and how to run it."""

    language: str
    command: Sequence[str]
    """The command, run in the client's folder."""

    def build(self) -> None:
        """Builds the client as its README says."""
        command = BUILDS.get(self.language, ("make",))
        built = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert built.returncode == 0, built.stdout + built.stderr

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    @property
    def folder(self) -> Path:
        return ROOT / "examples" / "clients" / self.language


TOOLCHAINS = {"node": ("node", "npm"), "go": ("go",), "java": ("javac",), "cpp": ("g++",), "ruby": ("ruby",)}
"""Tools by language that a machine may lack."""
BUILDS = {"node": ("npm", "run", "generate")}
"""Build commands by language; all others use make."""
COMMANDS = {"node": ("node", "client.js"), "ruby": ("ruby", "client.rb")}
"""Commands of interpreted clients; the others are programs."""


def build_client(language: str) -> ExampleClient:
    """The client in this language. Skips the test if its toolchain is missing, fails it if the build fails."""
    for tool in TOOLCHAINS[language]:
        require_tool(tool)
    set_up(f"clients_{language}")
    client = ExampleClient(language, COMMANDS.get(language, ("build/client",)))
    client.build()
    return client


@contextmanager
def cluster_for_clients(*router_flags: str) -> Iterator[Cluster]:
    """The demo model on a TCP address, as clients outside reach it."""
    with shards_and_router(Path("demo"), router_flags=["--listen", "127.0.0.1:0", *router_flags]) as cluster:
        yield cluster


class ResumingClientContract:
    """The behaviour of those clients that resume their streams."""

    def test_goes_on_where_it_was_when_the_connection_is_cut_again_and_again(
        self, client: ExampleClient, cluster: Cluster
    ) -> None:
        with Client(cluster.address, timeout_s=60) as python:
            expected = python.complete(TEXT, SamplingParams(temperature=0.0, max_tokens=64))
        with cutting_proxy(cluster.address, after_bytes=400) as proxy:
            run = client.run("--address", proxy.address, "complete", TEXT)
        assert run.returncode == 0, run.stderr + cluster.log()
        assert run.stdout == expected.outputs.text + "\n"
        assert f"{len(expected.outputs[0].token_ids)} completion, " in run.stderr
        assert proxy.num_cut >= 1


class ExampleClientContract:
    """The same command line and the same behaviour in every language."""

    def test_completes_a_text_as_the_python_client_does(self, client: ExampleClient, cluster: Cluster) -> None:
        with Client(cluster.address, timeout_s=60) as python:
            expected = python.complete(TEXT, SamplingParams(temperature=0.0, max_tokens=64))
        run = client.run("--address", cluster.address, "complete", TEXT)
        assert run.returncode == 0, run.stderr + cluster.log()
        assert run.stdout == expected.outputs.text + "\n"
        assert run.stdout.count(" ") > 20
        num_prompt, num_completion = len(expected.prompt_token_ids), len(expected.outputs[0].token_ids)
        assert f"tokens: {num_prompt} prompt, {num_completion} completion, " in run.stderr

    def test_names_the_fields_of_a_refused_request(self, client: ExampleClient, cluster: Cluster) -> None:
        run = client.run("--address", cluster.address, "error")
        assert run.returncode == 0, run.stderr + cluster.log()
        assert run.stdout.splitlines() == [
            "sampling_params.temperature: is 9; accepted: 0 to 2",
            "sampling_params.max_tokens: is 0; accepted: 1 or more",
        ]
        assert run.stderr.splitlines() == ["INVALID_ARGUMENT"]

    def test_a_cancelled_request_ends_on_the_shard_too(self, client: ExampleClient, cluster: Cluster) -> None:
        sampled_before = cluster.sampled_tokens()
        run = client.run("--address", cluster.address, "cancel", TEXT)
        assert run.returncode == 0, run.stderr + cluster.log()
        assert run.stderr.splitlines() == ["CANCELLED"]
        assert run.stdout.strip()
        cluster.check_all_blocks_come_back()
        num_sampled = cluster.sampled_tokens() - sampled_before
        assert 3 <= num_sampled < MAX_MODEL_LEN - 100, "the request ran to its end"

    def test_an_unreachable_server_is_an_error(self, client: ExampleClient) -> None:
        run = client.run("--address", f"127.0.0.1:{free_port()}", "complete", TEXT)
        assert run.returncode == 1
        assert run.stderr.startswith("UNAVAILABLE: ")
        assert run.stdout == ""

    @pytest.mark.parametrize(
        "arguments", [[], ["complete"], ["error", "x"], ["nonsense"], ["--nonsense", "1", "error"]]
    )
    def test_wrong_usage_ends_with_status_2(self, client: ExampleClient, arguments: list[str]) -> None:
        run = client.run(*arguments)
        assert (run.returncode, run.stdout) == (2, ""), run.stderr
        assert "usage: " in run.stderr
