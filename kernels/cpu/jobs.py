"""What a CPU kernel is besides its loops: claims on chunks, the floating-point mode, the width of its vectors."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import platform
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTE, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))


def _add(builder, address, amount):
    return builder.atomic_rmw("add", builder.inttoptr(address, _I64.as_pointer()), amount, "acq_rel")


# A job is two int64 counters, 64 bytes apart so that they do not share a cache line: the first element that nobody has
# claimed, and the number of chunks that are finished.
FINISHED_AT = 64


@intrinsic
def claim(typingctx, job, previous, chunk):
    """Report the chunk that began at `previous` as finished and claim the next; with no job (0), just go on."""

    def codegen(context, builder, signature, args):
        job, previous, chunk = args
        zero, next_chunk = _I64(0), cgutils.alloca_once(builder, _I64)
        with builder.if_else(builder.icmp_signed("==", job, zero)) as (alone, shared):
            with alone:
                builder.store(builder.add(previous, chunk), next_chunk)
            with shared:
                with builder.if_then(builder.icmp_signed(">=", previous, zero)):
                    _add(builder, builder.add(job, _I64(FINISHED_AT)), _I64(1))
                builder.store(_add(builder, job, chunk), next_chunk)
        return builder.load(next_chunk)

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def finished(typingctx, job):
    """Return the number of chunks of the job that are finished; what was written to them can then be read."""

    def codegen(context, builder, signature, args):
        address = builder.add(args[0], _I64(FINISHED_AT))
        return builder.load_atomic(builder.inttoptr(address, _I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


_MODE = {"x86_64": 0xE040, "amd64": 0xE040, "aarch64": 0x1C80007, "arm64": 0x1C80007}.get(platform.machine().lower(), 0)
"""The bits of MXCSR or FPCR that change results: rounding, and what becomes of subnormal numbers. 0 is IEEE 754."""


@intrinsic
def standard_mode(typingctx):
    """Round to nearest and keep subnormal numbers, whatever this thread does; return what `restore_mode` takes.

    The mode is a thread's: a library built with -ffast-math changes the caller's, not that of threads that are there.
    """

    def codegen(context, builder, signature, args):
        mode = _read_mode(builder)
        changed = builder.and_(mode, ir.Constant(_I64, _MODE))
        with builder.if_then(builder.icmp_unsigned("!=", changed, ir.Constant(_I64, 0)), likely=False):
            _write_mode(builder, builder.and_(mode, ir.Constant(_I64, ~_MODE)))
        return mode

    return types.int64(), codegen


@intrinsic
def restore_mode(typingctx, mode):
    """Go back to a mode that `standard_mode` found."""

    def codegen(context, builder, signature, args):
        changed = builder.and_(args[0], ir.Constant(_I64, _MODE))
        with builder.if_then(builder.icmp_unsigned("!=", changed, ir.Constant(_I64, 0)), likely=False):
            _write_mode(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _read_mode(builder):
    if not _MODE:
        return ir.Constant(_I64, 0)
    if _MODE != 0xE040:
        kind = ir.FunctionType(_I64, [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.get.fpcr"), [])
    memory = cgutils.alloca_once(builder, _I32)
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer()])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
    builder.call(function, [builder.bitcast(memory, _BYTE.as_pointer())])
    return builder.zext(builder.load(memory), _I64)


def _write_mode(builder, mode):
    if _MODE != 0xE040:
        kind = ir.FunctionType(ir.VoidType(), [_I64])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.set.fpcr"), [mode])
        return
    memory = cgutils.alloca_once(builder, _I32)
    builder.store(builder.trunc(mode, _I32), memory)
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer()])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
    builder.call(function, [builder.bitcast(memory, _BYTE.as_pointer())])


@intrinsic
def yield_thread(typingctx):
    """Yield this thread's core to another that waits for one."""

    def codegen(context, builder, signature, args):
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def wide_vectors(typingctx):
    """Let LLVM use the processor's full vector width in this kernel, which it halves by default.

    On an AVX-512 machine the noise gets faster and rules bound by memory stay the same: see docs/decisions/0003.
    """

    def codegen(context, builder, signature, args):
        set.add(
            builder.function.attributes, '"prefer-vector-width"="512"'
        )  # llvmlite's own add knows only enum attributes
        return context.get_dummy_value()

    return types.void(), codegen
