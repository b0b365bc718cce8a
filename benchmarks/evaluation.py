"""Where the time of an evaluation goes: forward pass, resizing to original size, all the rest.

python benchmarks/evaluation.py --config seg_ade20k --data.root DIR [--KEY VALUE ...]
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gmf_platform.evaluation.inference as inference_module
from gmf_platform.cli.arguments import VerbParser, parse_arguments
from gmf_platform.cli.experiment import Experiment


def timed(function: Callable[..., Any], name: str, seconds: Counter[str]) -> Callable[..., Any]:
    """The function, whose time is added up under a name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] += time.perf_counter() - begun
        return result

    return call


def main() -> None:
    seconds: Counter[str] = Counter()
    experiment = Experiment(parse_arguments(VerbParser("validate", ""), sys.argv[1:]))
    experiment.build(Path(), quiet=True)
    model = experiment.task.model
    model.forward = timed(model.forward, "forward", seconds)
    resize = "labels_at_original_size"
    setattr(inference_module, resize, timed(getattr(inference_module, resize), "resize", seconds))
    loop = experiment.trainer.validate_loop
    loop.run = timed(loop.run, "evaluation", seconds)
    experiment.trainer.validate(experiment.task, experiment.datamodule, verbose=False)
    total = seconds["evaluation"]
    rest = total - seconds["forward"] - seconds["resize"]
    images = len(experiment.datamodule.split("validation"))  # type: ignore[arg-type]
    print(f"{images} images in {total:.2f} s")
    for name, spent in (*seconds.items(), ("rest", rest)):
        print(f"{name:<12} {spent:7.2f} s  {100 * spent / total:5.1f} %")


if __name__ == "__main__":
    main()
