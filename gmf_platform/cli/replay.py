"""replay: a captured training step again, on one device, to find where it goes wrong."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gmf_platform.cli.arguments import Arguments, VerbParser, parse_arguments
from gmf_platform.errors import ExitCode, UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from gmf_platform.callbacks.capture import Capture
    from gmf_platform.callbacks.inspection import Fault, Inspection
    from gmf_platform.cli.experiment import Experiment

__all__ = ["run"]

_EXACT = "32-true"


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``replay --help``.

    Returns:
        DONE if the step is not finite again and has been explained, FAILED if all is finite.
    """
    parser = VerbParser(
        verb,
        "Make a step again that the guard has captured, on one device and without the data set: "
        "where it begins not to be finite, and whether float32 cures it.",
    )
    parser.add_argument("capture", type=Path, metavar="CAPTURE", help="of --guard.mode capture")
    path = _path(parser, argv)

    from gmf_platform.callbacks.capture import Capture
    from gmf_platform.cli.device import prepare_device
    from gmf_platform.cli.experiment import Experiment
    from gmf_platform.cli.output import log_to

    log_to(None)
    capture = Capture.load(path)
    with TemporaryDirectory() as folder:
        arguments = _arguments(capture, parser, argv, Path(folder))
        experiment = Experiment(arguments)
    prepare_device(experiment.config.trainer.accelerator)
    given = dict(arguments.overrides).get("trainer.precision")
    precision = given or capture.precision
    print(f"capture      {path}")
    print(f"step         {capture.step}, rank {capture.rank} of {capture.world_size}")
    for ids in capture.ids():
        print(f"samples      {', '.join(ids)}")
    first = _replay(experiment, capture, precision)
    _report(first, capture)
    if first.fault is not None and precision != _EXACT:
        exact = _replay(experiment, capture, _EXACT)
        _report(exact, capture)
        print("float32      does not cure it" if exact.fault else "float32      cures it")
    return ExitCode.FAILED if first.fault is None else ExitCode.DONE


def _path(parser: VerbParser, argv: Sequence[str]) -> Path:
    path: Path = parser.parse_known_args(argv)[0].capture
    if not path.is_file():
        raise UserError(
            f"no capture {path}; it comes first: replay FILE --trainer.precision 32-true"
        )
    return path


def _arguments(
    capture: "Capture", parser: VerbParser, argv: Sequence[str], folder: Path
) -> Arguments:
    """The command line, behind the config that the run had."""
    config = folder / "config.yaml"
    config.write_text(capture.config)
    arguments = parse_arguments(parser, ["--config", str(config), *argv])
    # Modules inside a compiled graph cannot be watched.
    arguments.overrides.append(("model.compile", "false"))
    return arguments


class _Loader:
    """Batches as a loader; a list would be taken for several."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _replay(experiment: "Experiment", capture: "Capture", precision: str) -> "Inspection":
    """Make the step and watch it.

    Raises:
        UserError: the weights are not those of the config's model.
    """
    import torch

    from gmf_platform.callbacks.inspection import Inspection

    task = experiment.build_task(capture.class_names)
    try:
        task.load_state_dict(capture.state_dict)
    except RuntimeError as error:
        raise UserError(f"the capture's weights do not fit the config: {error}") from None
    # Weights stay: what the step would have done to them is not asked.
    task.configure_optimizers = lambda: torch.optim.SGD(task.parameters(), lr=0.0)  # type: ignore
    task.batch_seed = iter(capture.seeds).__next__  # type: ignore[method-assign]
    inspection = Inspection()
    torch.set_float32_matmul_precision("high")  # as in training
    trainer = _trainer(experiment, capture, precision, inspection)
    inspection.precision = str(trainer.precision)
    trainer.fit(task, _Loader(capture.batches))
    return inspection


def _trainer(
    experiment: "Experiment", capture: "Capture", precision: str, inspection: "Inspection"
) -> "Trainer":
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins import MixedPrecision

    accelerator = experiment.config.trainer.accelerator
    is_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    kind: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":  # which Lightning would not do on a CPU
        device = "cpu" if is_cpu else "cuda"
        scaler = torch.amp.GradScaler(device, init_scale=capture.loss_scale or 2.0**16)
        kind = {"plugins": [MixedPrecision("16-mixed", device, scaler)]}
    try:
        return Trainer(
            accelerator=accelerator,
            devices=1,
            **kind,
            callbacks=[inspection],
            max_steps=1,
            accumulate_grad_batches=len(capture.batches),
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except ValueError as error:
        raise UserError(f"trainer: {error}") from None


def _report(found: "Inspection", capture: "Capture") -> None:
    """Print what a replay has found."""
    for losses in found.losses:
        values = ", ".join(f"{name} {value:.6g}" for name, value in losses.items())
        print(f"{found.precision:<13}{values}")
    if found.fault is not None:
        for line in _explained(found.fault, capture):
            print(f"             {line}")
        return
    print("             all is finite: losses, the outputs of all modules, and all gradients")
    if capture.world_size > 1 and found.precision == capture.precision:
        print(
            f"             The step was made by {capture.world_size} ranks. One device has neither "
            "the images of\n             the others, which norms in mode sync see too, nor their "
            "gradients: replay their captures."
        )


def _explained(fault: "Fault", capture: "Capture") -> Iterator[str]:
    modules = ", ".join(fault.modules)
    match fault.where:
        case "output":
            yield f"first: the output of {modules}, in the forward pass"
        case "loss":
            yield "first: the loss, while the outputs of all modules are finite"
        case "gradient":
            yield f"first: the gradient that {modules} gives its input, in the backward pass"
        case "parameter":
            yield f"first: the gradient of {fault.parameter}, in the backward pass"
        case "sum":
            yield f"first: the gradients of {fault.parameter}, in their sum over micro-batches"
    yield f"samples: {', '.join(capture.ids()[fault.part])}"
    yield from (f"  {line}" for line in fault.tensors)
