"""Every Triton kernel compiles for every GPU generation, within its limits, and takes what the committed table says.

The quick test compiles each kernel once; the slow one all cases for all targets. The machine needs no GPU.
"""

import pytest

pytest.importorskip("triton")
import kernel_table
import triton
import triton.language as tl
from kernel_aot import compiling as aot
from kernel_aot.case import TARGETS, AotCase
from kernel_aot.descriptors import broken_descriptors

HOPPER = 90
ADVICE = "if that is meant, run `python tools/kernel_table.py` and commit the table"


def check(jobs: list[aot.Job]) -> None:
    found, failed = aot.measure(jobs, num_processes=2)
    assert kernel_table.violations(found, failed) == []
    table, version = kernel_table.read_table(), kernel_table.triton_version()
    if version in table:
        assert kernel_table.differences(kernel_table.expected_resources(table, version), found) == [], ADVICE


def test_each_kernel_compiles_for_hopper_as_the_table_says() -> None:
    check(aot.sample(aot.collect(), HOPPER))


@pytest.mark.slow
def test_every_case_compiles_for_every_target_as_the_table_says() -> None:
    check(aot.jobs(aot.collect()))


def test_the_table_lists_the_cases_that_there_are() -> None:
    listed = {(case, int(target)) for rows in [kernel_table.read_table()] for version in rows.values()
              for case, targets in version.items() for target in targets}  # fmt: skip
    assert listed == set(aot.jobs(aot.collect())), ADVICE


def test_attention_may_not_spill() -> None:
    attention = [case for key, case in aot.collect().items() if key.startswith("paged_attention/")]
    assert attention
    assert not any(case.may_spill for case in attention)


@triton.jit
def _scale(x_ptr, out_ptr, num_elements, factor, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < num_elements
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) * factor, mask=mask)


SCALE = {"x_ptr": "*fp32", "out_ptr": "*fp32", "num_elements": "i32", "factor": "fp32"}


@pytest.mark.parametrize("target", TARGETS)
def test_resources_are_read_from_the_compiled_kernel(target: int) -> None:
    resources = aot.compile_case(AotCase("scale", _scale, SCALE, {"BLOCK": 1024}), target)
    assert 0 < resources.registers <= 64
    assert (resources.spills, resources.shared_bytes, resources.tensor_core) == (0, 0, 0)
    assert aot.from_row(aot.as_row(resources)) == resources


NARROW_PRODUCT = """
        /*1260*/                   UMOV UR17, URZ ;                                /* 0x0000003f00117c82 */
        /*1270*/                   UIADD3 UR10, UP0, UR6, 0x40, URZ ;
        /*4cf0*/                   {0} ;
        /*4d00*/                   UIADD3.X UR4, UR9, 0x1, URZ, UP1, !UPT ;
        /*7860*/                   HGMMA.64x32x16.F32 R24, R44, gdesc[UR8].tnspB, R24, gsb0 ;
"""


@pytest.mark.parametrize(
    ("high_word", "broken"),
    [
        ("UIADD3.X UR11, UR17, -0x7fffffe0, URZ, UP0, !UPT", False),
        ("UIADD3.X UR11, UR13, -0x7fffffe0, URZ, UP0, !UPT", True),
        ("UIADD3.X UR11, UR10, 0x40000040, URZ, UP0, !UPT", True),
    ],
)
def test_descriptors_made_of_a_register_that_nothing_set_are_found(high_word: str, broken: bool) -> None:
    """As ptxas 12.8 compiled products of 16 and 32 columns behind a loop with products of its own."""
    assert broken_descriptors(NARROW_PRODUCT.format(high_word)) == [high_word] * broken


def test_a_kernel_with_wrong_descriptors_is_told() -> None:
    key = next(iter(aot.collect()))
    found = {(key, HOPPER): aot.Resources(40, 0, 1000, 4, 4, 0, 0, broken_descriptors=2)}
    assert kernel_table.violations(found, {}) == [f"{key} on sm_90: the compiler got 2 descriptors wrong"]


def test_a_case_that_forgets_an_argument_is_refused() -> None:
    with pytest.raises(ValueError, match="case scale describes"):
        aot.compile_case(AotCase("scale", _scale, SCALE, {}), HOPPER)


def test_too_much_shared_memory_and_changed_figures_are_told() -> None:
    key = next(iter(aot.collect()))
    before, after = aot.Resources(40, 0, 1000, 0, 0, 0, 0), aot.Resources(48, 2, 300_000, 0, 0, 0, 0)
    assert kernel_table.violations({(key, HOPPER): after}, {(key, 80): "why"}) == [
        f"{key} on sm_80: does not compile: why",
        f"{key} on sm_90: 300000 bytes of shared memory, at most 232448",
        f"{key} on sm_90: 2 loads and stores of spilled registers",
    ]
    changes = kernel_table.differences({(key, HOPPER): before}, {(key, HOPPER): after})
    assert changes == [f"{key} on sm_90: registers 40 -> 48, spills 0 -> 2, shared_bytes 1000 -> 300000"]
