"""Runs a compiled worker on a team of threads: the bridge from numba to torch's OpenMP runtime.

A kernel is written as a worker, `void worker(int64 *args)`, that every thread of the team runs. args[0] is a shared
counter, from which workers take the next piece of work (`take`); the rest is the kernel's arguments. Integers and
addresses are passed as they are, floats as the bits of a float64. Importing this module imports numba; only the cpu.py
files do.
"""

import ctypes
import functools
import struct
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pagewire_kernels.cpu import threads
from pagewire_kernels.cpu.compile_cache import use_compile_cache

use_compile_cache()

FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
"""LLVM's fast-math flags: sums may be reordered; NaN and infinity are kept."""

WORKER = types.void(types.CPointer(types.int64))
"""The signature of a worker."""

_GompParallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


@_GompParallel
def _serial(function: int, data: int, num_threads: int, flags: int) -> None:
    """Replaces GOMP_parallel if torch has no OpenMP: runs the worker on one thread."""
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)


llvm.add_symbol("GOMP_parallel", threads.gomp_parallel_address() or ctypes.cast(_serial, ctypes.c_void_p).value)


@intrinsic
def _gomp_parallel(typingctx: Any, worker: Any, args: Any, num_threads: Any) -> Any:
    """GOMP_parallel(worker, args, num_threads, flags=0); worker and args are addresses."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer, pointer, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "GOMP_parallel")
        worker_address, args_address, team = arguments
        worker_pointer = builder.inttoptr(worker_address, pointer)
        args_pointer = builder.inttoptr(args_address, pointer)
        builder.call(function, [worker_pointer, args_pointer, builder.trunc(team, int32), ir.Constant(int32, 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _call(typingctx: Any, worker: Any, args: Any) -> Any:
    """Calls worker(args); both are addresses."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        pointer = ir.IntType(8).as_pointer()
        function = builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), [pointer]).as_pointer())
        builder.call(function, [builder.inttoptr(arguments[1], pointer)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def take(typingctx: Any, args: Any, amount: Any) -> Any:
    """Adds `amount` to args[0], atomically, and returns what it was: the first piece of work taken."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        return builder.atomic_rmw("add", arguments[0], arguments[1], "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), codegen


@intrinsic
def pointer(typingctx: Any, address: Any, element: Any) -> Any:
    """Returns an address as a pointer to `element`, a numba scalar type, for carray."""
    scalar = element.dtype

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        return builder.inttoptr(arguments[0], context.get_data_type(scalar).as_pointer())

    return types.CPointer(scalar)(types.int64, element), codegen


@intrinsic
def from_bits(typingctx: Any, bits: Any) -> Any:
    """Returns the float64 whose bits float_bits returned."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@njit(nogil=True, cache=True)
def launch(worker: int, num_threads: int, args: tuple[int, ...]) -> int:
    """Runs worker(counter, *args) on num_threads threads, without the interpreter's lock, and waits for all of them.

    Returns:
        The counter's last value.
    """
    shared = np.empty(len(args) + 1, np.int64)
    shared[0] = 0
    for i in range(len(args)):
        shared[i + 1] = args[i]
    if num_threads == 1:
        _call(worker, shared.ctypes.data)
    else:
        _gomp_parallel(worker, shared.ctypes.data, num_threads)
    # This use keeps the array alive: numba frees an array after its last use, and does not count an address as one.
    return int(shared[0])


@functools.lru_cache
def float_bits(value: float) -> int:
    """Returns the bits of a float64 as an integer; workers read it with from_bits."""
    bits: int = struct.unpack("q", struct.pack("d", value))[0]
    return bits
