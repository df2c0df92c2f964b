"""The process that runs parts. It may crash, hang or lose its device; the run goes on without it.

It reads one JSON line for each part to run and answers with one. What parts and libraries print goes to standard error,
so that nothing mixes with the answers.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from machine import ROOT

from gpu_parts import (
    attention_timings,
    ceilings,
    delta_timings,
    engine_parts,
    few_rows,
    kernel_timings,
    latent_timings,
    mamba2_timings,
    service_parts,
    shared_prefix_timings,
    transformers_parts,
)
from gpu_parts.cases import DoesNotFit
from gpu_parts.clock import NUM_SAMPLES, Clock
from gpu_parts.part import Bench, Ceilings, Part

PARTS: tuple[Part, ...] = (
    *ceilings.PARTS,
    *attention_timings.PARTS,
    *shared_prefix_timings.PARTS,
    *kernel_timings.PARTS,
    *few_rows.PARTS,
    *delta_timings.PARTS,
    *latent_timings.PARTS,
    *mamba2_timings.PARTS,
    *engine_parts.PARTS,
    *service_parts.PARTS,
    *transformers_parts.PARTS,
)
TRACEBACK_LINES = 12
EXIT_DEVICE_LOST = 3


def serve(bench: Bench, parts: dict[str, Part]) -> int:
    """Runs what standard input asks for, until it ends. Returns the exit status."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        if request["ceilings"]:
            bench.ceilings = Ceilings(**request["ceilings"])
        answer = run(bench, parts[request["part"]])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer.get("device_lost"):
            return EXIT_DEVICE_LOST
    return 0


def run(bench: Bench, part: Part) -> dict[str, Any]:
    """Runs one part; an error becomes its answer."""
    torch.manual_seed(0)
    began_s = time.perf_counter()
    answer: dict[str, Any] = {}
    try:
        answer["rows"] = list(part.run(bench))
    except DoesNotFit as reason:
        answer["skipped"] = str(reason)
    except Exception as error:  # at the top of the loop, so that the next part runs
        answer["error"] = f"{type(error).__name__}: {error}"
        # Paths of this checkout are removed from the traceback.
        lines = traceback.format_exc().replace(f"{ROOT}{os.sep}", "").splitlines()
        answer["traceback"] = lines[-TRACEBACK_LINES:]
        # The traceback's frames hold tensors, which are freed here.
        error.__traceback__ = None
        answer["device_lost"] = not _settle(bench)
    answer["seconds"] = time.perf_counter() - began_s
    if bench.ceilings is not None:
        answer["ceilings"] = {name: getattr(bench.ceilings, name) for name in Ceilings.__slots__}
    return answer


def _settle(bench: Bench) -> bool:
    """Frees what a failed part has left. False: the device does not answer, so that this process must end."""
    try:
        bench.release_model()
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
    except RuntimeError:
        return False
    return True


def make_bench(device: str, tiny: bool, folder: Path, output_len: int) -> Bench:
    """The bench of a process."""
    target = torch.device(device)
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    num_samples = 3 if tiny else NUM_SAMPLES
    return Bench(target, dtype, tiny, Clock(target, num_samples), None, folder, output_len)
