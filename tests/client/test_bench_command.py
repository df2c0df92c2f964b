"""`pagewire bench` from end to end, against a server in this process."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import psutil
import pytest
from pagewire.bench.processes import default_processes
from pagewire.cli import main
from pagewire.v1 import inference_pb2 as pb
from pagewire.v1 import inference_pb2_grpc

VLLM_KEYS = {
    "date", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness",
    "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput",
    "max_output_tokens_per_s", "max_concurrent_requests",
    *(
        f"{kind}_{name}_ms"
        for kind in ("mean", "median", "std", "p50", "p90", "p99")
        for name in ("ttft", "tpot", "itl", "e2el")
    ),
}  # fmt: skip
REFUSED_TOKEN = 3


class Server(inference_pb2_grpc.InferenceServicer):
    """Answers with the tokens asked for, two in a message; refuses prompts that start with REFUSED_TOKEN."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.num_open = self.max_open = 0

    async def GetModel(self, request: pb.GetModelRequest, context: object) -> pb.Model:  # noqa: N802
        return pb.Model(name="fake", vocab_size=REFUSED_TOKEN)

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            if list(request.token_ids.ids[:1]) == [REFUSED_TOKEN]:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
            yield pb.GenerateResponse(started=pb.Started(num_prompt_tokens=len(request.token_ids.ids) or 2))
            for start in range(0, request.sampling_params.max_tokens, 2):
                await asyncio.sleep(0.001)
                token_ids = range(request.sampling_params.max_tokens)[start : start + 2]
                yield pb.GenerateResponse(delta=pb.Delta(text="ab", token_ids=token_ids))
            yield pb.GenerateResponse(finished=pb.Finished(usage=pb.Usage(cached_tokens=1)))
        finally:
            self.num_open -= 1


