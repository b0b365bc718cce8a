"""Annotation files: what is read from sound ones, and what is said of others."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as Reference

from datamodules.coco_json import read_coco
from datamodules.images import DataError, Flaw

BOX = {"bbox": [10, 20, 30, 40]}


def spoilt(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_categories_in_any_order_with_gaps(make_coco):
    path = make_coco(
        {5: (100, 80)},
        [BOX | {"category_id": 90}, BOX | {"category_id": 2}, BOX | {"category_id": 17}],
        categories=((90, "zebra"), (2, "ant"), (17, "bee")),
    )
    read = read_coco(path)
    assert (read.class_names, read.category_ids) == (["ant", "bee", "zebra"], [2, 17, 90])
    assert read.targets(0).labels.tolist() == [2, 0, 1]
    chosen = read_coco(path, classes=["zebra", "ant", "bee"])
    assert (chosen.class_names, chosen.category_ids) == (["zebra", "ant", "bee"], [90, 2, 17])
    assert chosen.targets(0).labels.tolist() == [0, 1, 2]


def test_boxes_are_clipped_and_slivers_counted(make_coco):
    boxes = [
        [10, 20, 30, 40],
        [-5, -6, 20, 20],
        [90, 70, 50, 50],
        [10, 10, 0, 5],  # from here on nothing, or too little, is left
        [10, 10, 5, -3],
        [10, 10, 0.5, 20],
        [200, 10, 20, 20],
        [99.5, 10, 20, 20],
    ]
    read = read_coco(make_coco({5: (100, 80)}, [{"bbox": box} for box in boxes]))
    expected = [[10, 20, 40, 60], [0, 0, 15, 14], [90, 70, 100, 80]]
    assert read.targets(0).boxes.tolist() == expected
    assert (read.dropped, read.problems) == (5, [])


def test_images_without_annotations_and_annotations_in_any_order(make_coco):
    read = read_coco(
        make_coco(
            {7: (50, 50), 2: (60, 40), 4: (30, 90)},
            [BOX | {"image_id": 4}, BOX | {"image_id": 7}, {"bbox": [0, 0, 9, 9], "image_id": 4}],
        )
    )
    assert read.image_ids.tolist() == [7, 2, 4]
    assert [read.size(i) for i in range(3)] == [(50, 50), (40, 60), (90, 30)]
    assert [read.file_name(i) for i in range(3)] == ["7.png", "2.png", "4.png"]
    assert [len(read.targets(i).boxes) for i in range(3)] == [1, 0, 2]
    assert read.num_objects.tolist() == [1, 0, 2]
    assert read.targets(2).boxes[1].tolist() == [0, 0, 9, 9]
    assert read.targets(1).boxes.shape == (0, 4)


def test_crowds_are_no_objects(make_coco):
    runs = {"counts": [0, 8, 24], "size": [4, 8]}
    crowd = {"bbox": [0, 0, 2, 4], "iscrowd": 1, "segmentation": runs}
    read = read_coco(make_coco({5: (8, 4)}, [crowd]), with_masks=True)
    targets = read.targets(0)
    assert (targets.crowd.tolist(), read.num_objects.tolist()) == ([True], [0])
    assert coco_mask.decode(targets.rles[0]).tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]] * 4


def test_shapes_of_all_kinds(make_coco):
    bitmap = np.zeros((60, 90), np.uint8)
    bitmap[10:20, 30:50] = 1
    compressed = coco_mask.encode(np.asfortranarray(bitmap))
    text = {"size": [60, 90], "counts": compressed["counts"].decode()}
    columns = bitmap.ravel(order="F")
    changes = np.flatnonzero(np.diff(columns)) + 1
    plain = {"size": [60, 90], "counts": np.diff([0, *changes.tolist(), columns.size]).tolist()}
    square = [30, 10, 50, 10, 50, 20, 30, 20]
    halves = [[30, 10, 40, 10, 40, 20, 30, 20], [40, 10, 50, 10, 50, 20, 40, 20]]
    shapes = [text, plain, [square], halves, [square, [1, 1, 5, 5]]]
    unknown = [[], None, [[3, 3, 4, 4]]]
    box = {"bbox": [30, 10, 20, 10]}
    given = [box | {"segmentation": shape} for shape in shapes + unknown]
    read = read_coco(make_coco({5: (90, 60)}, given), with_masks=True)
    assert read.problems == []
    for rle in read.targets(0).rles[:5]:
        assert np.array_equal(coco_mask.decode(rle), bitmap)
    assert all(not coco_mask.decode(rle).any() for rle in read.targets(0).rles[5:])
    assert read.is_object.tolist() == [True] * 5 + [False] * 3
    assert read_coco(read.path).targets(0).rles is None


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_masks_and_boxes_equal_pycocotools(real_data, split):
    path = real_data("coco_mini") / f"annotations/instances_{split}2017.json"
    read, reference = read_coco(path, with_masks=True), Reference(path)
    assert read.problems == []
    assert read.category_ids == sorted(reference.getCatIds())
    assert sorted(read.image_ids.tolist()) == sorted(reference.getImgIds())
    for i, image in enumerate(read.image_ids.tolist()):
        wanted = [reference.anns[n] for n in reference.getAnnIds(image)]
        targets = read.targets(i)
        assert [read.category_ids[x] for x in targets.labels] == [a["category_id"] for a in wanted]
        assert targets.crowd.tolist() == [bool(a["iscrowd"]) for a in wanted]
        boxes = np.array([a["bbox"] for a in wanted]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(targets.boxes, boxes, atol=0.011)  # COCO's boxes reach out by rounding
        assert [r["counts"] for r in targets.rles] == [
            reference.annToRLE(a)["counts"] for a in wanted
        ]


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (BOX | {"image_id": 99}, "its image_id 99 is not in the list of images"),
        (BOX | {"category_id": 4}, "its category_id 4 is not in the list of categories"),
        ({"bbox": [1, float("nan"), 5, 5]}, "its bbox [1, nan, 5, 5] is not finite"),
        ({"bbox": [1, 2, float("inf"), 5]}, "its bbox [1, 2, inf, 5] is not finite"),
        ({"bbox": [1, 2, 3]}, "its bbox is [1, 2, 3], not [x, y, width, height]"),
        ({"bbox": [1, 2, "3", 4]}, "its bbox is [1, 2, '3', 4], not [x, y, width, height]"),
        ({}, "its bbox is None, not [x, y, width, height]"),
        ({"bbox": list(range(999))}, "its bbox is [0, 1, 2, 3, 4, 5, ...], not [x, y, width"),
        (BOX | {"image_id": "5" * 99}, "its image_id '555555555555...5555555555555' is not in"),
        (BOX | {"category_id": [3]}, "its category_id [3] is not in the list of categories"),
        ({"bbox": [10**400, 2, 3, 4]}, "0, 2, 3, 4], not [x, y, width, height]"),
        (BOX | {"segmentation": [1, 2, 3, 4, 5, 6]}, "is not a list of polygons"),
        (BOX | {"segmentation": [[10**400, 2, 3, 4, 5, 6]]}, "is not a list of polygons"),
        (
            BOX | {"segmentation": {"size": [80, 100], "counts": [2**33]}},
            "do not sum up to the 8000 pixels of its image, but to 8589934592",
        ),
        (BOX | {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "odd number of coordinates"),
        (BOX | {"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "or one that is NaN"),
        (BOX | {"segmentation": "0101"}, "its segmentation is a str"),
        (
            BOX | {"segmentation": {"size": [100, 80], "counts": [8000]}},
            "its run lengths are of size [100, 80], its image is [80, 100]",
        ),
        (
            BOX | {"segmentation": {"size": [80, 100], "counts": [5, 6]}},
            "do not sum up to the 8000 pixels of its image, but to 11",
        ),
        (
            BOX | {"segmentation": {"size": [80, 100], "counts": "01"}},
            "do not sum up to the 8000 pixels of its image, but to 1",
        ),
        (BOX | {"segmentation": {"size": [80, 100], "counts": "~~"}}, "run lengths are damaged"),
        (
            BOX | {"segmentation": {"size": [80, 100]}},
            "neither a list of counts nor a compressed string",
        ),
    ],
)
def test_wrong_annotations_are_told_and_left_out(make_coco, annotation, said):
    path = make_coco({5: (100, 80)}, [BOX, annotation | {"id": 77}, BOX])
    read = read_coco(path, with_masks=True)
    (problem,) = read.problems
    assert str(problem).startswith(f"{path}: annotation 77: ")
    assert said in str(problem)
    assert problem.flaw is Flaw.ANNOTATION
    assert read.annotation_ids.tolist() == [1, 3]
    assert len(read.targets(0).rles) == 2


def test_entries_that_are_doubled_or_incomplete(make_coco):
    path = make_coco({5: (100, 80), 6: (10, 10)}, [BOX, BOX | {"id": 1}, BOX | {"id": None}])

    def change(content):
        content["images"] += [content["images"][0], {"id": 8, "width": 3, "height": 3}, 17]
        content["images"].append({"id": 9, "file_name": "x", "width": 0, "height": 3})

    read = read_coco(spoilt(path, change))
    assert [str(p).removeprefix(f"{path}: ") for p in read.problems] == [
        "image 5: this id stands twice among the images",
        "image 8: an image must have id, file_name, width and height",
        "image at place 4 of the list: an image must have id, file_name, width and height",
        "image 9: has no file_name, or the size 0 x 3",
        "annotation 1: this id stands twice among the annotations",
        "annotation at place 2 of the list: its id is None, not a whole number",
    ]
    assert len(read) == 2
    assert len(read.boxes) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 640.0}, "image 8: its width is 640.0, not a whole number"),
        ({"height": "480"}, "image 8: its height is '480', not a whole number"),
        ({"height": 2**31}, "image 8: its height 2147483648 is too large for 32 bits"),
        ({"id": 2**63}, "image 9223372036854775808: its id 9223372036854775808 is too large"),
        ({"id": "8" * 99}, "image '888888888888...8888888888888': its id is '888888888888..."),
        ({"id": True}, "image True: its id is True, not a whole number"),
    ],
)
def test_numbers_of_images_that_are_none(make_coco, change, said):
    def add(content):
        content["images"].append({"id": 8, "file_name": "x", "width": 9, "height": 9} | change)

    path = spoilt(make_coco({5: (100, 80)}, [BOX]), add)
    read = read_coco(path)
    (problem,) = read.problems
    assert str(problem).startswith(f"{path}: {said}")
    assert len(read) == 1


def test_the_largest_ids_are_kept_and_larger_ones_told(make_coco):
    path = make_coco({5: (100, 80)}, [BOX | {"id": 2**63 - 1}, BOX | {"id": 2**63}])
    read = read_coco(path)
    assert read.annotation_ids.tolist() == [2**63 - 1]
    assert [str(p) for p in read.problems] == [
        f"{path}: annotation {2**63}: its id {2**63} is too large for 64 bits"
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"image_id": 1, "category_id": 2, "bbox": [], "score": 0.5}], "looks like COCO results"),
        ({"shapes": [], "imagePath": "a.jpg"}, "looks like the labelme file"),
        ({"images": [], "categories": []}, "has images but no annotations"),
        ({"type": "FeatureCollection", "features": []}, "looks like GeoJSON"),
        (
            {"images": [], "annotations": []},
            "holds 'images', 'annotations', but no list categories",
        ),
        ([1], "it is a list of 1 entry"),
        ("x", "it is a single str"),
    ],
)
def test_other_json_says_what_it_looks_like(tmp_path, content, said):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{path}: is not a COCO annotation file: .*{said}"):
        read_coco(path)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(DataError, match=r"x\.json: there is no such file, nor a folder"):
        read_coco(tmp_path / "none" / "x.json")
    (tmp_path / "a.json").write_text('{"images": [1, 2')
    with pytest.raises(DataError, match=r"there is no such file; in .* there is: a\.json"):
        read_coco(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"a\.json: is not JSON, or cut off: .* column"):
        read_coco(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match=r"b\.json: is not JSON"):
        read_coco(tmp_path / "b.json")


def test_categories_that_are_none(make_coco):
    path = make_coco({5: (100, 80)}, [BOX])
    for categories, said in (
        ([], "the list of categories is empty"),
        ([{"id": 1}], "must have an id and a name"),
        ([{"id": "1", "name": "a"}], "category '1' 'a': its id is '1', not a whole number"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category 1 'b': id or name stands"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "category 2 'a': id or name stands"),
    ):
        spoilt(path, lambda content, new=categories: content.update(categories=new))
        with pytest.raises(DataError, match=said):
            read_coco(path)


def test_class_lists_that_do_not_fit(make_coco):
    path = make_coco({5: (100, 80)}, [BOX, BOX | {"category_id": 9}])
    with pytest.raises(DataError, match=r"data.classes: 'dgo' is no category .* is 'dog' meant"):
        read_coco(path, classes=["cat", "dgo"])
    with pytest.raises(DataError, match=r"'sofa' is no category .* Its categories: cat, dog"):
        read_coco(path, classes=["cat", "dog", "sofa"])
    with pytest.raises(DataError, match=r"misses 'dog': .* has annotations of category 9"):
        read_coco(path, classes=["cat"])
    with pytest.raises(DataError, match="stands there twice"):
        read_coco(path, classes=["cat", "dog", "cat"])


def test_a_category_that_nothing_uses_may_be_left_out(make_coco):
    """Some exporters list the set's own name as category 0."""
    path = make_coco({5: (100, 80)}, [BOX], categories=((3, "cat"), (0, "my-set")))
    assert read_coco(path).class_names == ["my-set", "cat"]
    read = read_coco(path, classes=["cat"])
    assert (read.category_ids, read.targets(0).labels.tolist()) == ([3], [0])
