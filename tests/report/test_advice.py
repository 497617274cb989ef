"""Commands to type next: those that fit where the run stands, and that the programs understand."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from dsvid import train
from dsvid.cli import COMMANDS, parse
from dsvid.lock_owner import process_place
from dsvid.report.advice import next_commands
from dsvid.report.reading import read_run
from tests.report.made_run import make_checkpoint, make_settings, make_starts, make_trained, make_weights


def advised(folder: Path) -> list[str]:
    """The commands, each of which the program that it starts can parse."""
    lines = [line for _, line in next_commands(read_run(folder))]
    for line in lines:
        words = shlex.split(line)
        if words[0] == "dsvid":
            assert words[1] in COMMANDS
            parse(words[1:])
        elif "dsvid/train.py" in words:
            train.parse_arguments(words[words.index("dsvid/train.py") + 1 :])
        else:
            assert words[0] == "touch", line
    return lines


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    folder = make_trained(tmp_path / "a b")
    assert any("--num_accelerators 2 dsvid/train.py" in line for line in advised(folder))
    assert not any("consolidate" in line for line in advised(folder)), "there is no checkpoint"
    make_checkpoint(folder, 400)
    assert f"dsvid consolidate '{folder}' '{folder}-weights'" in advised(folder)
    why, line = next_commands(read_run(folder))[0]
    assert why.startswith("Go on from step-00000400") and f"--out '{folder}'" in line


def test_one_rank_needs_no_launcher_and_hidden_words_are_told(tmp_path: Path) -> None:
    make_trained(tmp_path)
    argv = ["dsvid/train.py", "--local_rank=0", "--ds_config", "ds.json", "data.root=s3://me:***@host"]
    make_starts(tmp_path, argv, [0], world_size=1)
    why, line = next_commands(read_run(tmp_path))[0]
    assert (
        line == "python dsvid/train.py --ds_config ds.json 'data.root=s3://me:***@host'" and "put what is hidden" in why
    )


def test_a_running_run_is_looked_at_or_stopped(tmp_path: Path) -> None:
    make_trained(tmp_path)
    (tmp_path / ".lock").write_text(json.dumps({**process_place(os.getpid()), "since": "now", "token": "t"}))
    lines = advised(tmp_path)
    assert lines[0] == f"dsvid status {tmp_path} --watch 10" and lines[1] == f"touch {tmp_path}/stop"
    assert not any("train.py" in line for line in lines)


def test_a_finished_run_s_weights_are_used(tmp_path: Path) -> None:
    for name, words in (
        ("demo_pretrain", "--recipe demo_finetune"),
        ("pretrain_videomae_base_k400", "--recipe RECIPE"),
    ):
        folder = make_settings(tmp_path / name, name, run__max_steps=5)
        make_weights(folder, 5)
        assert any(words in line and f"model.init={folder}/weights" in line for line in advised(folder))
    tuned = make_settings(tmp_path / "ft", "demo_finetune", run__max_steps=5)
    make_weights(tuned, 5)
    lines = advised(tuned)
    assert f"dsvid eval --weights {tuned}/weights --recipe {tuned}/recipe.yaml --out TEST" in lines
    assert any(line.startswith("dsvid predict") for line in lines) and not any("consolidate" in line for line in lines)


def test_without_settings_nothing_is_made_up(tmp_path: Path) -> None:
    make_trained(tmp_path)
    for name in ("recipe.yaml", "run.json", "ds_config.json"):
        (tmp_path / name).unlink()
    assert advised(tmp_path) == [f"dsvid compare {tmp_path} OTHER_RUN -o compare.html"]