@pytest.fixture
def served() -> Iterator[tuple[Server, str]]:
    """The server and its address; it runs in a thread of its own, as the command has its own event loop."""
    server, address = Server(), ""  # type: ignore[abstract]
    ready, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        nonlocal address
        grpc_server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServicer_to_server(server, grpc_server)
        address = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
        await grpc_server.start()
        ready.set()
        await stop.wait()
        await grpc_server.stop(None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield server, address
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def test_a_run_reports_what_it_measured(
    served: tuple[Server, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, address = served
    result_path, plot_path = tmp_path / "results" / "run.json", tmp_path / "plots" / "run.png"
    status = main([
        "bench", "--server", address, "--num-prompts", "12", "--random-input-len", "4", "--random-output-len", "5",
        "--max-concurrency", "3", "--num-warmups", "2", "--goodput", "ttft:60000", "tpot:60000",
        "--metadata", "note=hello", "--save-result", str(result_path), "--save-detailed", "--plot", str(plot_path),
    ])  # fmt: skip
    assert status == 0
    result = json.loads(result_path.read_text())
    assert result.keys() >= VLLM_KEYS
    assert (result["completed"], result["failed"], result["num_prompts"]) == (12, 0, 12)
    assert (result["total_input_tokens"], result["total_cached_tokens"]) == (48, 12)
    assert (result["total_output_tokens"], result["total_messages"]) == (60, 36)
    assert (result["model_id"], result["request_rate"], result["note"]) == ("fake", "inf", "hello")
    assert result["max_concurrent_requests"] == server.max_open == 3
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["output_lens"] == [5] * 12
    assert result["generated_texts"] == ["ababab"] * 12
    assert [len(itls) for itls in result["itls"]] == [2] * 12
    assert plot_path.read_bytes().startswith(b"\x89PNG")
    assert len(server.requests) == 14
    output = capsys.readouterr().out
    assert "Output tokens per second" in output
    assert "Time to first token" in output


def test_a_load_from_several_processes_is_the_same_load(served: tuple[Server, str], tmp_path: Path) -> None:
    server, address = served
    results = []
    for num_processes in (1, 3):
        path = tmp_path / f"{num_processes}.json"
        status = main([
            "bench", "--server", address, "--num-prompts", "20", "--random-input-len", "4", "--random-output-len", "5",
            "--max-concurrency", "7", "--random-range-ratio", "0.5", "--request-rate", "200",
            "--client-processes", str(num_processes), "--save-result", str(path), "--save-detailed",
        ])  # fmt: skip
        assert status == 0
        results.append(json.loads(path.read_text()))
    alone, together = results
    assert together["client_processes"] == 3
    for key in ("completed", "failed", "total_input_tokens", "total_output_tokens", "total_messages", "output_lens"):
        assert together[key] == alone[key]
    assert max(server.max_open, together["max_concurrent_requests"]) <= 7
    prompts = [
        sorted(tuple(request.token_ids.ids) for request in half)
        for half in (server.requests[:20], server.requests[20:])
    ]
    assert prompts[0] == prompts[1]
    # All processes send on one clock.
    for one, other in zip(alone["start_times"], together["start_times"], strict=True):
        assert other == pytest.approx(one, abs=0.5)
    assert together["duration"] > max(together["start_times"])


def test_a_client_process_that_fails_fails_the_run(served: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, address = served
    monkeypatch.setattr("pagewire.bench.processes.sys.executable", "false")
    with pytest.raises(RuntimeError, match="a client process ended with status 1 before it began"):
        main(["bench", "--server", address, "--num-prompts", "2", "--client-processes", "2"])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_client_processes_end_with_the_command(served: tuple[Server, str], sent: signal.Signals) -> None:
    server, address = served
    command = [sys.executable, "-m", "pagewire", "bench", "--server", address, "--client-processes", "2"]
    command += ["--num-prompts", "2", "--random-output-len", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while server.num_open < 2:
            assert process.poll() is None
            time.sleep(0.01)
        clients = psutil.Process(process.pid).children()
        process.send_signal(sent)
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    _, alive = psutil.wait_procs(clients, timeout=20)
    for client in alive:
        client.kill()
    assert (len(clients), alive) == (2, [])
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("cores", "num_requests", "max_concurrency", "expected"),
    [(2, 5000, 1024, 1), (16, 5000, 1024, 4), (16, 512, 256, 1), (16, 2000, None, 4), (64, 700, None, 3), (1, 1, 1, 1)],
)
def test_the_number_of_processes_follows_open_streams_and_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, num_requests: int, max_concurrency: int | None, expected: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert default_processes(num_requests, max_concurrency) == expected


def test_requests_ask_for_all_their_tokens_greedily(served: tuple[Server, str]) -> None:
    server, address = served
    assert main(["bench", "--server", address, "--num-prompts", "2", "--output-len", "3", "--disable-tqdm"]) == 0
    for request in server.requests:
        assert request.sampling_params.ignore_eos
        assert request.sampling_params.temperature == 0
        assert all(token < REFUSED_TOKEN for token in request.token_ids.ids)


def test_requests_arrive_at_the_rate_asked_for(served: tuple[Server, str], tmp_path: Path) -> None:
    _, address = served
    path = tmp_path / "run.json"
    command = ["bench", "--server", address, "--num-prompts", "20", "--random-output-len", "1", "--save-result"]
    assert main([*command, str(path), "--save-detailed", "--request-rate", "200", "--burstiness", "100"]) == 0
    starts_s = json.loads(path.read_text())["start_times"]
    assert starts_s == sorted(starts_s)
    assert starts_s[-1] > 0.05


def test_failed_requests_are_counted_and_named(
    served: tuple[Server, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, address = served
    prompts, path = tmp_path / "prompts.jsonl", tmp_path / "run.json"
    prompts.write_text('{"prompt_token_ids": [3]}\n{"prompt_token_ids": [1]}\n{"prompt": "text"}\n')
    command = ["bench", "--server", address, "--dataset-name", "file", "--dataset-path", str(prompts)]
    assert main([*command, "--num-prompts", "3", "--save-result", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (result["completed"], result["failed"]) == (2, 1)
    assert "1 x RESOURCE_EXHAUSTED: the queue is full" in capsys.readouterr().out


def test_a_run_without_any_success_fails(served: tuple[Server, str], tmp_path: Path) -> None:
    _, address = served
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt_token_ids": [3]}')
    command = ["bench", "--server", address, "--dataset-name", "file", "--dataset-path", str(prompts)]
    assert main([*command, "--num-prompts", "1"]) == 1


@pytest.mark.slow
def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--server", "unix:/nowhere/pagewire.sock", "--timeout", "1"]) == 1
    assert "unix:/nowhere/pagewire.sock" in capsys.readouterr().err


def test_a_file_workload_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--dataset-name", "file"]) == 1
    assert "--dataset-path" in capsys.readouterr().err


def test_named_lengths_are_those_of_the_prompts_and_answers(served: tuple[Server, str]) -> None:
    server, address = served
    assert main(["bench", "--server", address, "--num-prompts", "1", "--lengths", "1k-1k", "--no-progress"]) == 0
    (request,) = server.requests
    assert (len(request.token_ids.ids), request.sampling_params.max_tokens) == (1024, 1024)


def test_what_is_no_object_is_refused_as_extra_body(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--backend", "openai", "--extra-body", "[1]"])
    assert "is no JSON object" in capsys.readouterr().err
