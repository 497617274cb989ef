"""`dsvid migrate`: scripts and commands, the file it writes, mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dsvid.cli import main
from dsvid.cli.migrate import PROJECTS as CHOICES
from dsvid.migrate.programs import PROJECTS
from dsvid.recipe import load_recipe
from tests.migrate.released import RELEASED

COMMAND = ["python", "run_class_finetuning.py", "--model", "vit_base_patch16_224", "--batch_size", "8"]


@pytest.fixture()
def script(tmp_path: Path) -> Path:
    path = tmp_path / "finetune.sh"
    path.write_text(next(each for each in RELEASED if each.recipe == "finetune_videomaev2_base_k400").text)
    return path


def test_the_projects_of_the_help_are_those_that_are_known() -> None:
    assert CHOICES == PROJECTS


def test_a_script(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", str(script)]) == 0
    shown = capsys.readouterr().out
    assert "--recipe finetune_videomaev2_base_k400" in shown and "32 processes (srun: srun --ntasks)" in shown


def test_a_variable_and_the_project_from_outside(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", str(script), "--var", "GPUS=16", "--from", "videomae", "--ds_config", "my.json"]) == 0
    shown = capsys.readouterr().out
    assert "batch.total=512" in shown and "--ds_config my.json" in shown and "recognised by: --from" in shown


def test_a_command_behind_two_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--world", "4", "--", *COMMAND]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--num_gpus 4" in shown and "batch.total=64" in shown and "8 × 4 GPUs × --num_sample 2 = 64" in shown


def test_the_recipe_is_written_and_read_back(script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "my.yaml"
    assert main(["migrate", str(script), "-o", str(target)]) == 0
    assert f"--recipe {target}" in capsys.readouterr().out
    assert load_recipe(str(target)).batch.total == 1024
    assert main(["migrate", str(script), "-o", str(target)]) == 2
    target.write_text("own: 1\n")
    assert main(["migrate", str(script), "--force", "-o", str(target)]) == 0
    assert load_recipe(str(target)).batch.total == 1024


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--table", "simple-tad"]) == 0
    assert "| `--nb_samples_per_epoch` | 0 | becomes |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no script and no command"),
        (["nowhere.sh"], "cannot be read"),
        (["DIR"], "cannot be read"),
        (["SCRIPT", "--var", "GPUS"], "--var is not understood"),
        (["SCRIPT", "--world", "0"], "--world"),
        (["SCRIPT", "--line", "3"], "--line"),
        (["SCRIPT", "-o", "my.txt"], "ends in .yaml"),
        (["SCRIPT", "-o", "DIR/d.yaml"], "is a folder"),
        (["SCRIPT", "--table", "videomae"], "reads no script"),
        (["BINARY"], "not text"),
        (["OTHER"], "no known program is started"),
        (["--", "python", "run_clas_finetune.py"], "fix:      run_class_finetuning.py"),
        (["TWO"], "starts 2 programs"),
        (["OPEN"], "line 1: ' is opened and never closed"),
        (["--", *COMMAND, "--batchsize", "3"], "--batch_size"),
        (["SCRIPT", "--", *COMMAND], "a script and a command"),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(
    words: list[str], says: str, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.yaml").mkdir()
    texts = {"BINARY": b"\xff\xfe\x00", "OTHER": b"python train.py\n", "OPEN": b"a 'b\n",
             "TWO": b"python run_class_finetuning.py\npython run_mae_pretraining.py\n"}  # fmt: skip
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    places = {"SCRIPT": script, "DIR": tmp_path, **{name: tmp_path / name for name in texts}}
    before = sorted(tmp_path.rglob("*"))
    argv = [str(places.get(word, word)).replace("DIR/", f"{tmp_path}/") for word in words]
    assert main(["migrate", *argv]) == 2
    assert says in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_one_of_several_programs_of_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.sh"
    path.write_text("python run_class_finetuning.py --fc_drop_rate 0\n\npython run_mae_pretraining.py --epochs 100\n")
    assert main(["migrate", str(path), "--line", "3"]) == 0
    assert "run_mae_pretraining.py of VideoMAE" in capsys.readouterr().out


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = tmp_path / "evil.sh"
    path.write_text(f"touch {made}\nX=$(touch {made})\npython run_class_finetuning.py --output_dir `touch {made}`\n")
    assert main(["migrate", str(path)]) == 0
    assert not made.exists()


def test_it_imports_no_torch(script: Path) -> None:
    code = (
        f"import sys; from dsvid.cli import main; main(['migrate', {str(script)!r}]); sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False).returncode == 0
