"""The command line in a shell: start-up time, output streams and exit status."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import onnxprune
from onnxprune.cli import COMMANDS
from tests.cli.terminal import on_a_terminal
from tests.report.network import network
from tests.toolbox import Net

HEAVY = ("onnx", "onnxruntime", "numpy", "rich", "onnx_graphsurgeon")


def shell(*args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnxprune", *args], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    script = (
        "import sys; from click.testing import CliRunner; from onnxprune.cli import cli;"
        f"result = CliRunner().invoke(cli, {[*filter(None, [command]), '--help']});"
        "assert result.exit_code == 0, result.output;"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="the time of children isn't counted there")
@pytest.mark.parametrize("command", ["", "prune"])
def test_help_is_fast(command: str) -> None:
    """Processor time, as other processes may keep the machine busy: 0.07 and 0.12 s, of which click takes 0.05 s."""
    times = []
    for _ in range(3):
        before = os.times()
        assert shell(*filter(None, [command]), "--help").returncode == 0
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(times) < 0.3


def test_the_list_of_commands_imports_none() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from onnxprune.cli import cli, COMMANDS;"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0;"
        "own = lambda m: m.startswith('onnxprune.settings') or m.removeprefix('onnxprune.cli.') in COMMANDS;"
        "print([m for m in sys.modules if own(m)])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("['inspect']\n", "")  # the standard library's


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion(shell_name: str) -> None:
    """The script asks the program, and the program answers with commands, options and values."""
    script = shell("completion", shell_name).stdout
    assert f"_ONNXPRUNE_COMPLETE={shell_name}_complete" in script
    for words, answer in (("pru", "prune"), ("prune m.onnx --all", "--allocation"), ("explain --attention w", "width")):
        arguments = ["onnxprune", *words.split()]
        at = arguments[-1] if shell_name == "fish" else str(len(arguments) - 1)
        variables = {"COMP_WORDS": " ".join(arguments), "COMP_CWORD": at}
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune"],
            env={**os.environ, **variables, "_ONNXPRUNE_COMPLETE": f"{shell_name}_complete"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert answer in re.split(r"[,\s]", done.stdout), (done.stdout, done.stderr)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_accepts_the_script() -> None:
    script = shell("completion", "bash").stdout
    done = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p onnxprune"], capture_output=True, text=True, check=True
    )
    assert "_onnxprune_completion" in done.stdout


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    """It writes and shrinks a network, and names the next command, which works."""
    folder = tmp_path / "my demo"
    done = shell("demo", str(folder), timeout=300)
    assert done.returncode == 0, done.stderr
    assert "of the MACs removed, proved" in done.stdout and (folder / "digits_small.onnx").exists()
    following = shlex.split(next(line for line in done.stderr.splitlines() if line.startswith("next: onnxprune ")))
    assert shell(*following[2:]).returncode == 0
    assert "OP116" in shell("demo", str(folder)).stderr
    (tmp_path / "file").write_text("")
    assert "OP117" in shell("demo", str(tmp_path / "file")).stderr


def test_version() -> None:
    assert shell("--version").stdout == f"onnxprune {onnxprune.__version__}\n"


def test_data_go_to_stdout_and_messages_to_stderr(tmp_path: Path) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(network(), model)
    done = shell("prune", str(model), "-o", str(out), "--ratio", "0.5", "-v")
    assert done.returncode == 0, done.stderr
    assert "rewriting proved" in done.stdout and "\x1b" not in done.stdout
    assert "rewrite and verify" in done.stderr and f"wrote {out}" in done.stderr
    failed = shell("prune", str(model), "-o", str(out), "--ratio", "0.5")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error[OP116]: ") and "\x1b" not in failed.stderr


def test_a_closed_pipe_is_not_an_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m onnxprune rules --format json | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("colored", [True, False])
def test_color_is_for_terminals_that_want_it(tmp_path: Path, colored: bool) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(network(), model)
    for command in (["explain", model], ["inspect", tmp_path / "absent.onnx"]):
        _, text = on_a_terminal(*command, columns=100, environment={} if colored else {"NO_COLOR": "1"})
        assert ("\x1b[33m" in text or "\x1b[31m" in text) == colored, text


def test_the_flag_of_the_last_release_is_accepted() -> None:
    """`--optimiser` sets `--optimizer`, which checks its values; another spelling is no flag."""
    from click.testing import CliRunner

    from onnxprune.cli import cli

    arguments = ["finetune", "m.onnx", "-o", "o.onnx", "--data", "d.npz"]
    known = CliRunner().invoke(cli, [*arguments, "--optimiser", "nope"])
    assert "nope" in known.output and "--optimizer" in known.output
    assert "no such option" in CliRunner().invoke(cli, [*arguments, "--optimyser", "sgd"]).output.lower()


def test_what_native_libraries_print_stays_out_of_stdout(tmp_path: Path) -> None:
    """onnx's checker writes a warning about experimental operators to stdout, in C++."""
    net = Net(opset=8)
    x = net.conv(net.input((1, 3, 6, 6)), 8, name="stem")
    x = net.ops("Affine", x, count=1, shapes=[net.shape(x)], alpha=2.0, beta=0.5)[0]
    net.output(net.conv(x, 2, name="head"))
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(net.model(check=False), path)
    code = f"import onnx; onnx.checker.check_model(onnx.load({str(path)!r}))"
    control = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "experimental" in control.stdout
    command = [sys.executable, "-m", "onnxprune", "prune", str(path), "-o", str(out), "--ratio", "0.5", "--format=json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["report"] == "prune"
