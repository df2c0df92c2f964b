"""Ahead-of-time cases of append_tokens's kernels."""

from pagewire_kernels.append_tokens import FIRST_TOKEN, NUM_COMPUTED, NUM_SAMPLED, NUM_TOKENS, STOP_REASON
from pagewire_kernels.append_tokens import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "append_tokens"


def _aot_case(name: str, one_each: bool, max_sampled: int = 1) -> AotCase:
    int64 = (
        "slots_ptr",
        "query_lens_ptr",
        "sampled_ptr",
        "num_sampled_ptr",
        "sample_rows_ptr",
        "ints_ptr",
        "report_ptr",
    )
    numbers = ("num_rows", "stride_ints", "stride_tokens", "stride_stops")
    signature = dict.fromkeys(int64, "*i64") | dict.fromkeys(numbers, "i32")
    signature |= {"token_ids_ptr": "*i32", "stop_token_ids_ptr": "*i32"}
    constexprs = {"ONE_EACH": one_each, "ALL_SAMPLE": one_each, "NUM_TOKENS": 0, "NUM_COMPUTED": 1, "STOP_REASON": 2}
    constexprs |= {
        "MAX_LEN": 4,
        "MAX_SAMPLED": max_sampled,
        "SAMPLED_VARY": max_sampled > 1,
        "REPORT_COMPUTED": NUM_COMPUTED,
        "REPORT_TOKENS": NUM_TOKENS,
        "REPORT_REASON": STOP_REASON,
        "REPORT_SAMPLED": NUM_SAMPLED,
        "REPORT_FIRST": FIRST_TOKEN,
        "TOKEN_REASON": 1,
        "LENGTH_REASON": 2,
        "ERROR_REASON": 3,
        "NUM_STOPS": 64,
        "STOP_BLOCK": 64,
    }
    constexprs |= {"ROWS": kernels._ROWS}
    return AotCase(name, kernels.append_tokens_kernel, signature, constexprs, num_warps=kernels._NUM_WARPS)


AOT_CASES = (
    _aot_case("decode", one_each=True),
    _aot_case("mixed", one_each=False),
    _aot_case("drafts", one_each=False, max_sampled=5),
)
