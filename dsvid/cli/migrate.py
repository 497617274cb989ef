"""`dsvid migrate SCRIPT.sh`: a run script of the VideoMAE projects or simple-tad as a command and a recipe of ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsvid.migrate.launcher import Launch

COMMAND_BEHIND_DASHES = True
PROJECTS = ("videomae", "videomaev2", "action-detection", "simple-tad", "simple-tad-mvd", "simple-tad-umt",
            "simple-tad-internvideo2")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.usage = "dsvid migrate [options] SCRIPT.sh | -- python run_….py …"
    parser.add_argument("script", nargs="?", type=Path, metavar="SCRIPT.sh",
                        help="a run script, which is read and never run; or, behind --, a command")  # fmt: skip
    parser.add_argument(
        "--from", dest="project", choices=PROJECTS, default=None, help="the project; default: by its options"
    )
    parser.add_argument("--world", type=int, default=None, metavar="N",
                        help="processes (GPUs) of the original run, where the script does not tell")  # fmt: skip
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE",
                        help="value of a variable of the script, as GPUS=8 or 1=0; may be given again")  # fmt: skip
    parser.add_argument("--line", type=int, default=None, metavar="N",
                        help="of several programs in a script, the one whose command begins in this line")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, default=None, metavar="FILE.yaml",
                        help="write the whole recipe here")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="-o may replace a file")
    parser.add_argument("--ds_config", default="ds_configs/zero2.json", metavar="FILE",
                        help="DeepSpeed JSON in the printed command; default: ds_configs/zero2.json")  # fmt: skip
    parser.add_argument(
        "--table", choices=PROJECTS, default=None, help="print what becomes of every option of a project"
    )
    parser.epilog = (
        "example: dsvid migrate scripts/ssv2/finetune.sh -o my.yaml; "
        "dsvid migrate -- python run_class_finetuning.py --model vit_base_patch16_224 --batch_size 8"
    )


def run(args: argparse.Namespace) -> None:
    """Read, translate, write, print. Raises DataError and RecipeError."""
    from dsvid.errors import DataError
    from dsvid.migrate.report import project_tables, report
    from dsvid.migrate.translation import recipe_yaml, translate
    from dsvid.publish import publish_text

    if args.table:
        if args.script or args.behind or args.output:
            raise DataError("--table prints a table and reads no script", fix=f"dsvid migrate --table {args.table}")
        print(project_tables(args.table))
        return
    if args.world is not None and args.world < 1:
        raise DataError("--world", found=args.world, expected="1 or more")
    done = translate(_launch(args), project=args.project, world=args.world)
    if args.output is not None:
        _check_output(args.output, args.force)
        publish_text(args.output, recipe_yaml(done.converted))
    print(report(done, args.output, args.ds_config))


def _launch(args: argparse.Namespace) -> Launch:
    """The one command that is meant. Raises DataError where there is none, or several."""
    from dsvid.errors import DataError
    from dsvid.migrate.programs import FILES
    from dsvid.migrate.translation import launch_of_words, launches

    if bool(args.script) == bool(args.behind):
        raise DataError(
            "a script and a command" if args.script else "no script and no command", expected="one of them",
            fix="dsvid migrate SCRIPT.sh",
        )  # fmt: skip
    where = args.script or "the command"
    found = launches(_text(args.script), _variables(args.var)) if args.script else launch_of_words(args.behind)
    if not found:
        raise DataError(
            f"no known program is started in {where}", expected="a start of one of " + ", ".join(sorted(FILES)),
            fix=_nearest_program(args),
        )  # fmt: skip
    lines = [launch.line for launch in found]
    if args.line is not None:
        found = [launch for launch in found if launch.line == args.line]
    if len(found) != 1:
        raise DataError(
            f"{where} starts {len(lines)} programs", found=", ".join(f"line {line}" for line in lines),
            expected="--line N of one of them", fix=f"--line {lines[0]}",
        )  # fmt: skip
    return found[0]


def _nearest_program(args: argparse.Namespace) -> str | None:
    """The known program whose name is most like that of one that is started; None where none is alike."""
    from dsvid.migrate.programs import FILES
    from dsvid.migrate.shell_words import read_commands
    from dsvid.recipe import nearest

    commands = [each.words for each in read_commands(_text(args.script))] if args.script else [tuple(args.behind)]
    names = {Path(word).name for words in commands for word in words if word.endswith(".py")}
    return next((near for name in sorted(names) if (near := nearest(name, sorted(FILES)))), None)


def _text(path: Path) -> str:
    from dsvid.errors import DataError
    from dsvid.migrate.shell_words import MAX_SCRIPT_BYTES

    try:
        if path.stat().st_size > MAX_SCRIPT_BYTES:
            raise DataError(f"script {path}", found=f"{path.stat().st_size} bytes", expected="at most 1 MB")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"script {path}", found=f"not text ({error.reason})", expected="a shell script") from error
    except OSError as error:
        raise DataError(f"script {path} cannot be read", found=error.strerror or error) from error


def _variables(items: list[str]) -> dict[str, str]:
    from dsvid.errors import DataError

    pairs = [item.partition("=") for item in items]
    for item, (name, equals, _) in zip(items, pairs, strict=True):
        if not name or not equals:
            raise DataError("--var is not understood", found=item, expected="NAME=VALUE", fix="--var GPUS=8")
    return {name: value for name, _, value in pairs}


def _check_output(path: Path, force: bool) -> None:
    from dsvid.errors import DataError

    if path.suffix not in (".yaml", ".yml"):
        raise DataError("-o", found=path, expected="a file that ends in .yaml", fix=f"-o {path.with_suffix('.yaml')}")
    if path.is_dir():
        raise DataError("-o", found=f"{path} is a folder", expected="a file")
    if path.exists() and not force:
        raise DataError("-o names a file that is there", found=path, expected="another name, or --force", fix="--force")
