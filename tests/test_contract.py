"""The outside of the program and the order of its rooms: imports, names, the loop's length, the command line."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsvid import deepspeed_json, train
from dsvid.cli import COMMANDS, parse
from dsvid.job import model_spec
from dsvid.models.spec import build_model
from dsvid.recipe import load_recipe, recipe_names
from dsvid.schedule import resolve_schedule
from dsvid.tasks import task_of
from tests.documents.commands import Command, documents, every_command
from tests.documents.tables import is_long, reason_not_to_run

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dsvid"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))

# What each room may import of the package, besides itself and `errors` (docs/design.md has the reasons).
MAY_IMPORT = {
    "errors": set(),
    "documents": set(),
    "strict_yaml": set(),
    "sections": set(),
    "recipe": {"documents", "sections", "strict_yaml"},
    "schedule": {"recipe"},
    "deepspeed_json": {"documents", "recipe", "schedule"},
    "communication": set(),
    "heap": set(),
    "migrate": {"deepspeed_json", "documents", "recipe"},
    "tokens": set(),
    "redact": set(),
    "runtime": {"redact", "heap"},
    "stopping": {"runtime"},
    "rendezvous": {"documents", "runtime", "stopping"},
    "rollcall": {"runtime", "rendezvous"},
    "watchdog": {"runtime", "rollcall"},
    "lock_owner": set(),
    "lock": {"lock_owner", "runtime"},
    "metrics": set(),
    "optim": set(),
    "publish": set(),
    "pictures": {"publish"},
    "timeline": set(),
    "overlay": {"timeline"},
    "doctor": {"data", "models", "ops", "runtime"},
    "launching": set(),
    "supervisor": set(),
    "slurm": set(),
    "ops": {"tokens"},
    "models": {"tokens", "ops"},
    "data": {"documents", "heap", "metrics", "ops", "recipe", "tokens", "publish"},
    "objectives": {"models", "ops", "tokens", "metrics"},
    "weights": {"documents", "models", "tokens", "publish"},
    "engine": {"recipe", "deepspeed_json", "optim", "runtime"},
    "partition": {"weights"},
    "averaging": {"partition", "runtime", "weights"},
    "runfolder": {"documents", "publish", "recipe", "redact", "runtime", "strict_yaml"},
    "checkpoint_files": {"documents"},
    "checkpoint": {"checkpoint_files", "engine", "partition", "publish", "runfolder", "runtime", "weights"},
    "report": {"checkpoint_files", "documents", "lock_owner", "publish", "recipe", "redact", "strict_yaml"},
    "health": {"runtime"},
    "monitor": {"documents", "runtime"},
    "predict": {"data", "metrics", "objectives", "timeline", "weights"},
    "show": {"data", "overlay", "publish", "timeline"},
    "evaluate": {"objectives", "data", "metrics", "pictures", "publish", "runtime"},
    "tasks": {"documents", "data", "evaluate", "models", "objectives", "recipe", "runtime", "weights"},
    "job": {
        "documents",
        "optim",
        "recipe",
        "schedule",
        "deepspeed_json",
        "engine",
        "runfolder",
        "data",
        "models",
        "monitor",
        "ops",
        "runtime",
        "stopping",
        "tasks",
        "watchdog",
        "weights",
    },
    "plan": {
        "communication",
        "data",
        "deepspeed_json",
        "engine",
        "job",
        "models",
        "optim",
        "recipe",
        "schedule",
        "tasks",
    },
    "state": {"averaging", "checkpoint", "health", "job", "partition", "runtime"},
    "validation": {"job", "monitor", "runtime", "state", "tasks", "weights"},
    "outcome": {"rendezvous", "rollcall", "runtime", "stopping"},
    "startup": {"publish", "engine", "job", "lock", "rendezvous", "rollcall", "runtime", "stopping", "watchdog"},
    "announcement": {"data", "deepspeed_json", "engine", "job", "ops", "runtime", "state"},
}
TOP = {"train", "cli", "__main__", "__init__"}  # these may import everything


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import hides where it points"
            names = [node.module]
            if node.module == "dsvid":
                names = [f"dsvid.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("dsvid.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_the_rooms_before_it(path: Path) -> None:
    here = room(path)
    if here in TOP:
        return
    assert here in MAY_IMPORT, f"{here} has no place in the order of the rooms"
    assert imported_rooms(path) <= MAY_IMPORT[here] | {here, "errors"}


def test_the_order_has_no_circle() -> None:
    placed: set[str] = set()
    rest = dict(MAY_IMPORT)
    while rest:
        free = [name for name, needs in rest.items() if needs <= placed]
        assert free, f"these need each other: {sorted(rest)}"
        placed |= set(free)
        rest = {name: needs for name, needs in rest.items() if name not in placed}


def test_only_the_engine_imports_deepspeed() -> None:
    allowed = {PACKAGE / "engine.py"}
    users = {path for path in SOURCES if re.search(r"^\s*(import|from) deepspeed\b", path.read_text(), re.M)}
    assert users == allowed


LIGHT = [
    "dsvid.recipe",
    "dsvid.deepspeed_json",
    "dsvid.ops.build",
    "dsvid.launching",
    "dsvid.supervisor",
    "dsvid.slurm",
    "dsvid.migrate.report",
    "dsvid.cli.launch",
    "dsvid.cli.slurm",
    "dsvid.checkpoint_files",
    "dsvid.lock_owner",
    "dsvid.report.standing",
    "dsvid.report.page",
    "dsvid.report.comparison_page",
    "dsvid.report.prediction_page",
    "dsvid.report.reconstruction_page",
    "dsvid.doctor.apart",
    "dsvid.doctor.machine",
    "dsvid.doctor.packages",
    "dsvid.cli",
    "dsvid",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_names_say_what_they_know() -> None:
    stems = {path.stem for path in SOURCES}
    assert not stems & {"utils", "util", "helpers", "misc", "common", "datasets"}
    top = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    # `deepspeed dsvid/train.py` would put dsvid/ first on the path without the two lines at the top of train.py.
    assert not (top - {"__init__", "__main__"}) & set(sys.stdlib_module_names)


def test_train_has_functions_only_and_its_loop_fits_one_screen() -> None:
    tree = ast.parse((PACKAGE / "train.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    (loop,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train"]
    assert loop.end_lineno is not None and loop.end_lineno - loop.lineno < 45


def test_files_and_functions_stay_small() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert path.read_text().count("\n") <= 520, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None and node.end_lineno - node.lineno <= 70, f"{path}: {node.name}"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_with_every_config_on_every_hostfile(name: str) -> None:
    import torch

    recipe = load_recipe(name)
    with torch.device("meta"):
        task_of(recipe).objective(recipe, build_model(model_spec(recipe), seed=None))
    for hostfile in sorted((ROOT / "hostfiles").iterdir()):
        lines = [line for line in hostfile.read_text().splitlines() if not line.startswith("#")]
        world = sum(int(line.split("slots=")[1]) for line in lines)
        if recipe.batch.total % (world * recipe.data.num_sample) or (recipe.batch.total // world) % max(
            1, recipe.batch.micro
        ):
            continue
        schedule = resolve_schedule(recipe, world=world, videos=240_000)
        for path in sorted((ROOT / "ds_configs").glob("*.json")):
            config = deepspeed_json.resolve(deepspeed_json.load_ds_config(path), {}, recipe, schedule)
            assert config["train_batch_size"] == recipe.batch.total


@pytest.mark.parametrize(("name", "world"), [("1x8", 8), ("2x8", 16), ("4x8", 32), ("8x8", 64)])
def test_hostfiles_have_the_slots_of_their_name(name: str, world: int) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert sum(fetch_hostfile(str(ROOT / "hostfiles" / name)).values()) == world


def test_the_training_command_line_is_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    args = train.parse_arguments(
        ["--local_rank=1", "--ds_config", "a.json", "run.seed=1", "--out", "o", "--resume", "must", "data.train=x"]
    )
    assert (args.local_rank, str(args.ds_config), args.resume) == (1, "a.json", "must")
    assert args.overrides == ["run.seed=1", "data.train=x"]
    with pytest.raises(SystemExit):
        train.parse_arguments(["--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--ds_config", "--recipe", "--out", "--resume", "a.b=v"))


def test_the_dsvid_command_answers_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dsvid", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(name in done.stdout for name in COMMANDS)
    assert not re.search(r"\| +(torch|deepspeed|numpy)$", done.stderr, re.M)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_subcommand_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from dsvid.cli import main

    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_no_help_waits_for_a_heavy_import() -> None:
    """Half a second is what help may take; torch alone takes two."""
    code = (
        "import contextlib, io, sys\n"
        "from dsvid.cli import COMMANDS, main\n"
        "from dsvid.cli.bench import BENCHES\n"
        "from dsvid.cli.data import TOOLS\n"
        "inner = [['bench', name] for name in BENCHES] + [['data', name] for name in TOOLS]\n"
        "for words in [[name] for name in COMMANDS] + inner:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main([*words, '--help'])\n"
        "    heavy = {'torch', 'numpy', 'deepspeed', 'av', 'PIL'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


NOT_RUN_HERE = [each for each in every_command() if is_long(each) or reason_not_to_run(each)]


@pytest.mark.parametrize("command", NOT_RUN_HERE, ids=lambda each: f"{each.document}:{each.line}")
def test_commands_that_this_run_leaves_out_parse(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """`tests/documents/` runs every command of the documents, but those of launchers by `make test-long` only."""
    words = list(command.words)
    if words[:1] == ["make"]:
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[:1] == ["sbatch"]:
        assert [word for word in words if word.startswith("scripts/") and (ROOT / word).is_file()]
    elif "dsvid/train.py" in words and words[0] != "dsvid":
        args = train.parse_arguments(words[words.index("dsvid/train.py") + 1 :])
        assert args.recipe is None or args.recipe in recipe_names() or args.recipe.isupper()
        assert Path(ROOT / args.ds_config).is_file() or str(args.ds_config).isupper()
    else:
        try:
            parse(words[words.index("dsvid") + 1 :])
        except SystemExit as end:
            assert end.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_commands_in_the_prose_have_options_that_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They leave out what they are not about and say `N` for a number, so they are not run."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M)
    for text in re.findall(r"`dsvid ([a-z]+ [^`]*)`", prose):
        words = [word.strip("[]") for word in re.split(r" --(?: |$)", text)[0].split()]
        with pytest.raises(SystemExit) as end:
            parse([*itertools.takewhile(lambda word: re.fullmatch(r"[a-z_]+", word), words[:2]), "--help"])
        options = [word for word in words if word.startswith("-")]
        known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
        assert end.value.code == 0 and set(options) <= known, text


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_in_the_documents_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"^@[A-Z_]+@$", text, re.M), "a placeholder was left"
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert target.startswith("http") or (path.parent / target).is_file(), target


def test_every_environment_variable_is_documented() -> None:
    asked = re.compile(r"""(?:environ(?:\.get\(|\[)["']|\$\{?)(DSVID_[A-Z_]+)""")
    sources = [*SOURCES, *(ROOT / "scripts").rglob("*.sh")]
    found = {name for path in sources for name in asked.findall(path.read_text())}
    assert len(found) >= 8
    documented = (ROOT / "docs" / "training.md").read_text()
    assert not [name for name in sorted(found) if f"`{name}" not in documented]


@pytest.mark.parametrize("world", [1, 2, 3, 6, 8, 16, 32, 64])
def test_the_card_s_command_fits_any_number_of_ranks_at_the_same_lr(world: int) -> None:
    from dsvid.recipe import split_overrides

    recipe = load_recipe(train.DEFAULT_RECIPE, split_overrides(train.whole_batch(world))[0])
    schedule = resolve_schedule(recipe, world=world, videos=1600)
    assert schedule.lr == pytest.approx(6e-4)


def test_the_launcher_s_local_rank_is_swallowed(capsys: pytest.CaptureFixture[str]) -> None:
    from dsvid.cli import main

    assert main(["--local_rank=1", "recipes", "demo_pretrain"]) == 0
    assert "vit_micro" in capsys.readouterr().out


def test_nothing_in_the_project_names_the_machine_it_was_made_on() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    outside = "../" + "shared"
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".json", ".toml", ".sh", ".cpp", ".cu", ".h"} and path.is_file():
            assert outside not in path.read_text(errors="replace"), name


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("finetune_")])
def test_the_fine_tuning_table_says_what_the_recipes_say(name: str) -> None:
    recipe = load_recipe(name)
    (row,) = [line for line in (ROOT / "docs" / "finetuning.md").read_text().splitlines() if f"| `{name}` |" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    views = recipe.data.num_sample
    devices = f"{recipe.about.gpus} × {recipe.batch.total // recipe.about.gpus // views}"
    rate = recipe.optim.base_lr * recipe.batch.total / recipe.optim.lr_scale_batch
    assert cells == [
        f"`{name}`",
        devices + (f" × {views}" if views > 1 else ""),
        f"{rate:.3g}",
        f"{recipe.optim.layer_decay:g}",
        f"{recipe.model.drop_path:g}",
        f"{recipe.model.head_drop:g}",
        str(recipe.run.epochs),
        f"{recipe.eval.segments} × {recipe.eval.crops}",
        recipe.about.published,
    ]
