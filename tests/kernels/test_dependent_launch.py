"""Kernels that start while the one before still runs: the rules that make it safe, and that it changes nothing.

Every op that launches such kernels has ahead-of-time cases, from which the kernels are taken here.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from kernel_aot import compiling as aot
from pagewire_kernels.gpu import dependent_launch
from pagewire_kernels.tuning.few_rows_linear import HopperTile

MODULES = (
    *(
        "few_rows_linear.triton",
        "few_rows_linear.hopper",
        "rms_norm.triton",
        "rotary_and_cache.triton",
        "activation.triton",
    ),
    *("paged_attention.triton_decode", "paged_attention.triton_combine"),
)
HOPPER = 90


def kernels() -> dict[str, Any]:
    """The kernels that may be launched early, by name."""
    cases = aot.collect().values()
    return {case.kernel.fn.__name__: case.kernel.fn for case in cases if "PDL" in case.kernel.arg_names}


def is_call_of(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name)


def before_the_wait(kernel: Any) -> Iterator[ast.stmt]:
    """The statements of a kernel up to its wait, which is one of them, not part of one."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(kernel))).body
    assert isinstance(function, ast.FunctionDef)
    for statement in function.body:
        if isinstance(statement, ast.Expr) and is_call_of(statement.value, "wait_for_previous"):
            return
        yield statement
    pytest.fail(f"{kernel.__name__} does not wait in every case")


def test_the_kernels_of_a_decode_layer_may_start_early() -> None:
    names = {"rms_norm_kernel", "few_rows_linear_kernel", "rotary_and_cache_kernel", "reshape_and_cache_kernel"}
    assert names | {"decode_attention_kernel", "combine_splits_kernel", "moe_up_kernel"} <= set(kernels())


@pytest.mark.parametrize("name", sorted(kernels()))
def test_no_program_ends_before_it_has_waited(name: str) -> None:
    for statement in before_the_wait(kernels()[name]):
        assert not any(isinstance(node, ast.Return) for node in ast.walk(statement))


def test_machine_code_touches_no_memory_before_the_wait_but_weights() -> None:
    cases = aot.collect()
    jobs = [job for job in aot.sample(cases, HOPPER) if "PDL" in cases[job[0]].kernel.arg_names]
    found, failed = aot.measure(jobs, num_processes=2)
    assert not failed
    early = {cases[key].kernel.fn.__name__ for (key, _), resources in found.items() if resources.before_wait}
    # The latter is causal_conv's, which loads its last taps.
    assert early == {"few_rows_linear_kernel", "decode_kernel"}


def test_devices_without_it_are_not_asked_for_it() -> None:
    assert dependent_launch.launch_options(torch.device("cpu")) == {"PDL": False}


def layers(num_layers: int, tile: HopperTile | None) -> Callable[[], list[torch.Tensor]]:
    """Layers of one token at a time, whose kernels are short: each reads what the one before has just written.

    tile: of the products; None: they are triton.py's.
    """
    from pagewire_kernels.few_rows_linear import few_rows_linear
    from pagewire_kernels.paged_attention import AttentionInputs, paged_attention
    from pagewire_kernels.rms_norm import rms_norm
    from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache

    make = {"dtype": torch.bfloat16, "device": "cuda"}
    torch.manual_seed(0)
    qkv, o = torch.randn(768, 512, **make) / 16, torch.randn(512, 512, **make) / 16
    gate_up, down = torch.randn(2048, 512, **make) / 16, torch.randn(512, 1024, **make) / 16
    norm, cos_sin = torch.randn(512, **make), torch.randn(400, 128, device="cuda")
    caches = [torch.randn(8, 64, 1, 128, **make) for _ in range(2 * num_layers)]
    tables = torch.arange(7, -1, -1, dtype=torch.int32, device="cuda")[None]
    starts, lens = (torch.tensor(x, dtype=torch.int32, device="cuda") for x in ([0, 1], [321]))
    positions, slots = torch.tensor([320], device="cuda"), torch.tensor([2 * 64], device="cuda")
    x = torch.randn(1, 512, **make)

    def run() -> list[torch.Tensor]:
        outputs, y, residual = [], x, x
        for keys, values in zip(caches[::2], caches[1::2], strict=True):
            normed, residual = rms_norm(y, norm, 1e-5, residual)
            heads = few_rows_linear(normed, qkv, tile=tile).view(1, 6, 128)
            query, key, value = heads.split_with_sizes([4, 1, 1], 1)
            rotary_and_cache(RotaryInputs(query, key, value, positions, cos_sin, keys, values, slots))
            lengths = {"max_query_len": 1, "max_seq_len": 512, "num_decodes": 1}
            attended = paged_attention(AttentionInputs(query, keys, values, tables, starts, lens, scale=0.1, **lengths))
            normed, residual = rms_norm(few_rows_linear(attended.view(1, 512), o, tile=tile), norm, 1e-5, residual)
            activated = few_rows_linear(normed, gate_up, gated=True, tile=tile)
            y = few_rows_linear(activated, down, tile=tile)
            outputs.append(y)
        return outputs

    return run


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tile", [None, HopperTile(16, 64, 2, 4, 4, 1)], ids=["one row", "hopper"])
def test_kernels_that_start_early_compute_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tile: HopperTile | None
) -> None:
    if tile is not None and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernel is for Hopper")
    run = layers(40, tile)
    early = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for module in MODULES:
        options = lambda device: {"PDL": False}  # noqa: E731
        monkeypatch.setattr(importlib.import_module(f"pagewire_kernels.{module}"), "launch_options", options)
    expected = run()
    assert all(torch.equal(left, right) for left, right in zip(early, expected, strict=True))
    for _ in range(50):
        for output in captured:
            output.fill_(torch.nan)
        graph.replay()
        assert all(torch.equal(left, right) for left, right in zip(captured, expected, strict=True))
