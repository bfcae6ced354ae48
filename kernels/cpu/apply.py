"""What an iteration of a printed loop over vectors does: loads, calls of the loop's function, stores.

All of it could be printed, line by line for each vector. But Numba types and lowers every line, which would be most of
the time until a kernel's first call; this becomes LLVM's instructions at once.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastopt.kernels.cpu.memory import load_vector, prefetch_vectors, store_vectors
from fastopt.kernels.cpu.narrow import store_codes
from fastopt.kernels.cpu.steps import SIZE, grouped
from fastopt.kernels.cpu.values import (
    WORD,
    VectorType,
    added_halves,
    converted,
    joined,
    larger,
    larger_halves,
    lower,
    lower_signed,
    number,
    upper,
    upper_signed,
)

_WORDS = VectorType(WORD)


@intrinsic(prefer_literal=True)
def apply(
    typingctx, step, times, halves, i, far,
    loads, signs, reloads, uniform, sequences, stores, least, spills, maxima, quiet, unread,
):  # fmt: skip
    """Step `times` vectors by the function `step`; the first begins at element i of each buffer.

    `step` takes a vector of each buffer in `loads`, of signed numbers where one of `signs` is 1, and of each spill in
    `reloads`, what is `uniform`, and a vector of each sequence. It returns vectors for `stores` and for `spills`, and
    words, of which `maxima` keep the largest. A sequence is given as its vector, what that grows by, and how many bits
    its words have, 16 or 32. With two `halves`, a word of a buffer holds two elements: `step` is called for the first
    ones and for the second; spills come for both, those of the first half before the others, and so do the vectors of a
    sequence. Where `least` is not −1 for one of `stores`, it is of codes, no less than that: see `narrow`. The last of
    `maxima` keeps the largest 16 bits, but for their signs, that go to the `quiet` ones of `stores`, if any. What lies
    `far` elements ahead in `loads` and in the `unread` ones of `stores` is prefetched, unless that is None.

    Returns the maxima and the next vectors of the sequences: a tuple, or the only one.
    """
    count, parts = times.literal_value, halves.literal_value
    kinds = [VectorType(b.value) for b in (*loads, *_of_half(reloads, parts, 0))]
    kinds += [*map(types.unliteral, uniform), *[_WORDS] * len(sequences)]
    groups = grouped(kinds)
    called = typingctx.resolve_function_type(step, tuple(map(types.Tuple, groups) if len(groups) > 1 else kinds), {})
    returned = called.return_type
    made = list(returned) if isinstance(returned, types.BaseTuple) else [returned]
    of_halves = [kinds[-1].literal_value == 16 for kinds in sequences]
    signed = [n.literal_value == 1 for n in signs]
    bits16, codes = [n.literal_value for n in quiet], [n.literal_value for n in least]
    fetched = [(stores[n.literal_value], n.literal_value) for n in unread]
    kept = [_WORDS] * (len(maxima) + parts * len(sequences))
    result = types.none if not kept else types.Tuple(kept) if len(kept) > 1 else kept[0]

    def codegen(context, builder, signature, args):
        first, *packed = args[3], *args[5:-2]
        load_at, _, reload_at, constant, moving, store_at, _, spill_at, largest = (
            cgutils.unpack_tuple(builder, x) for x in packed
        )
        constant = [context.cast(builder, x, t, types.unliteral(t)) for x, t in zip(constant, uniform, strict=True)]
        moving = [cgutils.unpack_tuple(builder, x) for x in moving]  # each half's vector, and what they grow by
        function = context.get_function(step, called)
        context.add_linking_libs(getattr(function, "libs", ()))

        def stepped(elements):
            if len(groups) > 1:
                elements = [
                    context.make_tuple(builder, types.Tuple(group), part)
                    for group, part in zip(groups, grouped(elements), strict=True)
                ]
            found = function(builder, elements)
            return cgutils.unpack_tuple(builder, found) if isinstance(returned, types.BaseTuple) else [found]

        def load(kinds, addresses, k, signs):
            given = zip(kinds, addresses, signs, strict=True)
            return [load_vector(context, builder, b, at, first, k, sign=sign) for b, at, sign in given]

        def as_vector(n, x, wanted):
            return converted(context, builder, x, made[n], VectorType(wanted))

        if far != types.none:
            ahead = builder.add(first, args[4])
            for b, at in zip(loads, load_at, strict=True):
                prefetch_vectors(context, builder, b, at, ahead, count)
            for b, n in fetched:
                prefetch_vectors(context, builder, b, store_at[n], ahead, count)
        written: list[list] = [[] for _ in stores]  # of narrow elements, to be stored together
        for k in range(count):
            whole, new = load(loads, load_at, k, signed), []
            for half in range(parts):
                elements = whole
                if parts == 2:
                    take = (upper, upper_signed) if half else (lower, lower_signed)
                    given = zip(whole, loads, signed, strict=True)
                    elements = [take[sign](builder, x, _bits(x, b)) for x, b, sign in given]
                kinds = _of_half(reloads, parts, half)
                spilled = load(kinds, _of_half(reload_at, parts, half), k, [False] * len(kinds))
                found = stepped([*elements, *spilled, *constant, *(x[half] for x in moving)])
                new.append([as_vector(n, x, b.value) for n, (x, b) in enumerate(zip(found, stores, strict=False))])
                kinds, places = _of_half(spills, parts, half), _of_half(spill_at, parts, half)
                for n, (b, at) in enumerate(zip(kinds, places, strict=True), len(stores)):
                    store_vectors(context, builder, b, at, first, k, [as_vector(n, found[n], b.value)])
                for n in range(len(maxima) - bool(bits16)):
                    x = as_vector(len(stores) + len(kinds) + n, found[len(stores) + len(kinds) + n], WORD)
                    largest[n] = larger(builder, largest[n], x)
                for x, halved in zip(moving, of_halves, strict=True):
                    x[half] = added_halves(builder, x[half], x[parts]) if halved else builder.add(x[half], x[parts])
            for n, (b, at) in enumerate(zip(stores, store_at, strict=True)):
                if codes[n] >= 0:
                    written[n].append([made_there[n] for made_there in new])
                    continue
                x = joined(builder, new[0][n], new[1][n], _bits(new[0][n], b)) if parts == 2 else new[0][n]
                if n in bits16:
                    largest[-1] = larger_halves(builder, largest[-1], x, SIZE)
                if b.narrow:
                    written[n].append(x)
                else:
                    store_vectors(context, builder, b, at, first, k, [x])
        for b, at, vectors, smallest in zip(stores, store_at, written, codes, strict=True):
            if smallest >= 0:
                store_codes(context, builder, b, at, first, vectors, smallest)
            elif vectors:
                store_vectors(context, builder, b, at, first, 0, vectors)
        values = [*largest, *(x[half] for x in moving for half in range(parts))]
        if not values:
            return context.get_dummy_value()
        return context.make_tuple(builder, result, values) if len(values) > 1 else values[0]

    buffers = (loads, signs, reloads, uniform, sequences, stores, least, spills, maxima, quiet, unread)
    return result(step, times, halves, i, far, *buffers), codegen


def _of_half(views, parts, half):
    """Return what is of one half, where that of the first comes before that of the second."""
    size = len(views) // parts
    return list(views)[half * size : (half + 1) * size]


def _bits(pairs, buffer_type):
    """Return the number of bits of an element, of which a word of the buffer holds two, for each lane of a vector."""
    return number(pairs.type, buffer_type.dtype.bitwidth // 2)
