"""What is printed of a translation, and the tables of docs/migration.md against the options that the command knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsvid.errors import RecipeError
from dsvid.migrate import videomae
from dsvid.migrate.programs import PROGRAMS, PROJECTS
from dsvid.migrate.report import project_tables, report
from dsvid.migrate.translation import launches, translate
from dsvid.recipe import all_keys
from tests.migrate.released import RELEASED

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


def on_the_page() -> dict[str, str]:
    found = re.findall(r"<!-- table ([\w-]+) -->\n(.*?)\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.S)
    return dict(found)


@pytest.mark.parametrize("project", PROJECTS)
def test_the_page_has_the_tables_of_the_command(project: str) -> None:
    assert on_the_page()[project] == project_tables(project, whole=False)


def test_every_option_of_videomae_is_on_the_page() -> None:
    table = on_the_page()["videomae"]
    pretrain, finetune = table.split("\n\n**")
    assert {option.name for option in videomae.PRETRAIN} == set(re.findall(r"^\| `--(\w+)`", pretrain, re.M))
    assert {option.name for option in videomae.FINETUNE} == set(re.findall(r"^\| `--(\w+)`", finetune, re.M))


def test_a_whole_table_names_every_option_and_a_row_has_four_cells() -> None:
    for project in PROJECTS:
        table = project_tables(project)
        rows = [line for line in table.splitlines() if line.startswith("| `--")]
        assert len(rows) == sum(len(program.options) for program in PROGRAMS if program.project == project)
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {5}
    with pytest.raises(RecipeError, match="unknown project"):
        project_tables("slowfast")


def test_keys_of_the_tables_exist() -> None:
    known = {*all_keys(), "--out", "--resume", "dsvid-eval", "ds.activation_checkpointing.cpu_checkpointing"}
    for program in PROGRAMS:
        for option in program.options:
            assert set(option.keys) <= known, option.name
            assert bool(option.keys) == (option.fate == "becomes"), option.name
            assert option.why or option.keys, option.name


def test_the_report_of_a_released_script_says_all_of_it() -> None:
    script = next(each for each in RELEASED if each.recipe == "finetune_videomae_base_k400")
    (launch,) = launches(script.text)
    text = report(translate(launch), None, "ds_configs/zero2.json")
    for part in (
        "run_class_finetuning.py of VideoMAE",
        "--from videomaev2), which would give: data.test=/data/set/val.csv",
        "64 processes (torch.distributed.launch: --nproc_per_node × --nnodes)",
        "OMP_NUM_THREADS=1",
        "It is the shipped recipe finetune_videomae_base_k400 (only places differ). Published: top-1 81.5, top-5 95.1",
        "deepspeed --hostfile hostfiles/8x8 dsvid/train.py --ds_config ds_configs/zero2.json",
        "data.train=/data/set/train.csv",
        "6 × 64 GPUs × --num_sample 2 = 768",
        "lr × 768 / 512 = 0.00075",
        "Every option has a counterpart, or needs none.",
    ):
        assert part in " ".join(text.split())
    options = text.partition("options of the script\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  --(\w+)", options, re.M) == list(script.flags)
    assert max(map(len, text.splitlines())) <= 125
    defaults = text.partition("defaults of the original that differ")[2]
    assert all(f"--{name}" in defaults for name in ("mixup", "cutmix", "drop_path", "layer_decay", "min_lr", "aa"))
    assert "--opt_eps" not in defaults


def test_the_report_says_what_is_lost_and_what_is_not_known() -> None:
    (launch,) = launches("python run_class_finetuning.py --drop 0.1 --data_path $D --fc_drop_rate 0")
    text = report(translate(launch), None, "x.json")
    assert (
        "NOT THE SAME TRAINING: --drop 0.1 has no counterpart" in text
        and "has a counterpart, or needs none" not in text
    )
    assert "--data_path ${D} (--var NAME=VALUE)" in text
    assert "No shipped recipe is the same" in text and "-o FILE.yaml" in text


def told(recipe: str) -> str:
    (launch,) = launches(next(each for each in RELEASED if each.recipe == recipe).text)
    return report(translate(launch), None, "ds_configs/zero2.json")


def test_a_slurm_job_is_printed_as_one_too() -> None:
    text = " ".join(told("pretrain_videomaev2_large").replace("\\\n", " ").split())
    start = "sbatch --nodes=6 --ntasks-per-node=8 --gpus-per-node=8 scripts/slurm/train.sh pretrain_videomaev2_large"
    assert f"{start} --ds_config ds_configs/zero2.json --out runs/out data.train=/data/set" in text
    assert "--hostfile HOSTFILE dsvid/train.py" in text, "there is no hostfile of 6 nodes"
    assert "sbatch" not in told("pretrain_videomae_base_k400")


def test_an_index_that_has_to_be_made_is_said() -> None:
    text = told("pretrain_dapt_bdd_capdata_base")
    assert "dsvid traffic index bdd100k /data/set -o bdd100k.csv   # once, before it" in text
    assert "dsvid traffic index capdata /data/CAP-DATA -o capdata.csv" in text
    assert "dsvid traffic index kinetics /data/set -o k700.csv --list k700.txt" in told("pretrain_dapt_k700_small")


def test_activation_checkpointing_is_said() -> None:
    assert "the JSON gets activation checkpointing" in told("pretrain_videomae_huge_k400")


def test_a_shipped_recipe_with_an_option_that_is_lost_does_not_sound_the_same() -> None:
    text = next(each for each in RELEASED if each.recipe == "finetune_videomae_base_k400").text
    (launch,) = launches(text.rstrip().rstrip("\\") + " --remode rand\n")
    shown = " ".join(report(translate(launch), None, "x.json").split())
    assert "finetune_videomae_base_k400 (only places differ; NOT converted: 1 options, named at the end)" in shown
    assert "NOT THE SAME TRAINING: --remode rand" in shown
