"""Grammars are compiled in a process that can be killed: whatever they are, the shard answers soon and goes on."""

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from subprocess import Popen

import grpc
import pytest
from grammar_world import EOS, demo_source, outputs, prepare
from pagewire.v1 import inference_pb2
from pagewire_shard.grammar.compile_process import CompileProcess
from pagewire_shard.grammar.compile_worker import Child, Forker
from pagewire_shard.grammar.errors import CompilerGone
from pagewire_shard.grammar.grammars import Grammars, Prepared
from pagewire_shard.grammar.limits import GrammarLimits

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

from grammar_parts.hostile import HOSTILE

SLOW = HOSTILE["1 MB regex of letters"]
"""Takes some seconds to compile."""
TIMEOUT_S = 30.0


@pytest.fixture
def compiler() -> Iterator[CompileProcess]:
    compiler = CompileProcess(demo_source(), GrammarLimits(compile_timeout_s=20.0))
    yield compiler
    compiler.close()


def submit(compiler: CompileProcess, source: inference_pb2.StructuredOutputs) -> "queue.Queue[object]":
    answers: queue.Queue[object] = queue.Queue()
    compiler.submit(source.SerializeToString(), answers.put)
    return answers


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_grammar_that_takes_too_long_is_answered_and_delays_no_other():
    grammars = Grammars(GrammarLimits(compile_timeout_s=3.0))
    grammars.open(demo_source())
    prepare(grammars, "first", outputs(regex="x"))
    slow: queue.Queue[Prepared] = queue.Queue()
    for i in range(3):
        grammars.prepare(f"slow {i}", outputs(regex=SLOW.regex + "b" * i), slow.put)
    assert prepare(grammars, "quick", outputs(regex="a+")).code is grpc.StatusCode.OK
    assert slow.empty(), "the quick one does not wait for the slow ones"
    for _ in range(3):
        answer = slow.get(timeout=TIMEOUT_S)
        assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        # A fast machine comes to the limit of the lexer before that.
        assert "takes more than 3 s" in answer.message or "too large" in answer.message
    assert grammars.count().num_process_starts == 1
    grammars.close()


def test_a_grammar_that_takes_too_much_memory_is_answered():
    grammars = Grammars(GrammarLimits(compile_timeout_s=20.0, compile_memory_bytes=24 << 20))
    grammars.open(demo_source())
    answer = prepare(grammars, "big", outputs(choice=[f"option {i} of many" for i in range(40_000)]))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "24 MiB" in answer.message
    assert prepare(grammars, "small", outputs(regex="a+")).code is grpc.StatusCode.OK
    grammars.close()


def test_a_child_that_is_killed_compiles_again(compiler):
    assert submit(compiler, outputs(regex="x")).get(timeout=TIMEOUT_S)
    slow = submit(compiler, outputs(regex="c" * 200_000))
    worker = compiler.worker_pid
    wait_for(lambda: children_of(worker))
    os.kill(children_of(worker)[0], signal.SIGKILL)
    assert not isinstance(slow.get(timeout=TIMEOUT_S), CompilerGone)
    assert compiler.num_starts == 1


def test_a_process_that_is_killed_is_replaced_and_nobody_notices(compiler):
    assert submit(compiler, outputs(regex="x")).get(timeout=TIMEOUT_S)
    first = compiler.worker_pid
    slow = submit(compiler, outputs(regex="c" * 200_000))
    wait_for(lambda: children_of(first))
    (child,) = children_of(first)
    os.kill(first, signal.SIGKILL)
    quick = submit(compiler, outputs(regex="y"))
    assert not isinstance(quick.get(timeout=TIMEOUT_S), CompilerGone)
    assert not isinstance(slow.get(timeout=TIMEOUT_S), CompilerGone)
    assert compiler.num_starts == 2
    wait_for(lambda: not Path(f"/proc/{child}").exists())


def test_a_job_that_is_killed_twice_fails(compiler):
    assert submit(compiler, outputs(regex="x")).get(timeout=TIMEOUT_S)
    slow = submit(compiler, SLOW)
    killed: set[int] = set()
    for _ in range(2):
        wait_for(lambda: set(children_of(compiler.worker_pid)) - killed)
        (child,) = set(children_of(compiler.worker_pid)) - killed
        killed.add(child)
        os.kill(child, signal.SIGKILL)
    assert isinstance(slow.get(timeout=TIMEOUT_S), CompilerGone)


def test_closing_answers_those_who_wait():
    compiler = CompileProcess(demo_source(), GrammarLimits(compile_timeout_s=60.0))
    slow = submit(compiler, SLOW)
    wait_for(lambda: compiler.worker_pid is not None)
    worker = compiler.worker_pid
    compiler.close()
    assert isinstance(slow.get(timeout=TIMEOUT_S), CompilerGone)
    assert isinstance(submit(compiler, outputs(regex="x")).get(timeout=TIMEOUT_S), CompilerGone)
    assert not Path(f"/proc/{worker}").exists()


def test_large_sources_and_large_answers_pass_each_other(compiler):
    sources = [outputs(choice=[f"{'x' * 400} {i} {j}" for j in range(800)]) for i in range(8)]
    answers = [submit(compiler, source) for source in sources]
    assert all(answer.get(timeout=TIMEOUT_S) for answer in answers)


