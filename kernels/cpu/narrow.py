"""Codes of 8 bits in printed CPU kernels: how vectors of words become bytes, and how many bytes are scanned at once."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from functools import partial, reduce

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastopt.kernels.cpu.memory import SCRATCH, load_bytes, store_bytes, store_vectors
from fastopt.kernels.cpu.values import LANES, anywhere, joined, larger, number

_I32 = ir.IntType(32)
_UPPER, _PLACE = 16, 20  # bits below a word's upper half, and below a code in a word


def store_codes(context, builder, buffer_type, address, i, vectors, least):
    """Write the codes in the upper 12 bits of words, signed and no less than `least`, from element i of a buffer on.

    `vectors` are a list for each vector of the buffer's elements: of its words or, where an element is a pair of codes,
    of the words of the first codes and of the second ones.
    """
    if LANES == 8:
        packed = _packed(builder, vectors)
        if least:
            packed = larger(builder, packed, number(packed.type, least))
        store_bytes(context, builder, buffer_type, address, i, packed)
        return
    found = []
    for words in vectors:
        codes = [builder.ashr(x, number(x.type, _PLACE)) for x in words]
        if least:
            codes = [_at_least(builder, x, number(x.type, least)) for x in codes]
        found.append(joined(builder, *codes, number(codes[0].type, 8)) if len(codes) == 2 else codes[0])
    store_vectors(context, builder, buffer_type, address, i, 0, found)


def _at_least(builder, x, least):
    """Return a signed word, or the least one."""
    return builder.select(builder.icmp_signed("<", x, least), least, x)


def _packed(builder, vectors):
    """Pack 32 words to bytes with AVX2: what is negative becomes 0, in the order of the elements."""
    if len(vectors[0]) == 2:  # the upper halves of two words side by side are a pair already
        pairs = []
        for first, second in vectors:
            upper = builder.lshr(first, number(first.type, _UPPER))
            pair = builder.or_(upper, builder.and_(second, number(second.type, -1 << _UPPER)))
            pair = builder.bitcast(pair, ir.VectorType(ir.IntType(16), 16))
            pairs.append(builder.ashr(pair, number(pair.type, _PLACE - _UPPER)))
        return _in_order(builder, _call(builder, "packuswb", 8, *pairs), 64, (0, 2, 1, 3))
    a, b, c, d = (builder.ashr(x, number(x.type, _PLACE)) for (x,) in vectors)
    halves = [_call(builder, "packusdw", 16, *both) for both in ((a, b), (c, d))]
    return _in_order(builder, _call(builder, "packuswb", 8, *halves), 32, (0, 4, 1, 5, 2, 6, 3, 7))


def _call(builder, name, bits, a, b):
    """Pack two vectors to one of elements of so many bits, each half of a register for itself."""
    kind = ir.FunctionType(ir.VectorType(ir.IntType(bits), 256 // bits), [a.type, b.type])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.avx2.{name}"), [a, b])


def _in_order(builder, x, bits, places):
    """Permute a vector's parts of so many bits."""
    parts = builder.bitcast(x, ir.VectorType(ir.IntType(bits), len(places)))
    parts = builder.shuffle_vector(parts, parts, ir.Constant(ir.VectorType(_I32, len(places)), list(places)))
    return builder.bitcast(parts, x.type)


def _smaller(builder, a, b):
    """Return the smaller of two codes."""
    return builder.select(builder.icmp_unsigned("<", b, a), b, a)


@intrinsic(prefer_literal=True)
def within(typingctx, view, mask, least, most):
    """Whether all codes of a tile are from `least` to `most`, by the bits of a mask."""

    def codegen(context, builder, signature, args):
        width = 4 * LANES
        codes = [load_bytes(context, builder, view, args[0], first, width) for first in range(0, SCRATCH, width)]
        if mask.literal_value != 0xFF:
            codes = [builder.and_(x, number(x.type, mask.literal_value)) for x in codes]
        highest = reduce(partial(larger, builder), codes)
        outside = builder.icmp_unsigned(">", highest, number(highest.type, most.literal_value))
        if least.literal_value:
            lowest = reduce(partial(_smaller, builder), codes)
            low = builder.icmp_unsigned("<", lowest, number(lowest.type, least.literal_value))
            outside = builder.or_(outside, low)
        return builder.not_(anywhere(builder, outside))

    return types.boolean(view, mask, least, most), codegen
