import math
from types import SimpleNamespace

from gmf_platform.callbacks import PerSample
from gmf_platform.distributed.order import EvalBatches


def trainer(dataset=None):
    loader = SimpleNamespace(
        batches=EvalBatches([[2, 0], [1]], rank=0, world_size=1),
        dataset=dataset or SimpleNamespace(),
    )
    return SimpleNamespace(val_dataloaders=loader, test_dataloaders=loader)


def task(score):
    return SimpleNamespace(sample_scores=lambda batch, outputs, index: score(outputs[index]))


def test_rows_are_in_the_order_of_the_split():
    rows = PerSample()
    scores = task(lambda x: {"iou": x, "worst_class": "a, b" if x else ""})
    rows.on_validation_batch_end(trainer(), scores, [0.5, math.nan], {"ids": ["c", "a"]}, 0)
    rows.on_validation_batch_end(trainer(), scores, [0.0], {"ids": ["b"]}, 1)
    assert rows.table() == ('index,path,iou,worst_class\n0,a,,"a, b"\n1,b,0,\n2,c,0.5,"a, b"\n')


def test_the_data_set_names_the_files():
    rows = PerSample()
    dataset = SimpleNamespace(path=lambda index: f"/images/{index}.jpg")
    scores = task(lambda x: {"top1": x})
    rows.on_test_batch_end(trainer(dataset), scores, [1, 0], {"ids": [17, 18]}, 0)
    assert rows.table() == "index,path,top1\n0,/images/0.jpg,0\n2,/images/2.jpg,1\n"


def test_tasks_without_scores_of_single_images():
    rows = PerSample()
    rows.on_test_batch_end(trainer(), task(lambda x: {}), [1, 0], {"ids": [17, 18]}, 0)
    assert rows.table() is None


def test_a_loader_of_someone_else():
    rows = PerSample()
    other = SimpleNamespace(val_dataloaders=[1, 2])
    rows.on_validation_batch_end(other, task(lambda x: {"a": 1}), [1], {"ids": [1]}, 0)
    assert rows.table() is None
