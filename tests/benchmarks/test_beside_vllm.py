"""The comparison with vLLM at sizes a CPU runs in a moment: pagewire beside pagewire, and an engine that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

from beside_parts.entrant import EngineDied, Entrant  # noqa: E402
from beside_parts.serving import LOADS, Offered, _offer_vllm, _outcome, flags  # noqa: E402
from beside_parts.turns import Offline  # noqa: E402
from beside_parts.workloads import CASES, Size  # noqa: E402
from docs_pages.beside_tables import beside_tables  # noqa: E402

LLAMA = Size(128_256)
TINY = ("--tiny", "--shape", "llama-1b", "--max-model-len", "1024")
CASE_NAMES = ["w-256x256-16", "c-mixed", "d-tree", "e-top_p-1x128-128"]
STAND_IN = """
import os
from types import SimpleNamespace

class SamplingParams:
    def __init__(self, max_tokens, **others):
        self.max_tokens = max_tokens

class LLM:
    def __init__(self, fault="", **others):
        self.fault = fault

    def generate(self, inputs, params, use_tqdm):
        if self.fault == "dies" and len(inputs) > 1:
            print("out of memory, or something like that", file=__import__("sys").stderr)
            os._exit(9)
        missing = self.fault == "short"
        outputs = [[SimpleNamespace(token_ids=[0] * (p.max_tokens - missing))] for p in params]
        return [SimpleNamespace(outputs=output, num_cached_tokens=0) for output in outputs]
"""


def compare(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "beside_vllm.py"), *arguments]
    python_path = [str(path)] if path else []
    python_path += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(python_path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def pagewire_twice(part: str, names: list[str], out: Path) -> dict[str, Any]:
    entrants = ["--entrants", "first=pagewire", "second=pagewire"]
    options = ["--option", "first.device=cpu", "--option", "second.device=cpu", "--kv-cache-gib", "0.05"]
    done = compare(part, *TINY, *entrants, *options, "--only", ",".join(names), "--repetitions", "2", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_engines_take_turns_on_the_same_batches(tmp_path: Path) -> None:
    record = pagewire_twice("offline", CASE_NAMES, tmp_path / "beside.json")
    result = record["result"]
    assert [row["case"] for row in result["rows"]] == CASE_NAMES[1:]
    assert all(len(row["seconds"]["second"]["values"]) == 2 for row in result["rows"])
    measured = [run["entrant"] for run in result["runs"] if run["case"] == "d-tree"]
    assert measured in (["first", "second", "second", "first", "first", "second"],
                        ["second", "first", "first", "second", "second", "first"])  # fmt: skip
    assert result["starts"]["first"]["engine"].startswith("pagewire ")
    assert record["settings"]["options"]["first"]["device"] == "cpu"


def test_servers_are_offered_the_same_load(tmp_path: Path) -> None:
    result = pagewire_twice("serving", ["closed1-1024-128"], tmp_path / "beside.json")["result"]
    (row,) = result["rows"]
    assert all(row["figures"][label]["output_throughput"]["median"] > 0 for label in ("first", "second"))


@pytest.mark.parametrize(("fault", "words"), [("dies", "ended with status 9"), ("short", "left 1 of 1 tokens out")])
def test_an_engine_that_fails_is_not_compared(tmp_path: Path, fault: str, words: str) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(STAND_IN)
    out = tmp_path / "beside.json"
    options = ["--entrants", "vllm", "other=vllm", "--option", f"other.fault={fault}", "--out", str(out)]
    done = compare("offline", *TINY, *options, "--only", "a-1x1024-1,b-64x1024-128", path=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert ("out of memory" in done.stderr) == (fault == "dies")
    assert not out.exists()
    incomplete = json.loads(out.with_name("beside.json.incomplete").read_text())["result"]
    assert [row["case"] for row in incomplete["rows"]] == (["a-1x1024-1"] if fault == "dies" else [])


def test_a_case_for_which_no_time_is_left_is_named() -> None:
    offline = Offline([], LLAMA, Path())
    offline.measure(["c-mixed"], end_s=0.0)
    assert offline.left_out == ["1,000 requests of mixed lengths"]


def test_batches_depend_on_the_case_and_the_repetition_alone() -> None:
    """Figures of different days are only comparable if these never change."""
    mixed = CASES["c-mixed"].batch("c-mixed", 0, LLAMA)
    assert (sum(map(len, mixed.prompts)), sum(mixed.max_tokens)) == (317_427, 233_754)
    assert mixed.prompts[0][:3] == [82615, 117930, 121386]
    tree = CASES["d-tree"].batch("d-tree", 0, LLAMA)
    assert len(tree.prompts) == 256
    assert tree.prompts[0][:2112] != tree.prompts[7][:2112]
    assert tree.prompts[0][:2048] == tree.prompts[7][:2048] != tree.prompts[8][:2048]
    assert CASES["d-prefix"].batch("d-prefix", 1, LLAMA).prompts[0][:3] != [51669, 72712, 13859]


def test_loads_are_the_same_for_every_server() -> None:
    first, second = (Offered.of("rate24-1024-128", 7, Size(600, 32)) for _ in range(2))
    assert first == second
    assert first.arrivals_s == sorted(first.arrivals_s)
    assert len(set(first.arrivals_s)) == len(first.arrivals_s) == LOADS["rate24-1024-128"].num_requests // 32


def test_a_load_generator_that_fails_keeps_what_was_measured() -> None:
    """main() writes the runs so far for an EngineDied alone."""
    with pytest.raises(EngineDied, match="load generator ended with status 1"):
        _offer_vllm(Entrant("vllm", "vllm", python="false"), "http://127.0.0.1:1", Offered([[1]], [1], [0.0], None))


def test_events_that_come_together_are_one_message() -> None:
    recorded = {"start_s": 0.0, "end_s": 9.0, "times_s": [1.0, 2.0, 2.0, 5.0], "error": ""}
    outcome = _outcome(recorded, 6)
    assert outcome.message_times_s == (1.0, 2.0, 5.0)
    assert outcome.message_tokens == (1, 2, 3)
    assert _outcome(recorded | {"error": "500"}, 6).num_output_tokens == 4


def test_options_of_an_engine_are_flags_of_its_server() -> None:
    options = {"max_model_len": 8192, "cuda_graphs": False, "enforce_eager": True, "dtype": "auto"}
    assert flags(options) == ["--max-model-len", "8192", "--no-cuda-graphs", "--enforce-eager", "--dtype", "auto"]


def test_the_page_shows_lost_rows_too() -> None:
    starts = {"vllm": {"ready_s": 60.0}, "pagewire": {"ready_s": 15.0}}

    def result(**rows: Any) -> dict[str, Any]:
        return {"result": {"baseline": "vllm", "entrant": "pagewire", "starts": starts, "left_out": [], **rows}}

    spreads = [{"median": m, "min": m, "max": m, "values": [m]} for m in (2.0, 4.0)]
    common = {"num_output_tokens": 8, "num_runs": 3}
    won = {"title": "won", "is_latency": True, "seconds": {"vllm": spreads[1], "pagewire": spreads[0]}}
    lost = {
        "title": "lost",
        "is_latency": False,
        "seconds": {"vllm": spreads[0], "pagewire": spreads[1]},
        "note": "why",
    }
    table = next(beside_tables([result(rows=[won | common, lost | common])]))
    assert "| won, ms | 4,000 | 2,000 | **2.00** | 3 |" in table
    assert "| start of LLM(), s | 60 | 15 | **4.00** | 1 |" in table
    assert "| lost, tok/s (why) | 4 | 2 | 0.50 | 3 |" in table
