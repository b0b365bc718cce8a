"""Somebody who follows a page line by line, in a folder with small data, and with small networks."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import chdir
from pathlib import Path

import torch
import yaml
from blocks import ROOT, blocks
from PIL import Image
from safetensors.torch import load_file

from gmf_platform.cli.arguments import parse_arguments, shipped_folder
from gmf_platform.cli.fit import fit_parser, run_name
from gmf_platform.cli.main import VERBS

CONFIGS = shipped_folder("configs")
SMALL = {
    r"init_from": "none",
    r"model\.backbone\.embedding_dims": "[40,40,40,40]",
    r"model\.backbone\.depths": "[1,1,1,1]",
    r"model\.backbone\.mlp_ratios": "[1,1,1,1]",
    r"model\..*head\.(channels|width)": "16",
    r"model\..*\.proposals_(train|test)": "20",
    r"model\..*\.warmup_(steps|epochs)": "1",
    r"model\.statistics_batches": "1",
    r"data\..*global_batch_size": "2",
    r"data\..*per_device_batch_size": "2",
    r"data\..*num_workers": "0",
    r"data\..*(crop|image)_size": "64",
    r"data\..*(multi_scale|eval_scales)": "[64]",
    r"data\.joint_size": "[64,64]",
    r"trainer\.max_steps": "2",
    r"trainer\.val_check_interval": "2",
    r"trainer\.limit_(val|test)_batches": "1",
    r"trainer\.num_sanity_val_steps": "0",
    r"trainer\.log_every_n_steps": "1",
    r"checkpoint\.every_n_steps": "2",
    r"pictures\.count": "1",
}
"""What makes a run small: patterns of keys, of which those that a config has are set."""

_ONLY_IF_SET = (
    ".warmup_steps",
    ".warmup_epochs",
    ".per_device_batch_size",
    ".multi_scale",
    ".eval_scales",
)
"""Those that are left alone where they are null."""

_TRAINING = ("fit", "preflight")
_WITH_CONFIG = (*_TRAINING, "validate", "test", "predict", "info", "check-data", "config")


class Reader:
    """Follows pages.

    Args:
        folder: to work in.
        call: runs a command line of ours in this process.
        samples: name of a data set, as in ``/data/NAME``, -> its folder.
    """

    def __init__(self, folder, call, samples):
        self.folder = folder
        self._call = lambda *words: call(*words, cwd=folder)
        self._names = {"__name__": "__main__"}
        self._home, self._fitted = str(folder / "data"), []
        self._noted = set()
        for name, sample in samples.items():
            (folder / "data" / name).parent.mkdir(exist_ok=True)
            (folder / "data" / name).symlink_to(sample)
        for name in ("configs", "slurm", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        photos = sorted((samples["coco"] / "val2017").iterdir())[:2]
        (folder / "photos").mkdir()
        (folder / "more").mkdir()
        for name in ("photo.jpg", "a.jpg", "b.jpg", "photos/a.jpg", "photos/b.jpg"):
            shutil.copy(photos["b" in name], folder / name)
        Image.open(photos[0]).save(folder / "more" / "c.png")

    def follow(self, page):
        """Do all that a page says."""
        todo = [block for block in blocks(page) if block.reason is None]
        for block in [block for block in todo if not self._written(block)]:
            if block.is_commands:
                for command in block.commands:
                    self._do(command)
            elif block.language == "yaml":
                self._check(block)
            elif block.language == "python":
                self._execute(block)

    def _written(self, block):
        """Write a file down that is named in its first line; gives whether it is one."""
        name = re.match(r"# (\S+\.(?:py|yaml))\b", block.text)
        if name is None:
            return False
        path = self.folder / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._local(block.text) + "\n")
        return True

    def _check(self, block):
        """See that a piece of a config goes behind a shipped one."""
        (self.folder / "piece.yaml").write_text(block.text + "\n")
        tree = yaml.safe_load(block.text)
        bases = [None] if "class_path" in tree.get("model", {}) else sorted(CONFIGS.glob("*.yaml"))
        for base in bases:
            words = [] if base is None else ["--config", base]
            result = self._call("config", "show", *words, "--config", "piece.yaml")
            if result.code == 0:
                return
        raise AssertionError(f"{block.place}: behind no shipped config: {result.err}")

    def _execute(self, block):
        """Run a program of a page, all of them in one interpreter."""
        source = compile("\n" * (block.line - 1) + block.text, str(ROOT / block.page), "exec")
        self._provide(block.text)
        with chdir(self.folder):
            exec(source, self._names)  # noqa: S102 - as a reader would

    def _do(self, command):
        words = [self._local(word) for word in command.words if word != "..."]
        try:
            with _environment({"GMF_DATA": self._home} | command.environment):
                out = self._program(words)
        except AssertionError as error:
            raise AssertionError(f"{command.place}: {' '.join(command.words)}\n{error}") from None
        if command.output is not None:
            (self.folder / command.output).write_text(out)

    def _local(self, word):
        return re.sub(r"(?<![\w.~])/(data|shared)(?=/|$)", f"{self.folder}/data", word)

    def _program(self, words):
        """Do a command; gives its output."""
        match words:
            case ["python", "-m", "gmf_platform", *rest]:
                return self._ours(rest)
            case ["python", file, *rest] if file.endswith(".py"):
                return self._script(file, rest)
            case ["torchrun" | "srun", *rest]:
                return self._ours(rest[rest.index("gmf_platform") + 1 :], alone=False)
            case ["sbatch", *rest]:
                self._job(rest)
            case ["make", *targets]:
                known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert set(targets) <= set(known), f"make has {known}"
            case ["pip", "install", *what]:
                _check_install([word for word in what if word != "-e"])
            case ["tensorboard", "--logdir", "runs", *_]:
                assert self._fitted, "there is no run yet"
            case ["touch", file]:
                (self.folder / file).parent.mkdir(exist_ok=True)
                (self.folder / file).touch()
            case ["export", *settings]:
                given = dict(word.split("=", 1) for word in settings)
                self._home = given.get("GMF_DATA", self._home)
            case ["tar", *rest]:
                subprocess.run(["tar", *rest], cwd=self.folder, check=True)
            case ["salloc", *options]:
                assert all(word.startswith("--") or word.isdigit() for word in options)
            case _:
                raise AssertionError("not known here; say <!-- not run: WHY --> above the block")
        return ""

    def _job(self, words):
        """What a job script is given, resolved; tests/cluster runs the scripts."""
        at = next(i for i, word in enumerate(words) if word.endswith(".sh"))
        script, rest = words[at], words[at + 1 :]
        assert (self.folder / script).is_file(), f"no {script}"
        match Path(script).stem:
            case "train":
                self._ours(["fit", *(rest or ["--config", "seg_ade20k"])], alone=False)
            case "multitask":
                self._ours(["fit", "--config", "multitask", *rest], alone=False)
            case "evaluate":
                self._ours(["validate", *rest], alone=False)
            case "sweep":
                for line in (self.folder / rest[0]).read_text().splitlines():
                    if line.strip() and not line.startswith("#"):
                        self._ours(["fit", *line.split(), *rest[1:]], alone=False)
            case other:
                raise AssertionError(f"what does {other} take?")

    def _script(self, file, words):
        assert (self.folder / file).is_file(), f"no {file}"
        command = [sys.executable, file, *words]
        paths = os.pathsep.join([str(self.folder), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths}
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def _ours(self, words, *, alone=True):
        """Do one of our verbs; gives its output.

        Args:
            words: the command line from the verb on.
            alone: in one process; what is for several is resolved and noted alone, since
                tests/cli/test_strategies.py and tests/cluster run that.
        """
        verb = words[0] if words else ""
        assert verb in VERBS or verb.startswith("-"), f"no verb {verb}"
        if verb not in VERBS or "--help" in words:
            return self._succeed(*words)
        if verb == "sample-data":
            return self._succeed(*words, "--train", 12, "--val", 6, "--size", 64)
        self._provide(" ".join(words))
        if verb not in _WITH_CONFIG or words[1:2] == ["show"]:
            return self._succeed(*words)
        if "--ckpt_path" in words and not {"--config", "--run"} & {*words}:  # it has its own
            return self._succeed(*words)
        resolved = self._resolved(verb, words[1:])
        name = self._name(words[1:]) if verb in _TRAINING else None
        self._fitted += [name] if verb == "fit" and "--dry-run" not in words else []
        if not alone or "strategy/" in " ".join(words) or self._noted & {*words}:
            self._note(name, resolved)
            return ""
        named = ["--name", name] if verb == "fit" and "--name" not in words else []
        small = [] if "--run" in words or verb == "check-data" else _small(resolved, words)
        return self._succeed(*words, *named, *small)

    def _succeed(self, *words):
        result = self._call(*words)
        assert result.code == 0, result.err
        return result.out

    def _resolved(self, verb, words):
        """The config that a command line comes to, with nothing of it built."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for option in ("name", "runs", "ckpt_path", "output", "workers", "sheet", "wait"):
            parser.add_argument(f"--{option}")
        for option in ("images", "size"):
            parser.add_argument(f"--{option}", nargs="+")
        for option in ("fresh", "dry-run", "overwrite", "allow-random", "allow-partial"):
            parser.add_argument(f"--{option}", action="store_true")
        _, rest = parser.parse_known_args(words)
        return self._succeed("config", "show", *rest)

    def _name(self, words):
        options = parse_with(fit_parser("fit", ""), words, self.folder)
        return options.options.name or run_name(options)

    def _note(self, name, resolved):
        """Leave what later lines of a page need of a run that is not made."""
        if name is not None:
            run = self.folder / "runs" / name
            self._noted.add(f"runs/{name}")
            run.mkdir(parents=True, exist_ok=True)
            (run / "config.yaml").write_text(resolved)

    def _provide(self, text):
        """Make the runs and weights that a page takes for granted: those of shipped configs."""
        for name in re.findall(r"\bruns/([\w=.-]+)", text):
            if (CONFIGS / f"{name}.yaml").is_file() and not (self.folder / "runs" / name).exists():
                others = [fitted for fitted in self._fitted if fitted.startswith(f"{name}-")]
                assert not others, f"the run is called {others}, not {name}"
                self._ours(["fit", "--config", name])
        for name in re.findall(r"--ckpt_path (\w+\.ckpt)", text):
            self._provide("runs/seg_ade20k")
            best = self.folder / "runs/seg_ade20k/checkpoints/best.ckpt"
            shutil.copy(best, self.folder / name)
        for name in re.findall(r"--init_from (\S+\.pth)", text):
            if not (self.folder / name).exists():
                self._weights(name)

    def _weights(self, name):
        """A file as the authors release them, of the small network."""
        self._ours(["fit", "--config", "cls_imagenet", "--name", "authors"])
        best, out = "runs/authors/checkpoints/best.ckpt", "authors.safetensors"
        self._succeed("convert", best, out)
        torch.save({"model": load_file(self.folder / out)}, self.folder / name)


