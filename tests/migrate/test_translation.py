"""Released scripts -> the shipped recipes that stem from them; an option does what its table says, and no more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dsvid import deepspeed_json
from dsvid.errors import DataError, RecipeError
from dsvid.migrate.comparison import flat
from dsvid.migrate.conversion import RELEASED_DECODER
from dsvid.migrate.options import Option, Program
from dsvid.migrate.programs import PROGRAMS
from dsvid.migrate.translation import (
    Translation,
    command_words,
    launch_of_words,
    launches,
    recipe_yaml,
    shell_line,
    translate,
)
from dsvid.models.sizes import decoder_size
from dsvid.recipe import Recipe, load_recipe, recipe_names, split_overrides
from dsvid.schedule import resolve_schedule
from dsvid.strict_yaml import load_yaml
from tests.migrate.released import RELEASED, SRUN, Released

ROOT = Path(__file__).parents[2]
IDS = [each.recipe for each in RELEASED]
# A user's own: where files are, what a machine takes at once, how often to save and draw. Nothing of it is training.
OWN = re.compile(
    r"about\..*|data\.(train|val|test|root|num_workers)|model\.init|footage\.\w+\.root|batch\.micro(_limit)?"
    r"|eval\.batch|run\.(save_every|images_every)"
)


def translated(text: str, **more: Any) -> Translation:
    (launch,) = launches(text)
    return translate(launch, **more)


def of(project: str, flags: str, *, file: str = "run_class_finetuning.py", start: str = "python") -> Translation:
    return translated(f"{start} {file} {flags}", project=project)


def row(done: Translation, option: str) -> Any:
    return next(each for each in done.rows if each.option == option)


@pytest.mark.parametrize("released", RELEASED, ids=IDS)
def test_a_released_script_is_the_shipped_recipe(released: Released) -> None:
    done = translated(released.text)
    assert done.recognised.program.project == released.project
    assert (done.match.name, done.match.same) == (released.recipe, True)
    assert done.launch.world == released.gpus
    shipped, here = flat(load_recipe(released.recipe)), flat(done.recipe)
    differs = {key for key in shipped if shipped[key] != here[key] and not OWN.fullmatch(key)}
    if "model.decoder_depth" in differs:  # 12 written out, or left to the size
        depth = decoder_size(done.recipe.model.arch, done.recipe.model.decoder).depth
        assert {shipped["model.decoder_depth"], here["model.decoder_depth"]} == {0, depth}
        differs.remove("model.decoder_depth")
    assert differs == set()
    assert resolve_schedule(done.recipe, world=released.gpus, videos=300_000).lr == pytest.approx(released.lr)
    assert not [each for each in done.rows if each.fate == "no counterpart"]


@pytest.mark.parametrize("released", RELEASED, ids=IDS)
def test_the_printed_command_trains_that_recipe(released: Released) -> None:
    """The overrides, laid over the named recipe, give the translated one; its DeepSpeed keys are known ones."""
    done = translated(released.text)
    words = command_words(done, None, "ds_configs/zero2.json")
    items = words[words.index("--out") + 2 :]
    ours, theirs = split_overrides(items)
    recipe = load_recipe(words[words.index("--recipe") + 1], ours)
    expected = flat(done.recipe)
    places = {"data.train", "data.val", "data.test", "data.root", "model.init", "data.num_workers"}
    assert {key: value for key, value in flat(recipe).items() if key in places} == {
        key: expected[key] for key in places
    }
    schedule = resolve_schedule(recipe, world=released.gpus, videos=300_000)
    config = deepspeed_json.resolve(
        deepspeed_json.load_ds_config(ROOT / "ds_configs" / "zero2.json"), theirs, recipe, schedule
    )
    checkpointing = "use_checkpoint" in released.flags or "with_checkpoint" in released.flags
    assert ("activation_checkpointing" in config) == checkpointing


def test_every_recipe_that_stems_from_a_script_has_one_here() -> None:
    """Those without a released script say so in their notes."""
    without = {
        name
        for name in recipe_names()
        if name.startswith("demo_") or re.search(r"no (job|script)", load_recipe(name).about.note)
    }
    assert set(recipe_names()) - without == {each.recipe for each in RELEASED} - without


@pytest.mark.parametrize("released", RELEASED[::7], ids=IDS[::7])
def test_the_written_recipe_is_the_translated_one(released: Released, tmp_path: Any) -> None:
    done = translated(released.text)
    path = tmp_path / "own.yaml"
    path.write_text(recipe_yaml(done.converted))
    assert load_recipe(str(path)) == done.recipe
    assert load_yaml(path)["about"]["gpus"] == released.gpus


# ---- every option against its table --------------------------------------------------------------------------------

# Flags with which a program converts, in place of its defaults, and those with which an option is looked at.
SETTING = {
    "pretrain": "--epochs 10 --warmup_epochs 1",
    "classify": "--data_set Kinetics-400",
    "detect": "",
    "anomaly": "--data_set DoTA",
}
FOOTAGE = "--data_set BDD100K --transforms_finetune_align"
NEEDS = {
    "classify": {"model_ema_decay": "--model_ema", "fname_tmpl": "--data_set SSV2", "start_idx": "--data_set SSV2"},
    "anomaly": {"model_ema_decay": "--model_ema"},
    "run_mae_double_pretraining.py": {"aa": "--transforms_finetune_align"},
    "simple-tad": {"aa": FOOTAGE, "view_fps": FOOTAGE, "data_path": FOOTAGE,
                   "transforms_finetune_align": "--data_set BDD100K"},
}  # fmt: skip
VALUES = {
    "data_set": {"classify": "SSV2", "anomaly": "DADA2K", "pretrain": "BDD100K", "detect": "ava"},
    "freeze_layers": "first N blocks;3", "final_reduction": "cls", "mask_type": "random", "loss": "focal",
    "decoder_mask_type": "random", "opt_betas": "0.8 0.9", "cutmix_minmax": "0.3 0.7", "num_frames": "32",
    "drop_path": "0.3", "layer_decay": "0.5", "warmup_steps": "77", "data_set1": "CAP-DATA", "data_set2": "BDD100K",
    "train_interpolation": "bilinear",
}  # fmt: skip
BY_KIND = {"int": "6", "float": "0.35", "text": "other", "floats": "0.5 0.6", "truth": ""}


def needed(program: Program, option: Option) -> str:
    if "double" in program.file:
        return NEEDS[program.file].get(option.name, "")
    if program.project == "simple-tad" and program.task == "pretrain":
        return NEEDS["simple-tad"].get(option.name, "")
    return NEEDS.get(program.task, {}).get(option.name, "")


def other_value(program: Program, option: Option) -> list[str]:
    """The option with a value that is not its default."""
    known = VALUES.get(option.name, "")
    text = known.get(program.task, "") if isinstance(known, dict) else known
    if option.kind == "flag":
        return []
    if option.name == "model":
        text = list(program.models)[-1]
    text = text or BY_KIND[option.kind]
    return text.split() if option.kind == "floats" else [text]


def started(program: Program, flags: str, *last: str) -> Translation:
    double = "double" in program.file
    text = f"--model {next(iter(program.models))} " + (
        "--batch_size1 8 --batch_size2 8" if double else "--batch_size 8"
    )
    text += " --data_set1 BDD100K --data_set2 CAP-DATA" if double else ""
    words = (
        f"torchrun --nproc_per_node=8 {'/'.join([*program.marks, program.file])} {text} {SETTING[program.task]} {flags}"
    )
    (launch,) = launch_of_words([*words.split(), *last])
    return translate(launch, project=program.project)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: f"{program.project}-{program.file[:-3]}")
def test_an_option_changes_the_keys_of_its_table_and_no_others(program: Program) -> None:
    begins: dict[str, Translation] = {}
    for option in program.options:
        flags = needed(program, option)
        before = begins.setdefault(flags, started(program, flags)) if flags not in begins else begins[flags]
        after = started(program, flags, f"--{option.name}", *other_value(program, option))
        changed = changes(before, after)
        said = [each for each in after.rows if each.option == option.name][-1]
        if option.fate == "becomes" and option.name != "auto_resume":
            more = {"data.view_fps", "footage.first.root", "footage.first.rate"}  # Kinetics' list -> footage
            allowed = set(option.keys) | (more if option.name == "data_set" else set())
            assert changed and changed <= allowed, option.name
            assert said.result, option.name
        else:
            assert changed == set(), option.name
        assert said.fate == after.converted.fates.get(option.name, (option.fate, ""))[0] or said.why == "as here"
        assert said.why or said.result, option.name


def changes(before: Translation, after: Translation) -> set[str]:
    here, there = flat(before.recipe), flat(after.recipe)
    changed = {key for key in here if here[key] != there[key]}
    changed |= {f"ds.{key}" for key in before.converted.settings.keys() ^ after.converted.settings.keys()}
    changed |= {"--out"} if before.converted.out != after.converted.out else set()
    changed |= {"--resume"} if before.converted.resume != after.converted.resume else set()
    return changed | ({"dsvid-eval"} if before.converted.test_only != after.converted.test_only else set())


# ---- meanings ------------------------------------------------------------------------------------------------------


def test_decoders_of_the_sizes() -> None:
    for flavour, sizes in RELEASED_DECODER.items():
        assert {size: decoder_size(size, flavour).depth for size in sizes} == dict(sizes)  # type: ignore[arg-type]


def test_deepspeed_has_no_clipping_in_videomae_and_has_it_in_v2() -> None:
    flags = "--clip_grad 1.0 --opt_betas 0.8 0.99 --opt_eps 1e-6"
    first = of("videomae", flags + " --enable_deepspeed")
    assert (first.recipe.optim.clip_grad, first.recipe.optim.betas, first.recipe.optim.eps) == (0, (0.9, 0.999), 1e-8)
    assert row(first, "clip_grad").fate == row(first, "opt_betas").fate == "no effect there"
    second = of("videomaev2", flags + " --enable_deepspeed")
    assert (second.recipe.optim.clip_grad, second.recipe.optim.betas) == (1.0, (0.9, 0.999))
    plain = of("videomae", flags)
    assert (plain.recipe.optim.clip_grad, plain.recipe.optim.betas, plain.recipe.optim.eps) == (1.0, (0.8, 0.99), 1e-6)


def test_the_batch_counts_gpus_accumulation_and_views_and_the_lr_rule_does_not_count_views() -> None:
    done = of(
        "videomae", "--batch_size 4 --update_freq 2 --num_sample 3 --lr 1e-3", start="torchrun --nproc_per_node=8"
    )
    assert (done.recipe.batch.total, done.recipe.batch.micro_limit) == (4 * 8 * 2 * 3, 12)
    schedule = resolve_schedule(done.recipe, world=8, videos=10_000)
    assert (schedule.lr, schedule.accumulation) == (pytest.approx(1e-3 * 4 * 8 * 2 / 256), 2)
    fewer = resolve_schedule(done.recipe, world=2, videos=10_000)
    assert (fewer.lr, fewer.batch_micro * fewer.accumulation * 2) == (schedule.lr, schedule.batch_total)


def test_a_weight_decay_that_ends_where_it_begins_is_none() -> None:
    assert of("videomae", "--weight_decay_end 0.05").recipe.optim.weight_decay_end is None
    assert of("videomae", "--weight_decay_end 0.2").recipe.optim.weight_decay_end == 0.2


def test_epochs_of_pretraining() -> None:
    def epochs(project: str, flags: str) -> tuple[int, int]:
        done = of(project, flags, file="run_mae_pretraining.py")
        return done.recipe.run.epochs, done.recipe.run.stop_epoch

    assert epochs("videomae", "--epochs 801") == (800, 0)
    assert epochs("videomae", "--epochs 800") == (800, 0)
    assert epochs("videomae", "--epochs 51") == (51, 0)
    assert epochs("videomae", "--epochs 211") == (211, 0)
    assert epochs("videomaev2", "--epochs 801") == (801, 0)
    assert epochs("simple-tad", "--epochs 20 --warmup_epochs 1 --data_set BDD100K") == (20, 12)
    assert epochs("simple-tad", "--epochs 40 --warmup_epochs 1 --data_set BDD100K") == (40, 12)
    assert epochs("simple-tad", "--epochs 10 --warmup_epochs 1 --data_set BDD100K") == (10, 0)
    assert epochs("simple-tad", "--epochs 38 --warmup_epochs 1") == (38, 23)


def test_evaluation_rate_of_frames() -> None:
    def rate(flags: str) -> int:
        return of("simple-tad", f"--data_set DADA2K {flags}", file="run_frame_finetuning.py").recipe.anomaly.eval_rate

    assert [rate(""), rate("--sampling_rate 3"), rate("--sampling_rate 3 --sampling_rate_val 1")] == [0, 3, 0]
    assert rate("--sampling_rate_val 3") == 3


def test_a_v2_list_without_classes_and_sparse_samples() -> None:
    done = of("videomaev2", "--data_set SSV2 --nb_classes 10 --sampling_rate 2 --start_idx 0 --fname_tmpl f_{}.jpg")
    assert (done.recipe.data.sampling, done.recipe.data.flip, done.recipe.data.frame_start) == ("segment", 0, 0)
    assert row(done, "sampling_rate").fate == "no effect there" and "174" in row(done, "nb_classes").why
    sparse = of("videomaev2", "--sparse_sample --data_set MIT --nb_classes 339")
    assert (sparse.recipe.data.sampling, sparse.recipe.data.flip) == ("segment", 0.5)
    assert row(of("videomaev2", "--sparse_sample --data_set UCF101"), "sparse_sample").fate == "no effect there"


def test_what_has_no_counterpart_is_said_only_where_it_would_matter() -> None:
    assert row(of("videomae", "--drop 0.0"), "drop").fate == "automatic"
    assert row(of("videomae", "--drop 0.1"), "drop").fate == "no counterpart"
    assert row(of("videomae", "--use_cls"), "use_cls").fate == "no counterpart"
    assert row(of("videomae", "--input_size 320 --short_side_size 320"), "short_side_size").fate == "automatic"
    assert row(of("videomae", "--short_side_size 320"), "short_side_size").fate == "no counterpart"
    assert row(of("videomae", "--lr 1 --lr 2"), "lr").why == "given again later: the last one counts"


def test_a_script_of_ones_own_is_told_from_the_nearest_recipe() -> None:
    done = of("videomae", "--batch_size 8 --lr 5e-4 --epochs 10 --layer_decay 0.6", start="torchrun --nproc_per_node=4")
    assert not done.match.same
    words = command_words(done, None, "x.json")
    assert "optim.layer_decay=0.6" in words and "run.epochs=10" in words and words[1:3] == ["--num_gpus", "4"]
    ours, _ = split_overrides([word for word in words if re.match(r"[a-z]+\.", word) and "=" in word])
    recipe = load_recipe(words[words.index("--recipe") + 1], ours)
    here, there = flat(recipe), flat(done.recipe)
    assert {key for key in here if here[key] != there[key] and not OWN.fullmatch(key)} == set()
    assert resolve_schedule(recipe, world=4, videos=1000).batch_total == 8 * 4 * 2


SAME = "--seed 3", "--num_workers 2", "--data_path other", "--finetune other.pth", "--momentum 0.5", "--warmup_lr 1"
OTHER = tuple(
    f"--{flag}"
    for flag in (
        "lr 6e-4", "min_lr 1e-5", "weight_decay 0.1", "warmup_epochs 4", "layer_decay 0.8", "drop_path 0.2",
        "epochs 76", "batch_size 7", "num_sample 1", "num_frames 8", "mixup 0", "test_num_crop 1", "nb_classes 10",
        "model_ema", "aa rand-m9-n2-mstd0.5-inc1", "smoothing 0", "tubelet_size 1",
    )
)  # fmt: skip


@pytest.mark.parametrize("flag", [*SAME, *OTHER])
def test_only_places_leave_a_recipe_the_shipped_one(flag: str) -> None:
    text = next(each for each in RELEASED if each.recipe == "finetune_videomae_base_k400").text
    done = translated(text.rstrip().rstrip("\\") + f" {flag}\n")
    assert done.match.same == (flag in SAME)
    assert done.match.name == "finetune_videomae_base_k400"


def test_the_folder_of_ava_stands_in_the_original_s_code() -> None:
    done = of("action-detection", "--data_set ava")
    assert done.recipe.data.root == "data/AVA"
    assert "data.root=data/AVA" in command_words(done, None, "x.json")


def test_tests_become_dsvid_eval() -> None:
    words = command_words(of("videomae", "--eval --finetune ft.pth --output_dir o"), None, "x.json")
    assert (
        words[:4] == ["dsvid", "eval", "--weights", "ft.pth"]
        and "--split" not in words
        and "model.init" not in str(words)
    )
    words = command_words(of("videomaev2", "--validation --finetune ft.pth"), None, "x.json")
    assert words[words.index("--split") + 1] == "val"


def test_a_path_that_only_the_run_knows_stays_and_is_named() -> None:
    done = translated("python run_class_finetuning.py --data_path ${DATA_PATH} --fc_drop_rate 0.5")
    assert done.recipe.data.train == "${DATA_PATH}/train.csv"
    assert done.unknown == ("--data_path ${DATA_PATH}",)
    assert "'data.train=${DATA_PATH}/train.csv'" in shell_line(command_words(done, None, "x"))


# ---- recognising ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "project", "why", "others"),
    [
        ("python run_class_finetuning.py --fc_drop_rate 0.5", "videomae", "--fc_drop_rate, which only it has", 0),
        ("python run_class_finetuning.py --head_drop_rate 0.5", "videomaev2", "--head_drop_rate, which only it has", 0),
        ("python run_class_finetuning.py --val_freq 2", "action-detection", "--val_freq, which only it has", 0),
        ("python run_class_finetuning.py --data_set ava", "action-detection", "these options and values", 0),
        ("python run_class_finetuning.py --model vit_giant_patch14_224", "videomaev2", "these options and values", 0),
        ("python run_mae_pretraining.py --from_ckpt x", "simple-tad", "--from_ckpt, which only it has", 0),
        ("python run_mae_double_pretraining.py --data_set1 BDD100K --data_set2 CAP-DATA", "simple-tad", "no other", 0),
        ("python other_models/MVD/run_frame_finetuning.py --model mvd_vit_base_patch16_224 --data_set DoTA",
         "simple-tad-mvd", "below a folder MVD", 0),
        ("python run_frame_finetuning.py --model mvd_vit_base_patch16_224 --data_set DoTA", "simple-tad-mvd",
         "these options and values", 0),
        ("python run_frame_finetuning.py --data_set DoTA", "simple-tad", "run_frame_finetuning.py", 0),
        ("srun -n 8 python run_class_finetuning.py", "videomaev2", "started by srun", 2),
        ("python -m torch.distributed.launch run_class_finetuning.py --nproc 1", None, "", 0),
        ("torchrun --nproc_per_node 2 run_mae_pretraining.py", "videomae", "the first of those that fit", 2),
    ],
)  # fmt: skip
def test_programs_are_recognised(text: str, project: str | None, why: str, others: int) -> None:
    if project is None:
        with pytest.raises((DataError, RecipeError)):
            translated(text)
        return
    done = translated(text)
    assert done.recognised.program.project == project
    assert why in done.recognised.why
    assert len(done.others) == others


def test_the_other_program_that_fits_is_named_with_what_would_differ() -> None:
    script = next(each for each in RELEASED if each.recipe == "finetune_videomaev2_base_k400" and each.launcher == SRUN)
    done = translated(script.text)
    ((other, differs),) = done.others
    assert (other.project, differs) == ("videomae", {"data.test": "/data/set/test.csv"})
    assert translated(script.text, project="videomae").recipe.data.test == "/data/set/test.csv"


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("srun python run_class_finetuning.py --batch_size 8", {}, r"number of GPUs[\s\S]*--world 8"),
        ("python run_class_finetuning.py --lerning_rate 1", {}, r"no option --lerning_rate"),
        (
            "python run_class_finetuning.py --val_freq 1",
            {"project": "videomae"},
            r"of VideoMAE has no option --val_freq",
        ),
        ("python run_class_finetuning.py", {"project": "simple-tad-umt"}, r"simple-tad-umt has no program"),
        ("python run_class_finetuning.py --model vit_bass_patch16_224", {}, r"no model[\s\S]*--model vit_base_patch16"),
        (
            "python run_class_finetuning.py --data_set image_folder --fc_drop_rate 0",
            {},
            "not implemented in the original",
        ),
        ("python run_class_finetuning.py --drop_path 1.5", {}, r"model.drop_path"),
        ("python run_class_finetuning.py --batch_size 0", {}, "a batch of nothing"),
        ("python run_class_finetuning.py --opt_betas 0.9", {}, "two numbers"),
        ("python run_frame_finetuning.py", {}, "no data set Kinetics-400"),
        ("python run_frame_finetuning.py --data_set DoTA --freeze_layers 3", {}, "first N blocks;K"),
        ("python run_mae_pretraining.py --from_ckpt x --data_set SSV2", {}, "not known here"),
    ],
)
def test_mistakes_are_errors_with_a_cure(text: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises((RecipeError, DataError), match=says):
        translated(text, **more)


def test_processes_may_be_given() -> None:
    done = translated("srun python run_class_finetuning.py --batch_size 8 --num_sample 1", world=16)
    assert done.recipe.batch.total == 128
    assert Recipe().batch.total != 128
