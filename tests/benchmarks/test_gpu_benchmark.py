"""The GPU benchmark at sizes a CPU runs in a moment: its figures mean nothing there, its machinery is the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_parts.part import Part, select  # noqa: E402
from gpu_parts.records import Answer, Record  # noqa: E402
from gpu_parts.shapes import SHAPES, model_directory  # noqa: E402
from gpu_parts.supervisor import run_parts  # noqa: E402
from gpu_parts.targets import verdicts  # noqa: E402

PARTS = ("attention:decode:8x128:64x8k", "attention:prefill:8x128:1x8k-of-8k", "kernels")
MODEL_PARTS = (
    "engine:llama-8b:16x1k",
    "engine:qwen3-30b-a3b:1x1k",
    "prompt:llama-8b:1x1k",
    "offline:llama-8b:64x1k",
)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    names = ",".join((*PARTS, *MODEL_PARTS, "service:llama-8b:1x1k"))
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny", "--out", str(out)]
    command += ["--only", names, "--output-len", "4"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_every_part_is_measured_and_kept(record: dict) -> None:
    assert {name: part["state"] for name, part in record["parts"].items() if part["state"] != "done"} == {}
    assert record["parts"]["engine:llama-8b:16x1k"]["rows"][0]["tpot_ms"] > 0
    assert record["parts"]["service:llama-8b:1x1k"]["rows"][0]["output_tokens_per_s"] > 0
    assert record["software"]["packages"]["torch"]


def test_patterns_choose_parts_in_their_own_order() -> None:
    parts = [Part(name, lambda bench: []) for name in ("a:x:1", "a:x:2", "a:xy", "b")]
    assert [part.name for part in select(parts, ["b", "a:x", "b"])] == ["b", "a:x:1", "a:x:2"]
    with pytest.raises(ValueError, match="no part is named 'a:z'"):
        select(parts, ["a:z"])


WORKER = """
import json, os, sys, time
for line in sys.stdin:
    name = json.loads(line)["part"]
    if name == "dies": os._exit(7)
    if name == "hangs": time.sleep(60)
    print(json.dumps({"rows": [{"pid": os.getpid()}], "seconds": 0.0, "device_lost": name == "loses"}), flush=True)
"""


def run(names: list[str], budget_s: float = 30.0, limit_s: float = 20.0) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    parts = [(name, 0.5 if name == "hangs" else limit_s) for name in names]
    run_parts(parts, [sys.executable, "-c", WORKER], budget_s, answers.__setitem__)
    return answers


def test_a_worker_that_dies_or_hangs_or_loses_its_device_is_replaced() -> None:
    answers = run(["one", "dies", "two", "hangs", "three", "loses", "four"])
    assert [answers[name].state for name in ("dies", "hangs")] == ["failed", "failed"]
    assert answers["dies"].error == "the worker ended with status 7"
    assert answers["hangs"].error == "took longer than 0 s"
    pids = {answers[name].rows[0]["pid"] for name in ("one", "two", "three", "four")}
    assert len(pids) == 4


def test_what_the_budget_leaves_no_time_for_is_skipped() -> None:
    answers = run(["one", "two"], budget_s=0.0)
    assert [answer.skipped for answer in answers.values()] == ["out of time"] * 2


def test_the_file_is_whole_after_every_part(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gpu.json"
    kept = Record(path, {"name": "gpu"})
    kept.add("a", Answer(rows=[{"name": "one"}]))
    kept.add("b", Answer(error="broke"))
    parts = json.loads(path.read_text())["parts"]
    assert [part["state"] for part in parts.values()] == ["done", "failed"]
    assert kept.num_failed() == 1


def test_targets_say_what_is_met() -> None:
    rows = {
        "engine:llama-8b:1x1k": {"name": "", "over_roofline": 1.2},
        "offline:llama-8b:64x1k": {"name": "", "output_tokens_per_s": 10.0},
        "transformers:llama-8b:64x1k": {"name": "", "output_tokens_per_s": 2.0},
    }
    assert [(row["figure"], row["met"]) for row in verdicts(rows)] == [(1.2, False), (5.0, True)]


def test_weight_bytes_are_those_of_the_real_models() -> None:
    # 8.03e9, 1.24e9 and 30.5e9 parameters.
    sizes = {name: shape.resident_bytes / 2e9 for name, shape in SHAPES.items()}
    assert sizes == pytest.approx({"llama-8b": 8.03, "llama-1b": 1.236, "qwen3-30b-a3b": 30.53}, rel=2e-3)


def test_tokenizers_have_as_many_tokens_as_the_model(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    shape = SHAPES["llama-8b"].tiny()
    tokenizer = Tokenizer.from_file(str(model_directory(shape, tmp_path) / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == shape.vocab_size
    assert tokenizer.decode(tokenizer.encode("hello, world").ids) == "hello, world"
