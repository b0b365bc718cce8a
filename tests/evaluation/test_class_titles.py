"""Names of classes as people read them."""

from gmf_platform.evaluation.class_titles import titled


def test_ids_of_wordnet():
    assert titled(["n01440764", "n02012849", "n03126707"]) == [
        "tench (n01440764)",
        "crane (n02012849)",
        "crane (n03126707)",
    ]


def test_classes_of_joint_tasks():
    assert titled(["cls/n01440764", "det/person"]) == ["cls/tench (n01440764)", "det/person"]


def test_other_names_stay():
    names = ["goldfish", "tench (n01440764)", "n0144", "n99999999", "new"]
    assert titled(names) == names
    assert titled([]) == []


def test_all_thousand_differ():
    from timm.data.imagenet_info import ImageNetInfo

    names = ImageNetInfo("imagenet-1k").label_names()
    titles = titled(names)
    assert len(set(titles)) == 1000
    assert all(title.endswith(f" ({name})") for name, title in zip(names, titles, strict=True))
