import subprocess
import sys

import pagewire
import pytest

HEAVY = {"grpc", "google.protobuf", "asyncio", "rich", "argparse"}


def modules_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=180)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", ["pagewire", "pagewire.v1"])
def test_importing_the_package_loads_nothing_heavy(module):
    assert not modules_after(f"import {module}") & HEAVY


def test_the_supervisor_needs_neither_grpc_nor_protobuf():
    assert not modules_after("import pagewire.cli.serve, pagewire.serve.supervisor") & {"grpc", "google.protobuf"}


@pytest.mark.parametrize("words", ["'--help'", "'serve', '--help'"])
def test_help_loads_neither_grpc_nor_asyncio(words):
    statement = f"from pagewire.cli import main\ntry: main([{words}])\nexcept SystemExit: pass"
    assert not modules_after(statement) & {"grpc", "google.protobuf", "asyncio", "rich"}


def test_all_names_resolve():
    assert all(getattr(pagewire, name) is not None for name in pagewire.__all__)
    assert set(pagewire._MODULE_OF) == set(pagewire.__all__)
    assert set(pagewire.__all__) <= set(dir(pagewire))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        pagewire.nothing_of_ours  # noqa: B018
