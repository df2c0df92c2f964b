"""vLLM's quick example with nothing changed but its import, and what an LLM leaves behind: nothing."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import transformers
from cluster import eventually, is_running
from random_models import VOCAB_SIZE, family_configs, write_model

EXAMPLE = """
from pagewire import LLM, SamplingParams

prompts = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
llm = LLM(model={model!r})
outputs = llm.generate(prompts, sampling_params)
for output in outputs:
    prompt = output.prompt
    generated_text = {text}
    print(f"Prompt: {{prompt!r}}, Generated text: {{generated_text!r}}")
"""
PROMPTS = (
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
)
# Starts an LLM, says so, and goes on as the test wants it.
LIFE = """
import os, sys, time
from pagewire import LLM, SamplingParams
llm = LLM(model=sys.argv[1], device="cpu", cpu_threads=1)
[output] = llm.generate("Hello", SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
assert len(output.outputs[0].token_ids) == 4
[counter] = [m for m in llm.get_metrics() if (m.name, m.labels.get("kind")) == ("pagewire_tokens", "generation")]
assert counter.value == 4
"""
ENDS = {
    "closed": "llm.close(); print('done', flush=True); time.sleep(60)",
    "collected": "del llm; print('done', flush=True); time.sleep(60)",
    "left by an exception": "raise SystemExit(3)",
    "killed": "os.kill(os.getpid(), 9)",
    "killed while it generates": (
        "import threading; threading.Timer(0.2, os.kill, (os.getpid(), 9)).start(); "
        "llm.generate('Hello', SamplingParams(max_tokens=100, n=100, ignore_eos=True))"
    ),
}


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config: transformers.OPTConfig = family_configs()["opt"]
    config.vocab_size = VOCAB_SIZE + 89  # the tokenizer needs all 256 bytes
    config.bos_token_id = config.pad_token_id = 0
    config.eos_token_id = None  # Random weights would now and then end a text before its first token.
    return write_model(tmp_path_factory.mktemp("opt"), config)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the processes of a test put their temporary files."""
    with tempfile.TemporaryDirectory(prefix="pw-") as name:
        yield Path(name)


def processes_of(model: Path) -> list[int]:
    """All that have the model in their command line."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(model) in word for word in process.info["cmdline"] or ()) and is_running(process.pid)
    ]


def check_nothing_is_left(model: Path, temporary: Path) -> None:
    eventually(lambda: not processes_of(model), "all processes are gone")
    eventually(lambda: not list(temporary.glob("pagewire*")), "all temporary directories are gone")


@pytest.mark.parametrize("text", ["output.outputs[0].text", "output.outputs.text"])
def test_the_quick_example_runs_with_only_its_import_changed(opt: Path, temporary: Path, text: str) -> None:
    script = temporary / "example.py"
    script.write_text(EXAMPLE.format(model=str(opt), text=text))
    environment = {**os.environ, "TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout
    for line, prompt in zip(lines, PROMPTS, strict=True):
        assert line.startswith(f"Prompt: {prompt!r}, Generated text: ")
        assert not line.endswith("''")
    assert "Traceback" not in done.stderr
    check_nothing_is_left(opt, temporary)


@pytest.mark.parametrize("end", ENDS)
def test_an_llm_leaves_no_processes_and_no_files(opt: Path, temporary: Path, end: str) -> None:
    script = LIFE + ENDS[end]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(opt)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        if end in ("closed", "collected"):
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
            # The process itself still runs, and has the model in its command line.
            eventually(lambda: processes_of(opt) == [process.pid], "its server is gone")
            assert not list(temporary.glob("pagewire*"))
            process.kill()
        _, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    expected = 3 if end == "left by an exception" else -signal.SIGKILL
    assert process.returncode == expected, errors
    assert "Traceback" not in errors, errors
    check_nothing_is_left(opt, temporary)
