import logging
import warnings
from contextlib import chdir

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from gmf_platform.cli.arguments import VerbParser, parse_arguments
from gmf_platform.cli.experiment import Experiment, _quieten, is_first_process
from gmf_platform.errors import UserError


@pytest.fixture
def resolve(base, tmp_path):
    """The resolved config of the base, overlays given as texts, and overrides."""

    def make(*texts, words=(), begin=base):
        names = []
        for number, text in enumerate(texts):
            (tmp_path / f"{number}.yaml").write_text(text)
            names += ["--config", f"{number}.yaml"]
        argv = [str(word) for word in (*begin, *names, *words)]
        with chdir(tmp_path):
            return Experiment(parse_arguments(VerbParser("fit", "Train."), argv)).config

    return make


def test_overrides(resolve):
    words = [
        *("--model.backbone.variant", "small"),
        *("--data.root", "/sets/ade"),
        *("--data.global_batch_size", "32"),
        *("--data.num_workers", "3"),
        *("--trainer.max_steps", "99"),
        *("--init_from", "weights.pth"),
        *("--model.init_args.auxiliary_weight", "0.3"),
    ]
    for begin in (("--config", "seg_ade20k", *words), (*words, "--config", "seg_ade20k")):
        config = resolve(begin=begin)
        assert config.model.init_args.backbone.init_args.variant == "small"
        assert config.model.init_args.auxiliary_weight == 0.3
        data = config.data.init_args
        assert (data.root, data.global_batch_size, data.num_workers) == ("/sets/ade", 32, 3)
        assert (config.trainer.max_steps, config.init_from) == (99, "weights.pth")
        assert data.crop_size == 512  # from the file, as all else


@pytest.mark.parametrize(
    "text",
    [
        "model: {backbone: {variant: base}, optimizer: {lr: 0.5}}",
        "model: {init_args: {backbone: {init_args: {variant: base}}, optimizer: {lr: 0.5}}}",
    ],
)
def test_init_args_spelled_out_or_left_out(resolve, text):
    model = resolve(text).model.init_args
    assert model.backbone.init_args.variant == "base"
    assert model.backbone.class_path.endswith("GroupMixFormer")
    assert (model.optimizer.init_args.lr, model.optimizer.init_args.weight_decay) == (0.5, 0.01)


def test_later_config_wins(resolve):
    texts = ["data: {crop_size: 65}", "data: {crop_size: 66}"]
    assert resolve(*texts).data.init_args.crop_size == 66
    assert resolve(*reversed(texts)).data.init_args.crop_size == 65
    assert resolve(*texts, words=["--data.crop_size", "67"]).data.init_args.crop_size == 67


def test_interpolation_across_files_and_command_line(resolve):
    overlay = "model: {schedule: {warmup_steps: '${trainer.max_steps}'}}"

    def warmup(config):
        return config.model.init_args.schedule.init_args.warmup_steps

    assert warmup(resolve(overlay)) == 6
    assert warmup(resolve(overlay, "trainer: {max_steps: 7}")) == 7
    assert warmup(resolve(overlay, words=["--trainer.max_steps", "8"])) == 8
    word = ["--model.schedule.warmup_steps", "${data.init_args.crop_size}"]
    assert warmup(resolve(overlay, "data: {crop_size: 70}", words=word)) == 70


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${data.crop_size}", "Interpolation key 'data.crop_size' not found"),
        ("${oc.env:SURELY_NOT_SET}", "Environment variable 'SURELY_NOT_SET' not found"),
        ("${data", "no viable alternative at input"),
    ],
)
def test_interpolation_that_leads_nowhere(resolve, value, said):
    text = f"\nmodel: {{schedule: {{warmup_steps: '{value}'}}}}"
    with pytest.raises(UserError) as error:
        resolve(text)
    assert str(error.value).startswith("0.yaml:2: model.schedule.warmup_steps: ")
    assert said in str(error.value)
    assert "${data.init_args.crop_size}" in str(error.value)  # how it is written


def test_another_class_drops_what_it_does_not_take(resolve):
    optimizer = resolve("model: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: 1}}}")
    optimizer = optimizer.model.init_args.optimizer
    assert optimizer.class_path == "torch.optim.SGD"
    assert optimizer.init_args.lr == 1
    assert "betas" not in optimizer.init_args


def test_one_seed_for_task_and_data(base, tmp_path):
    argv = [str(word) for word in (*base, "--seed_everything", "7")]
    experiment = Experiment(parse_arguments(VerbParser("fit", "Train."), argv))
    experiment.build(tmp_path, quiet=True)
    assert (experiment.task.seed, experiment.datamodule.seed) == (7, 7)


@pytest.mark.parametrize(
    ("environment", "first"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "3"}, False), ({"SLURM_PROCID": "1"}, False)],
)
def test_is_first_process(monkeypatch, environment, first):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_lightning_says_nothing_that_is_of_no_use(tmp_path, monkeypatch, caplog):
    """Of a run shorter than a logging interval, on a machine with Slurm."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    caplog.set_level(logging.INFO, logger="lightning")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _quieten()
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        trainer = Trainer(
            accelerator="cpu",
            max_steps=1,
            limit_train_batches=1,
            limit_val_batches=1,
            default_root_dir=tmp_path,
            **dict.fromkeys(quiet, False),
        )
        trainer.fit(BoringModel())
        trainer.validate(BoringModel(), verbose=False)
    assert [str(one.message) for one in said if "lightning" in one.filename] == []
    assert caplog.messages == []
