"""Programs printed as JavaScript, run by Node: every rule and operation equals the reference bit for bit."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from cases import CASES
from test_vocabulary import OPERATIONS, Operation
from values import adversarial_buffers, assert_same_bits, special_values, step

import fastopt
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.javascript.printer import print_function, print_program, print_source, runtime

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node, which runs the printed JavaScript here, is not installed")
DTYPES = (np.float32, np.float64)

_DRIVER = """
const decode = (array, text) => new array(new Uint8Array(Buffer.from(text, "base64")).buffer);
const encode = (a) => Buffer.from(a.buffer, a.byteOffset, a.byteLength).toString("base64");
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const found = given.map((job) => {
  const program = programs[job.program];
  const memory = {};
  for (const [name, text] of Object.entries(job.memory)) memory[name] = decode(program.array, text);
  for (const [scalars, keys] of job.steps) takeStep(program, memory, scalars, keys);
  return Object.fromEntries(Object.entries(memory).map(([name, a]) => [name, encode(a)]));
});
console.log(JSON.stringify(found));
"""


def run_node(script: str, given: Any = None) -> Any:
    """Run a script in Node with a JSON value on its input; return the JSON value that it prints."""
    assert NODE is not None
    with TemporaryDirectory() as folder:
        file = Path(folder) / "script.js"
        file.write_text(f'"use strict";\n{script}')
        command, text = [NODE, str(file)], json.dumps(given)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


class Job:
    """Steps of a program on arrays, and what the reference makes of the same."""

    def __init__(self, program: Program, rule: Any, arrays: dict[str, np.ndarray], ts: tuple[int, ...]):
        scalars, self.program, self.arrays = host_scalars(program, rule), program, arrays
        keys = [noise_keys(5, t) if program.noise else () for t in ts]
        memory = {name: base64.b64encode(a.tobytes()).decode() for name, a in arrays.items()}
        steps = [[[float(x) for x in scalars(t)], k] for t, k in zip(ts, keys, strict=True)]
        self.given = {"program": program.name, "memory": memory, "steps": steps}
        for t, k in zip(ts, keys, strict=True):
            step("reference", program, list(arrays.values()), (*k, 0) if k else (), scalars(t))

    def check(self, found: dict[str, str]) -> None:
        for name, array in self.arrays.items():
            ours = np.frombuffer(base64.b64decode(found[name]), array.dtype)
            assert_same_bits(ours, array, f"{self.program.name}, {name}, {array.size} elements")


def check_all(jobs: list[Job]) -> None:
    """Run all jobs in one process."""
    programs = {job.program.name: job.program for job in jobs}
    printed = "\n".join(map(print_program, programs.values()))
    script = f"{runtime()}\n{printed}\nconst programs = {{ {', '.join(programs)} }};\n{_DRIVER}"
    found = run_node(script, [job.given for job in jobs])
    for job, result in zip(jobs, found, strict=True):
        job.check(result)


def normal_buffers(program: Program, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Return a program's arrays, of normal numbers; those of state are not negative, as some of them must be."""
    values = {b.name: rng.standard_normal(n).astype(b.dtype) for b in program.buffers}
    return {name: x if name in ("p", "g") else np.abs(x) for name, x in values.items()}


AROUND = {
    "clip-by-global-norm": fastopt.ClipByGlobalNorm(fastopt.Adam(lr=0.01, eps=1e-3), max_norm=0.5),
    "zero-gradients": fastopt.ZeroGradients(fastopt.SGD(lr=0.1)),
    "scaled-gradient": fastopt.ScaledGradient(fastopt.SGD(lr=0.1), 0.3),
}


@needs_node
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_case_equals_the_reference(dtype):
    """On adversarial values, of which totals are soon NaN, and on normal ones."""
    rng, jobs = np.random.default_rng(0), []
    for rule in (*CASES.values(), *AROUND.values()):
        program = trace(rule, dtype)
        jobs += [Job(program, rule, adversarial_buffers(program, rng, n), (1, 2, 3, 100)) for n in (0, 1, 257, 1003)]
        jobs.append(Job(program, rule, normal_buffers(program, rng, 600), (1, 2, 3, 100)))
    check_all(jobs)


@needs_node
def test_totals_of_many_tiles_equal_the_reference():
    rule, rng = CASES["lamb"], np.random.default_rng(1)
    program = trace(rule, np.float32)
    check_all([Job(program, rule, normal_buffers(program, rng, 256 * 256 + 300), (1, 2))])


@needs_node
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_equals_numpy_on_special_values(dtype):
    x, y = (a.ravel().copy() for a in np.meshgrid(special_values(dtype), special_values(dtype)))
    jobs = []
    for name in OPERATIONS:
        program = trace(Operation(name), dtype)
        jobs.append(Job(program, Operation(name), {"p": x.copy(), "g": y.copy()}, (1,)))
        assert {b.name for b in program.buffers} <= {"p", "g"}
    check_all(jobs)


@needs_node
def test_float32_division_and_roots_round_once_also_where_the_result_is_subnormal():
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, (2, 400_000), np.uint32)
    bits[:, ::2] &= 0x81FFFFFF  # small numbers, so that products and sums are subnormal
    x, y = (np.where(np.isnan(v), 1, v) for v in bits.view(np.float32))
    rules = [Operation(name) for name in ("add", "subtract", "multiply", "divide", "sqrt")]
    check_all([Job(trace(rule, np.float32), rule, {"p": x.copy(), "g": y.copy()}, (1,)) for rule in rules])


@needs_node
def test_a_printed_source_stands_alone_and_keys_of_noise_are_the_same():
    program = trace(fastopt.GradientNoise(fastopt.SGD(lr=0.1)), np.float32)
    pairs = [(0, 1), (1, 1), (2**32 - 1, 10**6), (2**64 - 1, 3)]
    given = ", ".join(f"noiseKeys({seed}n, {t})" for seed, t in pairs)
    found = run_node(f"{print_source(program)}\nconsole.log(JSON.stringify([{program.name}.noise ?? 0, {given}]));")
    assert found[1:] == [list(noise_keys(seed, t)) for seed, t in pairs]


def test_storage_in_other_formats_and_conditions_are_refused_by_name():
    with pytest.raises(fastopt.BackendError, match="full precision only") as caught:
        print_source(trace(fastopt.Adam(), "bf16_8bit"))
    assert caught.value.got == "p=bf16_sr, g=bf16, m=f8, v=uf8"
    with pytest.raises(fastopt.BackendError, match="may skip a step"):
        print_source(trace(fastopt.SkipNonfinite(fastopt.SGD()), "f32"))


def test_a_function_with_shared_values_names_them():
    text = print_function("f", lambda x, y: ((x - y) * (x - y), x - y), x=np.float32, y=np.float32)
    assert text.splitlines()[1] == "  const x0 = fround(x - y);"
    assert text.splitlines()[2] == "  return [fround(x0 * x0), x0];"
