import math
from types import SimpleNamespace

from gmf_platform.callbacks import PerSample
from gmf_platform.distributed.order import EvalBatches


def loader(batches, **dataset):
    batches = EvalBatches(batches, rank=0, world_size=1)
    return SimpleNamespace(batches=batches, dataset=SimpleNamespace(**dataset))


def trainer(loader):
    return SimpleNamespace(val_dataloaders=loader, test_dataloaders=loader)


def task(score):
    one = SimpleNamespace(sample_scores=lambda batch, outputs, index: score(outputs[index]))
    one.pictured = lambda batch, outputs: [("", one, batch, outputs)]
    return one


def test_rows_are_in_the_order_of_the_split():
    rows, one = PerSample(), trainer(loader([[2, 0], [1]]))
    scores = task(lambda x: {"iou": x, "worst_class": "a, b" if x else ""})
    for _ in range(2):  # the second evaluation begins anew
        rows.on_validation_batch_end(one, scores, [0.5, math.nan], {"ids": ["c", "a"]}, 0)
        rows.on_validation_batch_end(one, scores, [0.0], {"ids": ["b"]}, 1)
        text = 'index,path,iou,worst_class\n0,a,,"a, b"\n1,b,0,\n2,c,0.5,"a, b"\n'
        assert rows.tables() == {"per_sample.csv": text}
    assert rows.tables() == {}


def test_the_data_set_names_the_files():
    rows = PerSample()
    own = loader([[2, 0]], path=lambda index: f"/images/{index}.jpg")
    scores = task(lambda x: {"top1": x})
    rows.on_test_batch_end(trainer(own), scores, [1, 0], {"ids": [17, 18]}, 0)
    text = "index,path,top1\n0,/images/0.jpg,0\n2,/images/2.jpg,1\n"
    assert rows.tables() == {"per_sample.csv": text}


def test_joint_training_has_a_table_for_each_task():
    """A joint batch holds a batch of some of the tasks; each has an order of its own."""
    seg, det = task(lambda x: {"iou": x}), task(lambda x: {"box_ap": x})
    parts = {"seg": seg, "det": det}

    def pictured(batch, outputs):
        return [(name, parts[name], batch["tasks"][name], outputs[name]) for name in batch["tasks"]]

    joint = SimpleNamespace(loaders={"seg": loader([[0], [1]]), "det": loader([[1, 0]])})
    both = SimpleNamespace(pictured=pictured)
    rows = PerSample()
    first = {"tasks": {"seg": {"ids": ["a"]}}}
    rows.on_validation_batch_end(trainer(joint), both, {"seg": [0.5]}, first, 0)
    second = {"tasks": {"det": {"ids": [7, 8]}, "seg": {"ids": ["b"]}}}
    outputs = {"det": [0.1, 0.2], "seg": [0.25]}
    rows.on_validation_batch_end(trainer(joint), both, outputs, second, 1)
    assert rows.tables() == {
        "seg_per_sample.csv": "index,path,iou\n0,a,0.5\n1,b,0.25\n",
        "det_per_sample.csv": "index,path,box_ap\n0,8,0.2\n1,7,0.1\n",
    }


def test_tasks_without_scores_of_single_images():
    rows = PerSample()
    scores = task(lambda x: {})
    rows.on_test_batch_end(trainer(loader([[0, 1]])), scores, [1, 0], {"ids": [17, 18]}, 0)
    assert rows.tables() == {}


def test_a_loader_of_someone_else():
    rows = PerSample()
    scores = task(lambda x: {"a": 1})
    rows.on_validation_batch_end(trainer([1, 2]), scores, [1], {"ids": [1]}, 0)
    assert rows.tables() == {}
