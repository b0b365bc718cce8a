"""What a command line says: the verb's own options, config files, and overrides of keys."""

import argparse
import atexit
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from gmf_platform.cli.task_overlays import is_removal, overlaid
from gmf_platform.errors import UserError

__all__ = [
    "Arguments",
    "PlainParser",
    "VerbParser",
    "config_of",
    "find_config",
    "parse_arguments",
    "positive",
    "shipped_folder",
]


class PlainParser(argparse.ArgumentParser):
    """Options of a verb that takes no config."""

    def __init__(self, verb: str, description: str, **settings: Any) -> None:
        program = f"python -m gmf_platform {verb}"
        super().__init__(prog=program, description=description, allow_abbrev=False, **settings)

    def error(self, message: str) -> Any:
        """Raise instead of printing the usage."""
        raise UserError(f"{message} ({self.prog} --help lists the options)")


class VerbParser(PlainParser):
    """Options of a verb; whatever else begins with ``--`` is an override of a config key."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            verb,
            description,
            usage=f"python -m gmf_platform {verb} [options] [--KEY VALUE ...]",
            epilog="Any key of the config can be set with --KEY VALUE, e.g. --data.root DIR. "
            f"`{verb} --config FILE --help` lists the keys of that config's task and data.",
        )
        self.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="FILE",
            help="config file, or the name of a shipped one; later ones win",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; ``--help`` with a config is about that config's keys too."""
        words = [word for word in args or () if word not in ("-h", "--help")]
        if len(words) == len(args or ()):
            return super().parse_known_args(args, namespace)
        from gmf_platform.cli.help import key_help

        keys = key_help(words)
        if keys:
            self.epilog = None
        print(self.format_help() + "".join(f"\n{line}" for line in keys))
        raise SystemExit(0)

    @property
    def options(self) -> list[str]:
        """The verb's own, as they are written."""
        return [word for action in self._actions for word in action.option_strings]

    def add_run(self) -> None:
        """Add ``--run``, which stands for a run's config and best checkpoint."""
        self.add_argument("--run", type=Path, metavar="DIR", help="a run's config and checkpoint")

    def add_weights(self) -> None:
        """Add what a verb needs that uses a trained model."""
        self.add_run()
        self.add_argument("--ckpt_path", type=Path, metavar="FILE", help="a checkpoint of ours")
        self.add_argument(
            "--allow-random", action="store_true", help="go on with weights that are not trained"
        )
        self.add_allow_partial()

    def add_allow_partial(self) -> None:
        """Add the way past a file that does not fill the backbone."""
        self.add_argument(
            "--allow-partial",
            action="store_true",
            help="take weights that fill only a part of the backbone",
        )


@dataclass
class Arguments:
    """A parsed command line.

    Attributes:
        options: the verb's own options.
        configs: config files in order.
        overrides: (key, value) pairs in order.
    """

    options: argparse.Namespace
    configs: list[Path]
    overrides: list[tuple[str, str]]

    def for_parser(self) -> list[str]:
        """The arguments for the config parser: files first, so that overrides win anywhere."""
        removed = [key for key, value in self.overrides if is_removal(key, value)]
        files = [word for text in overlaid(self.configs, removed) for word in ("--config", text)]
        rest = [(key, value) for key, value in self.overrides if not is_removal(key, value)]
        return files + [f"--{key}={value}" for key, value in rest]


def parse_arguments(parser: VerbParser, argv: Sequence[str]) -> Arguments:
    """Split a command line.

    Raises:
        UserError: an option without a value, a stray word, or a config that is not there. A
            checkpoint brings its own where none is named.
    """
    options, rest = parser.parse_known_args(argv)
    overrides = list(_pairs(rest, parser))
    configs = [find_config(name) for name in options.config]
    run: Path | None = getattr(options, "run", None)
    if run is not None:
        configs.insert(0, config_of(run))
    elif not configs and hasattr(options, "allow_random") and options.ckpt_path is not None:
        configs.append(_config_in(options.ckpt_path))
    if not configs:
        raise UserError(f"--config is missing. {_shipped()}")
    return Arguments(options, configs, overrides)


def _pairs(words: Sequence[str], parser: VerbParser) -> Iterator[tuple[str, str]]:
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise UserError(
                f"unexpected word {word!r}; configs are named with --config FILE, and keys are set "
                "with --KEY VALUE"
            )
        key, equals, value = word[2:].partition("=")
        near = get_close_matches(f"--{key}", parser.options, n=1, cutoff=0.8)
        if near:
            raise UserError(f"no option --{key}; did you mean {near[0]}?")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise UserError(f"--{key} needs a value")
            value = queue.pop(0)
        yield key, value


def positive(text: str) -> int:
    """A number from 1, for an option."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def shipped_folder(name: str) -> Path:
    """A folder shipped with the package: inside it in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "shipped" / name
    return installed if installed.is_dir() else package.parent / name


def find_config(name: str) -> Path:
    """A config file by path, or a shipped one by name (``seg_ade20k``, ``demo/seg``).

    Raises:
        UserError: there is none; the nearest shipped name is given.
    """
    folder = shipped_folder("configs")
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    for path in (Path(name), folder / f"{plain}.yaml"):
        if path.is_file():
            return path
    names = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    near = [full for full in names if full.endswith(f"/{plain}")]
    near = near or get_close_matches(plain, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else f". {_shipped()}"
    raise UserError(f"--config {name}: no such file{hint}")


def _shipped() -> str:
    folder = shipped_folder("configs")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    overlays = sorted(f"{path.name}/" for path in folder.iterdir() if any(path.glob("*.yaml")))
    return f"Shipped configs: {', '.join(names)}; overlays are in {', '.join(overlays)}"


def config_of(run: Path) -> Path:
    """The config that a run keeps.

    Raises:
        UserError: there is no run.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"--run {run}: there is no run, since {config} does not exist")
    return config


def _config_in(checkpoint: Path) -> Path:
    """The config of the run that a checkpoint lies in, or the one that it holds."""
    beside = checkpoint.resolve().parent.parent / "config.yaml"
    if beside.is_file():
        return beside
    from gmf_platform.cli.precheck import check_checkpoint
    from gmf_platform.models.weights import read_facts

    check_checkpoint(checkpoint)
    config = read_facts(checkpoint).get("config")
    if config is None:
        raise UserError(f"--config is missing: {checkpoint} does not hold that of its run")
    folder = mkdtemp()
    atexit.register(rmtree, folder, ignore_errors=True)
    path = Path(folder) / f"{checkpoint.stem}.yaml"
    path.write_text(config, encoding="utf-8")
    return path
