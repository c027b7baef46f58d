"""What every job shares: one-line errors for user mistakes, and the machine-readable copy of what it printed."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Errors in one line, no abbreviations: an unknown dotted name belongs to the recipe, not to a flag."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **{**keywords, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def add_common(parser: argparse.ArgumentParser, *, name: str) -> None:
    """The flags of every job."""
    parser.add_argument("--name", default="", help=name)
    parser.add_argument("--seed", type=int, help="seed of everything random")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and exit")
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """The flag of every job that prints something."""
    parser.add_argument("--json", metavar="FILE", help="write what was printed to FILE, machine-readable")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The flags that choose a checkpoint."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="NAME", help="a run; takes its best checkpoint, else its last")
    which.add_argument("--checkpoint", metavar="DIR", help="a checkpoint's folder")
    parser.add_argument("--step", default="", metavar="N|best|last", help="which checkpoint of --run")


def checkpoint_of(own: argparse.Namespace) -> str:
    """The folder that `--run`, `--checkpoint` and `--step` mean.

    Raises:
        ValueError: there is no such run or checkpoint.
    """
    from hero_platform import home
    from hero_platform.train import snapshot
    from hero_platform.train.records import run_folder
    from hero_platform.train.resolve import best_or_last

    if not own.run:
        if own.step:
            raise ValueError("--step chooses among a run's checkpoints; with --checkpoint DIR name the folder itself")
        return str(own.checkpoint)
    if own.step and own.step not in ("best", "last") and not own.step.isdigit():
        raise ValueError(f"--step is a number, best or last, not {own.step!r}")
    run_folder(own.run)
    root = home.checkpoints_dir(own.run)
    if not own.step:
        return best_or_last(root)
    return snapshot.choose(root, int(own.step) if own.step.isdigit() else own.step)


def run_job(program: str, job: Callable[[], int]) -> int:
    """Run a job; a user's mistake (`ValueError`, a missing file, a folder for a file) is one line and exit code 2."""
    try:
        code = job()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        return 128 + signal.SIGPIPE
    except (ValueError, FileNotFoundError, PermissionError) as error:
        from hero_platform.credentials import without_credentials

        print(f"{program}: {without_credentials(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        print(f"{program}: {_misplaced(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        from hero_platform.files import is_full

        if not is_full(error):
            raise
        print(f"{program}: no space is left: {error}; free some and run the same command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def run_search(program: str, job: Callable[[], int]) -> int:
    """As `run_job`, for one that may search on Ray workers: what failed there is one line and exit code 1."""

    def searching() -> int:
        try:
            return job()
        except RuntimeError as error:
            from hero_platform.infer.on_ray import SearchFailed  # not before: with torch, it takes seconds

            if not isinstance(error, SearchFailed):
                raise
            print(f"{program}: {error}", file=sys.stderr)
            return 1

    return run_job(program, searching)


def _misplaced(error: OSError) -> str:
    """What to say of a folder where a file belongs, or the other way round."""
    path = error.filename2 or error.filename  # of a rename the second, which is what the user named
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, where a file is needed: name a file"
    return f"{path}: a part of this path is a file, where a folder is needed: name another path"


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Write a job's result for `--json`, whole; folders that are not there are made."""
    from hero_platform import files

    if path:
        files.write_json(path, result)


def named(kind: str, name: str, table: Mapping[str, T]) -> T:
    """What a user called by its name.

    Raises:
        ValueError: there is none of this kind (with the nearest one, and the list).
    """
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no {kind} {name!r}: {hint}{kind.capitalize()}s: {', '.join(table)}")
    return table[name]


def program_of(module: str) -> str:
    """How users call a job."""
    return f"python -m {module}"


def split_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[Any, list[str]]:
    """The job's own flags, and the dotted overrides that belong to the recipe."""
    own, rest = parser.parse_known_args(argv)
    if stray := next((word for word in rest if re.match(r"-[^-\d.]", word)), None):  # -1 is a value
        parser.error(f"unknown flag {stray}")
    return own, rest
