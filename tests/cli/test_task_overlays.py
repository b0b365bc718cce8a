"""Overlays of joint training keep the tasks that they do not name."""

import yaml

from gmf_platform.cli.task_overlays import is_removal, overlaid

BASE = """
model:
  class_path: gmf_platform.tasks.MultiTask
  init_args:
    tasks: {a: {class_path: A}, b: {class_path: B}}
data: {init_args: {tasks: {a: {root: x}, b: {root: y}}}}
"""


def files(tmp_path, *texts):
    paths = [tmp_path / f"{i}.yaml" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def tasks_in(text, part="model"):
    content = yaml.safe_load(text)[part]
    return content.get("init_args", content)["tasks"]


def test_files_without_tasks_stay_files(tmp_path):
    paths = files(tmp_path, BASE, "trainer: {max_steps: 3}", "model: {compile: true}", "")
    assert overlaid(paths) == [str(path) for path in paths]


def test_tasks_that_are_not_named_are_kept(tmp_path):
    paths = files(tmp_path, BASE, "model: {tasks: {b: {weight: 2}}}", "data: {tasks: {c: {}}}")
    first, second, third = overlaid(paths)
    assert first == str(paths[0])
    assert tasks_in(second) == {"a": {}, "b": {"weight": 2}}
    assert list(tasks_in(second)) == ["a", "b"]  # in the order of the config
    assert tasks_in(third, "data") == {"a": {}, "b": {}, "c": {}}


def test_null_takes_a_task_away_for_good(tmp_path):
    paths = files(tmp_path, BASE, "model: {tasks: {a: null}}", "model: {tasks: {c: {}}}")
    _, second, third = overlaid(paths)
    assert tasks_in(second) == {"b": {}}
    assert tasks_in(third) == {"b": {}, "c": {}}


def test_null_on_the_command_line(tmp_path):
    paths = files(tmp_path, BASE)
    *_, last = overlaid(paths, ["model.tasks.a", "data.tasks.a"])
    assert tasks_in(last) == tasks_in(last, "data") == {"b": {}}
    assert is_removal("model.tasks.a", "null")
    assert not is_removal("model.tasks.a", "none")
    assert not is_removal("model.tasks.a.loss", "null")
    assert not is_removal("data.turns", "null")
