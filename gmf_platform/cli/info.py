"""info: parameters, operations and shapes of a model."""

from collections.abc import Sequence
from pathlib import Path

from gmf_platform.cli.arguments import VerbParser, parse_arguments
from gmf_platform.errors import ExitCode, UserError

__all__ = ["run"]


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``info --help``."""
    parser = VerbParser(verb, "Parameters, operations and feature shapes of a model.")
    parser.add_run()
    parser.add_argument(
        "--size", type=int, nargs="+", default=[512], metavar="PIXELS", help="height [width]"
    )
    arguments = parse_arguments(parser, argv)
    size = arguments.options.size
    if len(size) > 2 or min(size) < 64:
        raise UserError("--size takes a height and a width of at least 64 pixels, or one for both")

    import torch

    from gmf_platform.cli.experiment import Experiment
    from gmf_platform.models.operations import multiply_adds, on_meta
    from gmf_platform.tasks import DetectionTask, MultiTask

    experiment = Experiment(arguments)
    experiment.build(Path(), quiet=True)
    if any(key == "init_from" for key, _ in arguments.overrides) and experiment.init_from:
        print(f"{experiment.load(experiment.init_from, allow_partial=True)}\n")
    model, size = experiment.task.model, (size[0], size[-1])
    whole = not isinstance(experiment.task, DetectionTask | MultiTask)
    where = (
        "in all" if whole else "in the backbone; those of a detection head depend on what it finds"
    )
    operations = multiply_adds(model, size, part="" if whole else "backbone")
    backbone = on_meta(model).eval().get_submodule("backbone")
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, *size, device="meta"))
    strides: Sequence[int] = backbone.strides  # type: ignore[assignment]

    print(f"{'part':<16} {'parameters':>12}")
    for name, module in model.named_children():
        count = sum(p.numel() for p in module.parameters())
        if count:
            print(f"{name:<16} {count:>12,}")
    print(f"{'all':<16} {sum(p.numel() for p in model.parameters()):>12,}")
    print(
        f"\nat {size[0]} x {size[1]}: {operations / 1e9:.2f} GFLOPs {where} "
        "(a multiply-add counted as one, as papers do)"
    )
    for stride, shape in zip(strides, features, strict=True):
        print(f"stride {stride:<3} {tuple(shape.shape[1:])}")
    return ExitCode.DONE
