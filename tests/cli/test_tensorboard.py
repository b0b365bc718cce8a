"""TensorBoard over a run of joint training, as a person sees it in a browser."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from chromium import started
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

VALIDATIONS, STEPS = 2, 6
TASKS = ["cls", "det", "seg"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    page = started(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture(scope="module")
def run(browser, small_multitask, call, tmp_path_factory):
    """A run, made only where there is a browser to look at it."""
    folder = tmp_path_factory.mktemp("board")
    result = call("fit", *small_multitask, "--name", "joint", cwd=folder)
    assert result.code == 0, result.err
    return folder / "runs" / "joint"


@pytest.fixture(scope="module")
def url(run):
    """Of TensorBoard over all runs, on a free port."""
    words = ["--logdir", run.parent, "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    command = [sys.executable, "-m", "tensorboard.main", *map(str, words)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r"http://\S+", line):
            break
    yield found[0]
    server.kill()
    server.wait()


@pytest.fixture
def tab(browser, url, tmp_path):
    """Open a tab by its name; a picture of what was seen last is kept in the test's folder."""

    def show(name):
        browser.open("about:blank")
        browser.open(f"{url}#{name}")
        return browser

    yield show
    browser.save(tmp_path / "seen.png")


@pytest.fixture(scope="module")
def events(run):
    """What has been logged, all of it."""
    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    found.Reload()
    return found


def shows(page, *lines):
    """Whether these lines are on the page, one behind the other."""
    return "\n".join(("", *lines, "")) in f"\n{page.text()}\n"


def test_scalars(tab, events):
    """Each group with the number of its charts; those of the first are open, with an axis of steps."""
    groups = Counter(tag.partition("/")[0] for tag in events.Tags()["scalars"])
    expected = {"gradient_norm", "lr", "parameter_norm", "speed", "train", "update_ratio", "val"}
    assert expected | {"val_cls_top1", "val_det_box_ap", "val_seg_iou"} == set(groups)
    page = tab("scalars")
    for group, count in groups.items():
        page.wait_for(lambda line=(group, str(count)): shows(page, *line))
    page.wait_for(lambda: shows(page, "tag:", "gradient_norm/backbone.stage1"))
    page.wait_for(lambda: shows(page, *map(str, range(STEPS))))


def test_images(tab, events):
    """All that were drawn are shown at their sizes, with a slider over the validations."""
    tags = events.Tags()["images"]
    kinds = ["pictures", "worst"]
    assert {tag for tag in tags if tag.endswith(tuple(kinds))} == {
        f"val/{task}/{kind}" for task in TASKS for kind in kinds
    }
    assert {"val/cls/confusion", "val/seg/confusion", "val/seg/classes_iou"} < set(tags)
    last = [events.Images(tag)[-1] for tag in tags]
    page = tab("images")
    page.wait_for(lambda: len(page.pictures()) == len(tags))
    assert sorted(page.pictures()) == sorted([image.width, image.height] for image in last)
    assert all(tag in page.text().splitlines() for tag in tags)
    assert page.sliders().count(VALIDATIONS - 1) == len(
        tags
    )  # two more for brightness and contrast


def test_custom_scalars(tab):
    """A category for each task, in which each chart has found scalars."""
    page = tab("custom_scalars")
    page.wait_for(lambda: all(name in page.text().splitlines() for name in [*TASKS, "all tasks"]))
    page.wait_for(lambda: "gradient cosine" in page.text().splitlines())
    page.wait_for(lambda: re.findall(r"Matches \((\d+)\)", page.text()))
    page.wait_for(lambda: "0" not in re.findall(r"Matches \((\d+)\)", page.text()))


def test_precision_and_recall(tab):
    page = tab("pr_curves")
    page.wait_for(lambda: shows(page, "cls_probability", "5"))
    page.wait_for(lambda: shows(page, "det_box_iou50", "5"))
    page.wait_for(lambda: f"step {STEPS - 1}" in page.text())


def test_texts(tab):
    page = tab("text")
    page.wait_for(lambda: f"val_check_interval: {STEPS // VALIDATIONS}" in page.text())
    page.wait_for(lambda: re.search(r"git: (\w{7}|None)", page.text()))
