"""`fastopt export`: what it writes and refuses, and that the examples in docs/export/ train with what it writes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from c_kernels import COMPILERS

import fastopt
from fastopt.bench.exported import markdown
from fastopt.cli import main
from fastopt.kernels.c.printer import entry
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.exports import LANGUAGES

EXAMPLES = Path(__file__).parent.parent / "docs" / "export"


def export(monkeypatch, capsys, *arguments: str) -> str:
    """Run `fastopt export` and return what it prints."""
    monkeypatch.setattr("sys.argv", ["fastopt", "export", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    if ended.value.code:
        assert not out
        assert ended.value.code == 2
    return out + err


def losses(text: str) -> list[float]:
    return [float(line.split()[-1]) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("source", "compiler", "flags", "arguments", "file"),
    [
        ("train.c", "gcc", ["-O2", "-std=gnu99"], ["adam"], "adam.c"),
        ("train.c", "clang", ["-O3", "-std=c99"], ["adam"], "adam.c"),
        ("train.cpp", "g++", ["-O2", "-std=c++17", "-pthread"], ["adam", "--storage", "8bit"], "adam8.c"),
        ("train.cpp", "clang++", ["-O2", "-std=c++17", "-pthread"], ["adam", "--storage", "8bit"], "adam8.c"),
    ],
)
def test_an_example_trains_with_an_exported_kernel(
    source, compiler, flags, arguments, file, tmp_path, monkeypatch, capsys
):
    if COMPILERS[compiler] is None:
        pytest.skip(f"needs {compiler}")
    text = (EXAMPLES / source).read_text(encoding="utf-8")
    assert f"fastopt export {' '.join(arguments)} -o {file}" in text, "the example says how its kernel is exported"
    export(monkeypatch, capsys, *arguments, "-o", str(tmp_path / file))
    command = [str(COMPILERS[compiler]), "-Wall", "-Wextra", "-Werror", *flags, f"-I{tmp_path}", str(EXAMPLES / source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "train"), "-lm"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = subprocess.run([str(tmp_path / "train")], capture_output=True, text=True, check=True, timeout=60).stdout
    found = losses(printed)
    assert len(found) > 3
    assert found[-1] < 0.01 * found[0], printed


def test_the_command_says_what_it_wrote_and_how_to_compile_it(monkeypatch, capsys, tmp_path):
    path = tmp_path / "a kernel.c"
    text = export(monkeypatch, capsys, "momentum", "--set", "nesterov=true", "--storage", "bf16", "-o", str(path))
    name = "momentum_nesterov_pbf16_sr_gbf16_mbf16_sr"
    assert f"{name}_scalars_at, {name}_keys_at, {name}." in text
    assert f"cc -O3 -march=native -fno-math-errno -c '{path}'" in text
    written = path.read_text(encoding="utf-8")
    assert "Printed by `fastopt export momentum --storage bf16 --language c --set nesterov=true`" in written
    assert (
        written.partition("Rule")[2]
        == export(monkeypatch, capsys, "momentum", "--set", "nesterov=true", "--storage", "bf16").partition("Rule")[2]
    ), "without -o it is printed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["adm"], ["there is no rule 'adm'", "'adam'"]),
        (["adam", "--language", "rust"], ["there is no such language", "'rust'", "c, cuda"]),
        (["adam", "--storage", "9bit"], ["there is no such preset", "'9bit'"]),
        (["adam", "--set", "beta=0.9"], ["Adam has no setting 'beta'", "betas"]),
        (["muon", "--language", "cuda"], ["functions of whole matrices", "Muon", "fastopt.Optimizer"]),
        (["adam", "-o", "/no/such/folder/adam.c"], ["cannot be written", "/no/such/folder/adam.c", "--out"]),
    ],
)
def test_a_refusal_says_what_to_do(arguments, words, monkeypatch, capsys):
    text = export(monkeypatch, capsys, *arguments)
    assert text.startswith("fastopt export:")
    assert all(word in text for word in words), text


def test_help_teaches_with_examples(monkeypatch, capsys):
    text = " ".join(export(monkeypatch, capsys, "--help").split())
    assert text.count("fastopt export") > 3
    assert "schedules of your own" in text


@pytest.mark.parametrize("rule", list(fastopt.RULES.values()), ids=lambda r: r.__name__)
def test_every_rule_is_exported_in_every_language(rule):
    made = rule()
    for language in LANGUAGES:
        text = fastopt.export_source(made, "8bit", language)
        assert "Printed by `fastopt.export_source`" in text
        assert max(map(len, text.splitlines())) < 400


LONG = fastopt.GradientNoise(fastopt.Cautious(fastopt.AdEMAMix()))
LONG = fastopt.SkipNonfinite(fastopt.ClipByGlobalNorm(LONG, max_norm=1.0))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_long_name_stays_whole(language):
    text, name = fastopt.export_source(LONG, "bf16_8bit", language), entry(trace(LONG, "bf16_8bit"))
    assert len(name) > 90
    whole = name + "_scalars *scalars"
    assert whole in text
    assert not any(line.endswith(whole[:k]) for line in text.splitlines() for k in range(40, len(name)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_rule_with_functions_of_matrices_is_refused_by_name(language):
    with pytest.raises(fastopt.BackendError, match="functions of whole matrices") as caught:
        fastopt.export_source(fastopt.Muon(), language=language)
    assert "Muon" in str(caught.value)


def _bare(text: str) -> str:
    """Take away what only a definition has, and where lines break."""
    return re.sub(r"\s+", " ", text.replace("FASTOPT_RESTRICT ", "")).replace("( ", "(")


def test_the_declarations_in_the_documentation_are_those_of_the_source():
    (shown,) = re.findall(r"```c\n(.*?)```", (EXAMPLES.parent / "export.md").read_text(encoding="utf-8"), re.DOTALL)
    text = _bare(fastopt.export_source(fastopt.Adam(), "8bit"))
    functions = re.findall(r"^void [^;]*", shown, re.MULTILINE)
    assert len(functions) == 3
    for function in functions:
        assert _bare(function) in text, function
    fields = re.findall(r"\w+", re.findall(r"float ([^;]*);", shown)[0])
    assert _bare(" ".join(f"float {name};" for name in fields)) in text


def test_the_table_in_the_documentation_is_that_of_the_newest_results():
    path = sorted((EXAMPLES.parent.parent / "bench" / "results").glob("c-kernels-*.csv"))[-1]
    text = (EXAMPLES.parent / "export.md").read_text(encoding="utf-8")
    assert "\n".join(markdown(path)) in text
    assert path.name in text
