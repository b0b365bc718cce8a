import json
import signal

import pytest


def report(result):
    assert result.code == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def test_backbone_beside_another(gmf, tmp_path):
    words = ("--variant", "mobile", "--against", "timm:resnet18", "--size", "64", "--batch", "2")
    words += ("--device", "cpu", "--runs", "2", "--precision", "float32", "--json", "out.json")
    result = gmf("benchmark", "backbone", *words)
    found = report(result)
    assert found == json.loads((tmp_path / "out.json").read_text())
    assert found["machine"]["device"] == "cpu"
    assert [section["mode"] for section in found["sections"]] == ["train", "infer"]
    train, infer = (section["networks"] for section in found["sections"])
    for networks in (train, infer):
        ours, other = networks["ours"], networks["timm:resnet18"]
        assert ours["ratio"]["best"] == 1
        assert other["ratio"]["best"] == pytest.approx(min(other["seconds"]) / min(ours["seconds"]))
        assert ours["images_per_second"] == pytest.approx(2 / min(ours["seconds"]))
    assert 0 < train["ours"]["memory"]["held"] < train["ours"]["memory"]["peak"]
    assert infer["ours"]["memory"] is None
    assert "time over ours" in result.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("backbone", "--mode", "fly"), "'fly' is none of train, infer"),
        (("backbone", "--size", "32"), "--size takes at least 64"),
        (("backbone", "--batch", "0"), "'0' is no number from 1"),
        (("backbone", "--clock", "processor"), "--device cpu"),
        (("backbone", "--json", "no/folder.json"), "no folder"),
        (("backbone", "--against", "mmseg"), "timm:NAME"),
        (("spine",), "invalid choice: 'spine'"),
        (("step", "--steps", "many"), "'many' is no number from 1"),
        (("data", "--step-seconds", "nan"), "'nan' is no number of seconds"),
    ],
)
def test_wrong_words(gmf, words, said):
    result = gmf("benchmark", *words)
    assert result.code == 2
    assert said in result.err


def test_step_of_a_config(gmf, base):
    result = gmf("benchmark", "step", *base, "--steps", "5", "--warmup", "1")
    found = report(result)
    seconds = found["seconds"]
    assert {"data wait", "forward and losses", "backward", "optimiser", "Guard"} <= seconds.keys()
    assert all(spent >= 0 for spent in seconds.values())
    assert found["overhead"].keys() == {"wall", "processor"}
    assert 0 < found["overhead"]["wall"]["bare"] < sum(seconds.values()) * 10
    assert "images a second" in result.out


def test_step_leaves_nothing(gmf, base, tmp_path):
    report(gmf("benchmark", "step", *base, "--steps", "1", "--warmup", "1"))
    assert list(tmp_path.iterdir()) == []


def test_accumulated_step(gmf, base):
    words = ("--data.per_device_batch_size", "2", "--steps", "4", "--warmup", "1")
    result = gmf("benchmark", "step", *base, *words)
    assert "batch 4 = 2 x 1 devices x 2 accumulated" in result.out
    assert report(result)["overhead"]["wall"]["bare"] > 0


@pytest.mark.slow
def test_step_of_two_processes(call_processes, base, tmp_path):
    words = ("--config", "strategy/ddp", "--trainer.accelerator", "cpu", "--steps", "2")
    first, second = call_processes(2, "benchmark", "step", *base, *words, cwd=tmp_path)
    collectives = report(first)["collectives"]
    assert collectives["gradients"]["bytes"] > 0
    # A norm has one collective in the forward pass and one in the backward pass.
    assert collectives["all_gather_into_tensor"]["calls"] > 1
    assert collectives["all_reduce"]["calls"] >= 1
    assert second.code == 0, second.err


@pytest.mark.parametrize("workers", [0, 2])
def test_data_of_a_config(gmf, base, workers):
    words = ("--images", "6", "--batches", "3", "--warmup", "1", "--step-seconds", "0.05")
    found = report(gmf("benchmark", "data", *base, *words, "--data.num_workers", workers))
    alone, together = found["one_worker"], found["all_workers"]
    names = [function["name"] for function in alone["functions"]]
    assert names[0] == "SegmentationDataset.__getitem__"
    assert {"images.read_image", "RandomCrop.apply", "HorizontalFlip.apply"} <= set(names)
    assert alone["images_per_processor_second"] > 0
    assert (together["workers"], together["batch"]) == (workers, 4)
    assert together["bytes_per_batch"] == 4 * 3 * 64 * 64
    assert 0 <= found["waits"]["share"] < 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])  # this is no worker: it can be ended
