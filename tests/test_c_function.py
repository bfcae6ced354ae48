"""The Numba kernel by its address: called from C, in threads that Python knows nothing of, without the GIL."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest
from c_kernels import COMPILERS, compile_c
from cases import CASES
from values import adversarial_buffers, assert_same_bits, guards_intact, step

import fastopt
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.cpu import tuning
from fastopt.kernels.cpu.c_function import c_function
from fastopt.kernels.formats import TILE

CHOSEN = [
    ("adam", "f32"),
    ("adam-amsgrad", "f64"),
    ("adam", "split_8bit"),
    ("noise-adam", "bf16_8bit"),
    ("sgd", "bf16"),
]
TYPES = {"intptr_t": ctypes.c_ssize_t, "double": ctypes.c_double}

THREADS = """
#include <pthread.h>
#include <stdint.h>
typedef void (*kernel_t)(ARGUMENTS);
typedef struct { kernel_t kernel; intptr_t n; void **arrays; double lr, decay; } work_t;
static void *run(void *of) {
    const work_t *work = (const work_t *)of;
    work->kernel(work->n, (float *)work->arrays[0], (const float *)work->arrays[1], work->lr, work->decay);
    return NULL;
}
/* Call the kernel on two halves, in two threads, and return when both are done: 0 if they were started. */
int in_threads(kernel_t kernel, intptr_t n, float *p, float *g, double lr, double decay) {
    const intptr_t half = n / 512 * 256;
    void *arrays[2][2] = {{p, g}, {p + half, g + half}};
    work_t work[2] = {{kernel, half, arrays[0], lr, decay}, {kernel, n - half, arrays[1], lr, decay}};
    pthread_t threads[2];
    for (int k = 0; k < 2; ++k) {
        if (pthread_create(threads + k, NULL, run, work + k)) return 1;
    }
    for (int k = 0; k < 2; ++k) pthread_join(threads[k], NULL);
    return 0;
}
"""


def call_of(found):
    """Return the function as ctypes calls it."""
    kinds = [TYPES.get(kind, ctypes.c_void_p) for _, kind in found.arguments]
    return ctypes.CFUNCTYPE(None, *kinds)(found.address)


@pytest.mark.parametrize(("case", "storage"), CHOSEN)
def test_the_function_takes_the_steps_of_the_reference(case, storage):
    rule = CASES[case]
    found = c_function(rule, storage)
    program, call = found.program, call_of(found)
    scalars, rng = host_scalars(program, rule), np.random.default_rng(0)
    for n in (0, 1, 257, 1003, tuning.STRIPS_FROM + 1003):
        ours = list(adversarial_buffers(program, rng, n).values())
        truth = [a.copy() for a in ours]
        for t in (1, 2):
            noise = (*noise_keys(5, t), 7 * TILE) if program.noise else ()
            call(n, *(a.ctypes.data for a in ours), *noise, *scalars(t))
            step("reference", program, truth, noise, scalars(t))
        for b, array, expected in zip(program.buffers, ours, truth, strict=True):
            assert_same_bits(array, expected, f"n = {n}, {b.name}")
            assert guards_intact(array)


@pytest.mark.skipif(COMPILERS["gcc"] is None, reason="needs gcc")
def test_threads_of_c_call_it_while_python_holds_the_gil(tmp_path):
    """A function that took the GIL would wait for ever: PyDLL does not release it."""
    found, n = c_function(CASES["sgd"], "f32"), 100_003
    kinds = ", ".join(kind for _, kind in found.arguments)
    assert found.declaration == "void sgd_pf32_gf32(intptr_t n, float *p, const float *g, double lr, double decay);"
    (tmp_path / "threads.c").write_text(THREADS.replace("ARGUMENTS", kinds))
    compile_c("gcc", tmp_path / "threads.c", tmp_path / "threads.so", "-shared", "-fPIC", "-O1", "-pthread")
    library = ctypes.PyDLL(str(tmp_path / "threads.so"))
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    truth = [p.copy(), g]
    gc.collect()
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (p, g)]
    rest = ctypes.c_double(0.1), ctypes.c_double(0.0)
    assert library.in_threads(ctypes.c_void_p(found.address), ctypes.c_ssize_t(n), *pointers, *rest) == 0
    step("reference", found.program, truth, (), (0.1, 0.0))
    assert_same_bits(p, truth[0])


def test_equal_kernels_have_one_address():
    assert c_function(fastopt.Adam(lr=0.1)) is c_function(fastopt.Adam(lr=0.2))


def test_a_rule_with_totals_is_refused_by_name():
    with pytest.raises(fastopt.RuleError, match="c_function: the step of this rule is no single function") as caught:
        c_function(fastopt.LAMB())
    assert "LAMB" in str(caught.value)
