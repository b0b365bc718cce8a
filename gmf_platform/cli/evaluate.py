"""validate and test: score a checkpoint."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gmf_platform.cli.arguments import Arguments, VerbParser, parse_arguments
from gmf_platform.cli.config_check import checked
from gmf_platform.cli.precheck import check_data
from gmf_platform.cli.run_directory import content_hash
from gmf_platform.cli.trained import check_weights, load_trained, run_of
from gmf_platform.errors import ExitCode

__all__ = ["run"]


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``validate --help``."""
    parser = VerbParser(verb, f"Score a checkpoint on the {verb.replace('ate', 'ation')} split.")
    parser.add_weights()
    arguments = parse_arguments(parser, argv)
    sources = checked(arguments)
    check_data(sources)
    checkpoint = check_weights(arguments, sources)
    with sources.placing():
        return _score(verb, arguments, checkpoint)


def _score(verb: str, arguments: Arguments, checkpoint: Path | None) -> int:
    """Score the split, say it, and keep it in the checkpoint's run."""
    from gmf_platform.callbacks import PerSample
    from gmf_platform.cli.device import prepare_device
    from gmf_platform.cli.experiment import Experiment
    from gmf_platform.cli.output import advising_on_memory, log_to, rounded
    from gmf_platform.models.weights import read_facts

    log_to(None)
    experiment = Experiment(arguments)
    prepare_device(experiment.config.trainer.accelerator)
    folder = run_of(arguments, checkpoint)
    experiment.build(folder.path if folder else Path())
    load_trained(experiment, checkpoint, arguments.options)
    trainer, task = experiment.trainer, experiment.task
    per_sample = PerSample()
    if folder is not None:
        trainer.callbacks.append(per_sample)  # type: ignore[attr-defined]
    evaluate = trainer.validate if verb == "validate" else trainer.test
    path = checkpoint or experiment.init_from
    path = path if path is not None and path.exists() else None  # none with --allow-random
    about = {
        "verb": verb,
        "step": read_facts(path).get("global_step") if path else None,
        "split": experiment.datamodule.test_split if verb == "test" else "validation",
    }
    weights = {
        "checkpoint": str(path) if path else None,
        "checkpoint_hash": content_hash(path) if path else None,
    }
    for number, way in enumerate(experiment.datamodule.evaluations()):
        with advising_on_memory(experiment):
            scores = evaluate(task, experiment.datamodule, verbose=False)[0]
        samples = per_sample.tables()
        if not trainer.is_global_zero:
            continue
        print(task.score_table(), file=sys.stderr)
        line = rounded({**about, **way, **task.evaluation_settings(), **scores, **weights})
        if folder is not None:
            folder.record(line)
            for name, text in (task.score_files() | samples).items():
                file = f"{verb}_{name}" if number == 0 else f"{verb}_{number + 1}_{name}"
                (folder.path / file).write_text(text, encoding="utf-8")
        print(json.dumps(line))
    return ExitCode.DONE
