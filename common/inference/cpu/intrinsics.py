"""Instructions of LLVM that Numba has no function for: stack memory, atomics, prefetch, exp2."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def alloca(typing: Any, n: Any) -> Any:
    """Return memory for ``n`` float32, n a constant, that the compiler can keep in registers."""
    if not isinstance(n, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.FloatType(), n.literal_value))
            memory.align = 64
        return builder.bitcast(memory, ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(n), generate


@intrinsic
def atomic_add(typing: Any, counter: Any) -> Any:
    """Add one to ``counter`` (1,), for all threads, and return the sum."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = context.make_array(signature.args[0])(context, builder, args[0]).data
        one = ir.Constant(ir.IntType(64), 1)
        return builder.add(builder.atomic_rmw("add", at, one, "acq_rel"), one)

    return types.int64(counter), generate


@intrinsic
def atomic_load(typing: Any, counter: Any) -> Any:
    """Return ``counter`` (1,), with all that was written before it was added to visible."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(at, "acquire", 8)

    return types.int64(counter), generate


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Fetch what is at ``index`` of an array, or near its end behind it, into the second cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        i8, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [i8, i32, i32, i32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [i8], kind)
        at = builder.bitcast(builder.gep(array.data, [args[1]]), i8)
        builder.call(prefetch, [at, i32(0), i32(2), i32(1)])  # to read
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def exp2(typing: Any, n: Any) -> Any:
    """Return 2 to the power of a float that is whole: n + 127 are the bits of its exponent."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        whole = builder.fptosi(args[0], i32)
        bits = builder.shl(builder.add(whole, i32(127)), i32(23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), generate
