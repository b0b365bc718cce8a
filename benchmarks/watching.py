"""What watching costs: the processor's time of each default callback in a real run.

    python benchmarks/watching.py --config seg_ade20k --data.root /data/ade20k \
        --trainer.max_steps 4 --trainer.val_check_interval 2 --trainer.log_every_n_steps 1

Takes the words of `fit`. The time is that of the main thread, which waits for no other: on a busy
machine it is the one that can be compared.
"""

import functools
import sys
import tempfile
import time
from collections import defaultdict

from gmf_platform import callbacks
from gmf_platform.cli.main import main
from gmf_platform.tasks import BaseTask

spent: dict[tuple[str, str], float] = defaultdict(float)
calls: dict[tuple[str, str], int] = defaultdict(int)


def timed(cls: type, method: str) -> None:
    """Have a method note how long it takes."""
    plain = getattr(cls, method)

    @functools.wraps(plain)
    def wrapper(*args: object, **kwargs: object) -> object:
        begun = time.thread_time()
        try:
            return plain(*args, **kwargs)
        finally:
            key = cls.__name__, method
            spent[key] += time.thread_time() - begun
            calls[key] += 1

    setattr(cls, method, wrapper)


def run() -> None:
    for name in ("Magnitudes", "Charts", "Pictures", "Worst", "Throughput", "Progress"):
        cls = getattr(callbacks, name)
        for method in vars(cls):
            if method.startswith("on_"):
                timed(cls, method)
    for method in ("training_step", "validation_step"):
        for task in BaseTask.__subclasses__():
            if method in vars(task) or not task.__subclasses__():
                timed(task, method)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.thread_time()
        code = main(["fit", *sys.argv[1:], "--runs", folder, "--name", "watched"])
        total = time.thread_time() - begun
    for (cls, method), seconds in sorted(spent.items(), key=lambda item: -item[1]):
        number = calls[cls, method]
        print(f"{cls:16}{method:32}{number:6} x {1e3 * seconds / number:9.2f} ms")
    print(f"all of the run, imports included {total:.1f} s")
    raise SystemExit(code)


if __name__ == "__main__":
    run()