def parse_with(parser, words, folder):
    """Parse a command line in a folder."""
    with chdir(folder):
        return parse_arguments(parser, words)


def _small(resolved, words):
    """The overrides that make a resolved config's run small."""
    overrides = []
    for key, value in leaves(yaml.safe_load(resolved)):
        new = next((v for pattern, v in SMALL.items() if re.fullmatch(pattern, key)), None)
        if re.fullmatch(r"data\..*\bscale", key) and max(value) > 1:
            new = "[256,128]"  # classification's is a share of the image
        if key.endswith(_ONLY_IF_SET) and value is None:
            new = None
        if new is not None and not (key == "init_from" and "--init_from" in words):
            overrides += [f"--{key}", new]
    return overrides


def leaves(tree, above=""):
    """The keys of a resolved config as people write them, with their values."""
    for key, value in tree.items():
        name = above if key == "init_args" else f"{above}.{key}".lstrip(".")
        if isinstance(value, dict) and name != "init_from":
            yield from leaves(value, name)
        else:
            yield name, value


def _check_install(what):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *(name for group in extras.values() for name in group)]
    packages = {re.match(r"[\w-]+", name)[0] for name in listed}
    for word in what:
        name, _, extra = word.rstrip("]").partition("[")
        assert name in {".", project["name"], *packages}, f"{word} is none of our requirements"
        assert not extra or extra in extras, f"there is no extra {extra}"


class _environment:
    """Variables that are set for one command."""

    def __init__(self, variables):
        self._variables = variables

    def __enter__(self):
        self._before = dict(os.environ)
        os.environ |= self._variables

    def __exit__(self, *_):
        os.environ.clear()
        os.environ.update(self._before)