def test_what_is_compiled_is_compiled_once(grammars: Grammars):
    asked = outputs(regex="only once [0-9]+")
    before = grammars.count().num_prepared.copy()
    answers: queue.Queue[Prepared] = queue.Queue()
    for name in ("a", "b", "c"):
        grammars.prepare(name, asked, answers.put)
    assert {answers.get(timeout=TIMEOUT_S).name for _ in range(3)} == {"a", "b", "c"}
    assert all(grammars.matcher(name, (EOS,)) for name in ("a", "b", "c"))
    grammars.end_epoch()
    assert prepare(grammars, "d", asked).code is grpc.StatusCode.OK
    after = grammars.count().num_prepared
    assert (after["compiled"] - before["compiled"], after["cached"] - before["cached"]) == (3, 1)


def test_grammars_in_use_are_never_dropped():
    grammars = Grammars(GrammarLimits(cache_bytes=1))
    grammars.open(demo_source())
    assert prepare(grammars, "first", outputs(regex="a+")).code is grpc.StatusCode.OK
    refused = prepare(grammars, "second", outputs(regex="b+"))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "in use" in refused.message
    grammars.forget(["first"])
    assert prepare(grammars, "second", outputs(regex="b+")).code is grpc.StatusCode.OK
    assert grammars.count().num_cached == 1
    grammars.close()


def test_a_probe_thread_runs_on_while_grammars_are_compiled_and_built(grammars: Grammars):
    """llguidance drops the GIL: a thread that wants to run every millisecond is never kept from it for long."""
    gaps_s: list[float] = []
    stop = threading.Event()

    def probe() -> None:
        last_s = time.perf_counter()
        while not stop.wait(0.001):
            now_s = time.perf_counter()
            gaps_s.append(now_s - last_s)
            last_s = now_s

    thread = threading.Thread(target=probe)
    thread.start()
    assert prepare(grammars, "large", outputs(choice=[f"option {i}" for i in range(8_000)])).code is grpc.StatusCode.OK
    stop.set()
    thread.join()
    assert max(gaps_s) < 0.5


def test_refusals_are_remembered(grammars: Grammars):
    asked = outputs(regex="refused (")
    first, second = prepare(grammars, "r", asked), prepare(grammars, "r", asked)
    assert first.code is second.code is grpc.StatusCode.INVALID_ARGUMENT
    assert first.message == second.message


@pytest.mark.parametrize(
    "tag",
    [
        {"type": "structural_tag", "format": {"type": []}},
        {"type": "structural_tag", "format": {"type": "any_tokens", "exclude_tokens": 5}},
        {"type": "structural_tag", "format": {"type": "token", "token": 2**40}},
    ],
    ids=["a list as type", "a number as tokens", "a token far outside the vocabulary"],
)
def test_what_no_reader_expects_is_the_callers_fault(grammars: Grammars, tag: dict[str, object]):
    answer = prepare(grammars, "odd", outputs(structural_tag=json.dumps(tag)))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, answer.message


def test_half_an_answer_of_a_child_that_was_killed_is_none():
    ours, theirs = Pipe()
    forker = Forker(theirs, None, None, {"compile_timeout_s": 5, "compile_memory_bytes": 1 << 20})
    reading, writing = os.pipe()
    child = Popen(["sleep", "60"])
    os.write(writing, b'{"outcome": "comp')
    os.close(writing)
    forker._children[reading] = Child(child.pid, 7, time.monotonic() + 5, [os.read(reading, 100)])
    child.kill()
    forker._finish(reading)
    assert json.loads(bytes(forker._outbox[4:]))["outcome"] == "killed"
    ours.close()


def test_grammars_that_nobody_waits_for_any_more_hold_up_no_other():
    grammars = Grammars(GrammarLimits(compile_timeout_s=20.0))
    grammars.open(demo_source())
    prepare(grammars, "first", outputs(regex="x"))
    withdrawn: queue.Queue[Prepared] = queue.Queue()
    names = [f"slow {i}" for i in range(12)]
    for i, name in enumerate(names):
        grammars.prepare(name, outputs(regex=SLOW.regex + "b" * i), withdrawn.put)
    grammars.forget(names)
    begun_s = time.monotonic()
    assert prepare(grammars, "quick", outputs(regex="a+")).code is grpc.StatusCode.OK
    assert time.monotonic() - begun_s < 5, "compiling one of the others takes some seconds, four at a time"
    answers = [withdrawn.get(timeout=TIMEOUT_S) for _ in names]
    assert {answer.code for answer in answers} == {grpc.StatusCode.CANCELLED}
    assert grammars.count().num_waiting == 0
    grammars.close()


def test_a_grammar_that_was_withdrawn_can_be_asked_for_again(grammars: Grammars):
    asked = outputs(choice=[f"choice {i} of many" for i in range(5_000)])
    first: queue.Queue[Prepared] = queue.Queue()
    grammars.prepare("again", asked, first.put)
    grammars.forget(["again"])
    assert prepare(grammars, "again", asked).code is grpc.StatusCode.OK
    assert first.get(timeout=TIMEOUT_S).code is grpc.StatusCode.CANCELLED
    assert grammars.matcher("again", (EOS,))


def test_that_a_grammar_is_too_costly_is_remembered():
    grammars = Grammars(GrammarLimits(compile_timeout_s=0.3))
    grammars.open(demo_source())
    first, second = prepare(grammars, "a", SLOW), prepare(grammars, "b", SLOW)
    assert first.code is second.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grammars.count().num_waiting == 0
    begun_s = time.monotonic()
    for i in range(20):
        prepare(grammars, f"c{i}", SLOW)
    assert time.monotonic() - begun_s < 3
    grammars.close()
