"""Hostfiles, `.deepspeed_env`, arguments and the launcher's command line, read as strictly as a shell needs it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsvid.errors import RecipeError
from dsvid.launching import (
    check_deepspeed,
    check_environment_file,
    check_words,
    deepspeed_parser,
    environment_files,
    read_deepspeed,
    read_hostfile,
    secrets_in,
)

ROOT = Path(__file__).resolve().parents[1]


def hostfile(folder: Path, text: str) -> Path:
    path = folder / "hostfile"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", ["1x8", "2x8", "4x8", "8x8"])
def test_shipped_hostfiles_are_read_as_the_launcher_reads_them(name: str) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    path = ROOT / "hostfiles" / name
    assert list(read_hostfile(path).items()) == list(fetch_hostfile(str(path)).items())


def test_comments_blanks_and_order(tmp_path: Path) -> None:
    text = "# two\n\n  b.example-1_x \t slots=2   # the second\n10.0.0.7 slots=08\n#c slots=1"
    assert list(read_hostfile(hostfile(tmp_path, text)).items()) == [("b.example-1_x", 2), ("10.0.0.7", 8)]


# What the launcher takes, and which options it takes: a new one must be known here, or the script is not found.
def test_the_launcher_s_options_are_all_known() -> None:
    from deepspeed.launcher import runner

    seen: dict[str, bool] = {}

    class Stop(Exception):
        pass

    def remember(parser: object, **_: object) -> None:
        for action in parser._actions:  # type: ignore[attr-defined]
            seen.update(dict.fromkeys(action.option_strings, action.nargs == 0))
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("argparse.ArgumentParser.parse_args", remember)
        with pytest.raises(Stop):
            runner.parse_args([])
    ours = {option: action.nargs == 0 for action in deepspeed_parser()._actions for option in action.option_strings}
    assert ours == {option: flag for option, flag in seen.items() if option not in ("-h", "--help")}


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        ([], ["a", "b", "c"]),
        (["--num_nodes", "2"], ["a", "b"]),
        (["--include", "b@c:0,1"], ["b", "c"]),
        (["--exclude", "a@b:0"], ["b", "c"]),
        (["--include", "c"], []),  # one host that is left: the launcher starts it here, without ssh
        (["--include", "c", "--force_multi"], ["c"]),
        (["--no_ssh", "--node_rank", "1"], []),
    ],
)
def test_the_hosts_that_are_reached(options: list[str], hosts: list[str], tmp_path: Path) -> None:
    path = hostfile(tmp_path, "a slots=2\nb slots=2\nc slots=2\n")
    command = read_deepspeed(["--hostfile", str(path), *options, "dsvid/train.py", "--hostfile", "of the script"])
    assert command.hosts() == hosts
    assert command.script == "dsvid/train.py" and command.words == ("--hostfile", "of the script")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hostfil"], "command line"),
        (["--no_such_option", "x", "train.py"], "command line"),
        (["--no_ssh", "train.py"], "--node_rank"),
        ([], "user_script"),
    ],
)
def test_what_the_launcher_would_not_understand(words: list[str], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        read_deepspeed(words)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--include", "d"], "no host d"),
        (["--include", "a:2"], "slot 2 of a"),
        (["--exclude", "a:x"], "slot x of a"),
    ],
)
def test_filters_name_hosts_and_slots_that_are_there(options: list[str], expected: str, tmp_path: Path) -> None:
    path = hostfile(tmp_path, "a slots=2\n")
    with pytest.raises(RecipeError, match=expected):
        check_deepspeed(read_deepspeed(["-H", str(path), *options, "train.py"]), environment={}, limit_s=1, given=True)


def test_a_hostfile_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    command = read_deepspeed(["-H", str(tmp_path / "nothing"), "train.py"])
    with pytest.raises(RecipeError, match="no such file"):
        check_deepspeed(command, environment={}, limit_s=1, given=True)
    assert check_deepspeed(read_deepspeed(["train.py"]), environment={}, limit_s=1, given=False) == []


def test_environment_files_are_found_where_the_launcher_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here, named = tmp_path / "home", tmp_path / "here", tmp_path / "named"
    for folder in (home, here):
        folder.mkdir()
        (folder / ".deepspeed_env").write_text("A=1\n")
        (folder / "other").write_text("A=1\n")
    named.write_text("A=1\n")
    monkeypatch.chdir(here)
    assert environment_files({"HOME": str(home)}) == sorted([here / ".deepspeed_env", home / ".deepspeed_env"])
    assert environment_files({"HOME": str(home), "DS_ENV_FILE": "other"}) == sorted([here / "other", home / "other"])
    assert environment_files({"HOME": str(home), "DS_ENV_FILE": str(named)}) == [named]


def test_environment_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / ".deepspeed_env"
    path.write_text("NCCL_DEBUG=INFO\nA_B=1 two,three=4\nEMPTY=\nMY_API_KEY=x")
    found = check_environment_file(path)
    assert found == {"NCCL_DEBUG": "INFO", "A_B": "1 two,three=4", "EMPTY": "", "MY_API_KEY": "x"}
    assert secrets_in(found) == ["MY_API_KEY"]


WORDS = [
    "plain", "a.b=v", "optim.betas=[0.9,0.95]", "/data/my videos/train.csv", "x^y", "ümlaut", "a=1,2",
    "--out=runs/a-b_c", "50%",
    "a b;c", "it is (fine) & > * ?", "$HOME", "$(touch sentinel)", "`touch sentinel`", "a $(touch sentinel) b",
    'quote"d',
    'a "b" c',
    "it's", "a\\b", "a b\\c", "x;touch sentinel", "x&touch sentinel", "x|y", "x>y", "a*", "~", "a=~", "{a,b}",
    "(x)", "#x",
    "a\nb",
    "a\tb", "", "%h", "100%n", "!x", "a b !x",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_word_arrives_as_it_is_or_is_refused(word: str, tmp_path: Path) -> None:
    """The launcher's own command, put together as pdsh and ssh do and read by a shell, as on a node."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    try:
        check_words([word])
    except RecipeError as error:
        assert repr(word) in str(error)
        return
    program = tmp_path / "show.sh"
    program.write_text('printf "%s\\0" "$@" >arrived\n')
    args = SimpleNamespace(
        user_args=[word, "last"], user_script=str(program), launcher_args="", master_addr="a", master_port=1,
        ssh_port=None, venv_script=None, no_python=False, module=False, no_local_rank=False,
        save_pid=False, enable_each_rank_log=None,
    )  # fmt: skip
    words, _, _ = PDSHRunner(args, "e30=").get_cmd({}, {"node1": [0]})
    # Behind `-w node1`: the words that pdsh joins with blanks and ssh hands to the node's shell.
    line = " ".join(words[words.index("node1") + 1 :])
    start = line.index(str(program))
    subprocess.run(["bash", "-c", f"bash {line[start:]}"], cwd=tmp_path, check=True)
    assert (tmp_path / "arrived").read_bytes().split(b"\0")[:-1] == [word.encode(), b"last"]
    assert not (tmp_path / "sentinel").exists()


def test_the_useful_words_are_not_refused() -> None:
    check_words(WORDS[:10])
