"""What a shard records is replayed: by real processes, from the start of a recording and from the middle."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import shards_and_router
from pagewire import Client, SamplingParams, StructuredOutputsParams
from pagewire.v1 import shard_pb2
from pagewire_shard.loading.model_source import DEMO_MODEL_DIR
from pagewire_shard.recording.records import HEADER, Kind, NoRecording, packed, read_records


def ask(client: Client, index: int) -> int:
    """A request of one of several kinds, some of which share prefixes."""
    prompt = "The quick brown fox jumps over the lazy dog and runs away. " * (1 + index % 4) + str(index % 3)
    params = SamplingParams(
        max_tokens=40,
        temperature=0.0 if index % 2 else 0.9,
        n=2 if index % 4 == 0 else 1,
        seed=index,
        ignore_eos=True,
        logprobs=1 if index % 5 == 0 else None,
        structured_outputs=StructuredOutputsParams(regex="[a-z ]{30,60}") if index % 6 == 3 else None,
    )
    return sum(1 for _ in client.generate(prompt, params))


def record(directory: Path, size: str, num_requests: int) -> Path:
    """Serves requests with a recorder, and kills the shard."""
    path = directory / "flight"
    flags = ("--kv-cache-memory", "32MiB", "--flight-recorder", str(path), "--flight-recorder-size", size)
    with shards_and_router(DEMO_MODEL_DIR, *flags) as cluster:
        with Client(cluster.address) as client, ThreadPoolExecutor(6) as threads:
            assert all(threads.map(lambda index: ask(client, index), range(num_requests)))
        cluster.shards[0].process.kill()
    return path


def replay(path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pagewire", "replay", str(path), "--model", "demo"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def with_another_token(path: Path) -> int:
    """Changes one sampled token of the middle of the recording; returns the plan's number."""
    records = list(read_records(path))
    results = [i for i, (kind, payload) in enumerate(records) if kind is Kind.RESULT]
    index = next(
        i for i in results[len(results) // 2 :] if shard_pb2.StepResult.FromString(records[i][1]).sampled_token_ids
    )
    result = shard_pb2.StepResult.FromString(records[index][1])
    result.sampled_token_ids[0] ^= 1
    records[index] = (Kind.RESULT, result.SerializeToString())
    magic = path.read_bytes().partition(b"\n")[0] + b"\n"
    path.write_bytes(magic + b"".join(packed(kind, payload) for kind, payload in records))
    return result.step


@pytest.mark.slow
def test_a_recording_from_the_start_is_replayed_until_the_token_that_differs(tmp_path: Path) -> None:
    path = record(tmp_path, "64MiB", 12)
    assert path.stat().st_mode & 0o777 == 0o600
    done = replay(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps came out as recorded" in done.stdout
    step = with_another_token(path)
    done = replay(path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"plan {step} of epoch 1 comes out otherwise: sequence" in done.stdout


@pytest.mark.slow
def test_a_recording_that_begins_in_the_middle_is_replayed_too(tmp_path: Path) -> None:
    path = record(tmp_path, "40KiB", 24)
    assert (tmp_path / "flight.1").exists()
    kinds = [kind for kind, _ in read_records(path)]
    assert Kind.SEQUENCE in kinds
    done = replay(path)
    assert done.returncode == 0, done.stdout + done.stderr
    step = with_another_token(path)
    done = replay(path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"plan {step} of epoch 1 comes out otherwise: sequence" in done.stdout


def test_the_record_that_a_killed_process_has_cut_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    path.write_bytes(b"pagewire flight recorder 1\n" + packed(Kind.START, b"{}") + HEADER.pack(Kind.PLAN, 9) + b"cut")
    assert list(read_records(path)) == [(Kind.START, b"{}")]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    path.write_bytes(b"something else")
    with pytest.raises(NoRecording, match="no flight recording"):
        list(read_records(path))
