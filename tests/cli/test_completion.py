"""The script is sourced by a real bash, and asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsvid.cli import COMMANDS, main
from dsvid.cli.completion import whole_parser

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "dsvid.bash"
    words = [sys.executable, "-m", "dsvid", "completion", "bash"]
    made = subprocess.run(words, capture_output=True, text=True, check=True)
    path.write_text(made.stdout)
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash would offer for the last word."""
    bash = shutil.which("bash")
    assert bash is not None
    program = r"""
    source "$1"; shift
    COMP_WORDS=(dsvid "$@"); COMP_CWORD=$#
    function=$(complete -p dsvid | sed 's/.*-F \([^ ]*\).*/\1/')
    "$function" 2>/dev/null
    printf '%s\n' "${COMPREPLY[@]}"
    """
    call = [bash, "-c", program, "bash", str(script), *words]
    return set(subprocess.run(call, capture_output=True, text=True, check=True).stdout.split())


def test_commands_and_their_options(script: Path) -> None:
    assert completed(script, "re") == {"recipes", "report", "reconstruct"}
    assert {"--recipe", "--gpus"} <= completed(script, "plan", "--")
    assert completed(script, "data", "re") == {"resize"}
    assert completed(script, "bench", "step", "--dty") == {"--dtype"}


def test_every_command_is_in_the_parser_and_other_shells_are_served(capsys: pytest.CaptureFixture[str]) -> None:
    text = whole_parser().format_help()
    assert all(name in text for name in COMMANDS)
    for shell in ("zsh", "tcsh"):
        assert main(["completion", shell]) == 0
        assert "dsvid" in capsys.readouterr().out


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'dsvid[completion]'" in capsys.readouterr().err
