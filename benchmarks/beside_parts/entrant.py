"""An engine as the command line names it, and the process it runs in."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from beside_parts.workloads import Batch

WORKER = Path(__file__).with_name("worker.py")
END_TIMEOUT_S = 60.0
NUM_LAST_LINES = 15
KINDS = ("vllm", "pagewire")


class EngineDied(RuntimeError):
    """An engine ended, or answered with fewer tokens than it was asked for: nothing may be compared with it."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """An engine of the comparison."""

    label: str
    kind: str
    """One of KINDS."""
    python: str = sys.executable
    """Interpreter of an environment that has the engine."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of its class LLM, beside the model's; flags of its server have the same names."""


def gpu_state() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU now; nothing without one."""
    names = ("name", "memory.used", "clocks.sm", "temperature.gpu", "power.draw")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(names, line.split(", "), strict=True)) for line in done.stdout.splitlines()]


class EngineProcess:
    """An engine that is resident and computes on request. A context manager: leaving it ends the process."""

    def __init__(self, entrant: Entrant, log: Path) -> None:
        """Starts it and waits until it is ready. Raises EngineDied."""
        self.label = entrant.label
        self._log = log
        began_s = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [entrant.python, str(WORKER), entrant.kind, json.dumps(entrant.options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.start: dict[str, Any] = self._answer() | {"ready_s": time.perf_counter() - began_s}

    def run(self, batch: Batch) -> dict[str, Any]:
        """One run. Raises EngineDied, also if an answer is shorter than was asked for."""
        assert self._process.stdin is not None
        request = {"prompts": batch.prompts, "max_tokens": batch.max_tokens, "sampling": batch.sampling}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        answer = self._answer()
        if answer["num_output_tokens"] != batch.max_tokens:
            asked = sum(batch.max_tokens)
            missing = asked - sum(answer["num_output_tokens"])
            raise EngineDied(f"{self.label} left {missing} of {asked} tokens out; its log: {self._log}")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> EngineDied:
        status = self._process.wait()
        last = "\n".join(self._log.read_text(errors="replace").splitlines()[-NUM_LAST_LINES:])
        return EngineDied(f"{self.label} ended with status {status}; the end of its log, {self._log}:\n{last}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(END_TIMEOUT_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
