"""What compiled checks of tensors import: loads from addresses, and calls of C functions by their addresses."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_INT64 = ir.IntType(64)


@intrinsic
def load_at(typingctx, address, dtype):
    """Load a number of that type from an address."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], context.get_value_type(signature.return_type).as_pointer()))

    return dtype.instance_type(address, dtype), codegen


@intrinsic
def prefetch_at(typingctx, address):
    """Prefetch the cache line at an address, a hint that cannot fault."""

    def codegen(context, builder, signature, args):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(address), codegen


@intrinsic
def call_status(typingctx, function, tensor, answer):
    """Call the C function at an address, `int32_t f(void* tensor, void* answer)`, known only at run time."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [_INT64, _INT64])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int32(function, tensor, answer), codegen


@intrinsic
def stack_word(typingctx):
    """Return the address of 8 bytes on this call's stack."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(cgutils.alloca_once(builder, _INT64), _INT64)

    return types.int64(), codegen
