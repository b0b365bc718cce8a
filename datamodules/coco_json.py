"""Reads a COCO annotation file, tells all that is wrong with it, and packs the rest."""

import gc
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.coco_annotations import CocoAnnotations, Ragged
from datamodules.coco_entries import WrongEntry, clipped_box, compressed_runs, polygon, whole
from datamodules.images import DataError, Flaw
from gmf_platform.errors import counted

__all__ = ["read_coco"]

_TABLES = ("images", "annotations", "categories")


def read_coco(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    named_in: Path | None = None,
    with_masks: bool = False,
) -> CocoAnnotations:
    """Read an annotation file of COCO's instance layout.

    Category ids may come in any order and with gaps. Boxes are clipped to their image, and left
    out and counted where less than a pixel of their width or height remains, as mmdetection does
    (``CocoDataset.parse_data_info``): that includes zero and negative sizes.

    Args:
        path: the file.
        classes: names of the classes in label order; None: the file's, sorted by id.
        named_in: the annotation file that they come from; None: ``data.classes``.
        with_masks: read polygons and run lengths too.

    Returns:
        What can be used; ``problems`` has the rest: entries that are incomplete, NaN or doubled,
        or of an unknown image or category.

    Raises:
        DataError: there is no such file, it is not COCO, or the classes are not its categories.
    """
    with _no_garbage_collection():
        tables = _tables(path)
        names, ids = _categories(tables["categories"], path)
        used = _used(tables["annotations"])
        class_names, category_ids = _chosen(names, ids, classes, used, path, named_in)
        packer = _Packer(path, category_ids, known=set(ids), with_masks=with_masks)
        packer.add_images(tables["images"])
        packer.add_annotations(tables["annotations"])
    return packer.packed(class_names)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects make the collector look again and again: it takes twice the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _tables(path: Path) -> dict[str, list[Any]]:
    """The three tables of a file.

    Raises:
        DataError: there is no such file, or it is not COCO; the message says what it is.
    """
    try:
        with path.open("rb") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file{_beside(path)}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{path}: is not JSON, or cut off: {error}") from error
    if isinstance(content, dict) and all(isinstance(content.get(t), list) for t in _TABLES):
        return {table: content[table] for table in _TABLES}
    raise DataError(
        f"{path}: is not a COCO annotation file: {_likeness(content)}.\n"
        "It must be an object with the lists images, annotations and categories, as "
        "instances_train2017.json has them."
    )


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    found = sorted(p.name for p in path.parent.glob("*.json"))
    there = ", ".join(found[:5]) + (" ..." if len(found) > 5 else "")
    return f"; in {path.parent} there is: {there or 'no .json file'}"


def _likeness(content: Any) -> str:
    """What a JSON file looks like that is not COCO's instance layout."""
    match content:
        case [{"image_id": _, "score": _}, *_]:
            return "it looks like COCO results, a list of predictions"
        case {"shapes": list(), "imagePath": str()}:
            return "it looks like the labelme file of one image"
        case {"images": list()} if "annotations" not in content:
            return "it has images but no annotations, like image_info_test2017.json"
        case {"type": "FeatureCollection"}:
            return "it looks like GeoJSON"
        case dict():
            missing = [table for table in _TABLES if not isinstance(content.get(table), list)]
            keys = ", ".join(map(short, list(content)[:5])) or "nothing"
            return f"it holds {keys}, but no list {' and no list '.join(missing)}"
        case list():
            return f"it is a list of {counted(len(content), 'entry', 'entries')}"
    return f"it is a single {type(content).__name__}"


def _categories(records: list[Any], path: Path) -> tuple[list[str], list[int]]:
    """Names and ids, sorted by id.

    Raises:
        DataError: a category without id or name, or two of one id or name.
    """
    found: dict[int, str] = {}
    for record in records:
        match record:
            case {"id": _, "name": str(name)}:
                found[_category_id(record, found, path)] = name
            case _:
                said = "a category must have an id and a name, not"
                raise DataError(f"{path}: {said}: {short(record)}")
    if not found:
        raise DataError(f"{path}: the list of categories is empty")
    ids = sorted(found)
    return [found[i] for i in ids], ids


def _category_id(record: Mapping[str, Any], before: Mapping[int, str], path: Path) -> int:
    """The id of a category that is none of those before.

    Raises:
        DataError: it is one of them, or no whole number of 64 bits.
    """
    try:
        number = whole(record, "id")
        if number in before or record["name"] in before.values():
            raise WrongEntry("id or name stands twice")
    except WrongEntry as wrong:
        entry = f"category {short(record['id'])} {short(record['name'])}"
        raise DataError(f"{path}: {entry}: {wrong}") from None
    return number


def _used(annotations: list[Any]) -> set[int]:
    """The category ids of annotations, the unknown ones too."""
    numbers = (a.get("category_id") for a in annotations if isinstance(a, dict))
    return {number for number in numbers if isinstance(number, int)}


def _chosen(
    names: Sequence[str],
    ids: Sequence[int],
    classes: Sequence[str] | None,
    used: set[int],
    path: Path,
    named_in: Path | None,
) -> tuple[list[str], list[int]]:
    """The classes with their category ids, in label order.

    Raises:
        DataError: a class that is no category, or a category with annotations that is no class.
    """
    if classes is None:
        return list(names), list(ids)
    id_of = dict(zip(names, ids, strict=True))
    source = named_in or "data.classes"
    unknown = next((name for name in classes if name not in id_of), None)
    if unknown is not None:
        near = get_close_matches(unknown, names, n=1)
        hint = f"; is {near[0]!r} meant?" if near else f". Its categories: {', '.join(names)}"
        raise DataError(f"{source}: {unknown!r} is no category of {path}{hint}")
    if len(set(classes)) < len(classes):
        raise DataError("data.classes: a name stands there twice")
    missed = [name for name in names if name not in classes and id_of[name] in used]
    if missed:
        advice = f"Add it, or leave data.classes out to take all {len(names)} categories."
        if named_in is not None:
            advice = "Both files must list the same categories."
        raise DataError(
            f"{source} misses {', '.join(map(repr, missed))}: {path} has annotations of "
            f"category {id_of[missed[0]]}. {advice}"
        )
    return list(classes), [id_of[name] for name in classes]


class _Packer:
    """Collects images and annotations in flat arrays.

    Args:
        path: the file, for messages.
        category_ids: of the classes, in label order.
        known: ids of all categories of the file.
        with_masks: take shapes too.
    """

    def __init__(
        self, path: Path, category_ids: Sequence[int], *, known: set[int], with_masks: bool
    ) -> None:
        self.path, self.category_ids, self.with_masks = path, list(category_ids), with_masks
        self.known = known
        self.label_of = {number: label for label, number in enumerate(category_ids)}
        self.index_of: dict[int, int] = {}
        self.seen: set[int] = set()
        self.sizes: list[tuple[int, int]] = []
        self.names, self.name_ends = bytearray(), array("q")
        self.ids, self.images, self.labels = array("q"), array("q"), array("q")
        self.boxes, self.crowd = array("d"), array("b")
        self.rings, self.ring_ends, self.polygon_ends = array("f"), array("q"), array("q")
        self.runs, self.run_ends = bytearray(), array("q")
        self.dropped = 0
        self.problems: list[DataError] = []

    def add_images(self, records: list[Any]) -> None:
        """Take the table of images."""
        for place, record in enumerate(records):
            try:
                self._add_image(record)
            except WrongEntry as wrong:
                self._note("image", place, record, wrong)

    def add_annotations(self, records: list[Any]) -> None:
        """Take the table of annotations."""
        for place, record in enumerate(records):
            try:
                self._add_annotation(record)
            except WrongEntry as wrong:
                self._note("annotation", place, record, wrong)

    def _note(self, kind: str, place: int, record: Any, wrong: WrongEntry) -> None:
        number = record.get("id") if isinstance(record, Mapping) else None
        at = f"at place {place} of the list" if number is None else short(number)
        said = f"{self.path}: {kind} {at}: {wrong}"
        self.problems.append(DataError(said, flaw=Flaw.ANNOTATION))

    def _add_image(self, record: Any) -> None:
        match record:
            case {"id": _, "file_name": str(name), "width": _, "height": _}:
                number = whole(record, "id")
                w, h = whole(record, "width", bits=32), whole(record, "height", bits=32)
            case _:
                raise WrongEntry("an image must have id, file_name, width and height")
        if number in self.index_of:
            raise WrongEntry("this id stands twice among the images")
        if w < 1 or h < 1 or not name:
            raise WrongEntry(f"has no file_name, or the size {w} x {h}")
        self.index_of[number] = len(self.sizes)
        self.sizes.append((h, w))
        self.names += name.encode()
        self.name_ends.append(len(self.names))

    def _add_annotation(self, record: Any) -> None:
        """Take an annotation; its parts are appended only when all of them are right."""
        if not isinstance(record, dict):
            raise WrongEntry("is not an object")
        number = whole(record, "id")
        image, category = record.get("image_id"), record.get("category_id")
        if number in self.seen:
            raise WrongEntry("this id stands twice among the annotations")
        self.seen.add(number)
        if not isinstance(image, int) or image not in self.index_of:
            raise WrongEntry(f"its image_id {short(image)} is not in the list of images")
        if not isinstance(category, int) or category not in self.known:
            raise WrongEntry(f"its category_id {short(category)} is not in the list of categories")
        index = self.index_of[image]
        box = clipped_box(record.get("bbox"), self.sizes[index])
        if box is None:
            self.dropped += 1
            return
        if self.with_masks:
            self._add_shape(record.get("segmentation"), self.sizes[index])
        self.ids.append(number)
        self.images.append(index)
        self.labels.append(self.label_of[category])
        self.boxes.extend(box)
        self.crowd.append(bool(record.get("iscrowd", 0)))

    def _add_shape(self, shape: Any, size: tuple[int, int]) -> None:
        match shape:
            case None:
                pass
            case list():
                rings = [polygon(points) for points in shape]
                for ring in rings:
                    # Two points enclose nothing; pycocotools would take four numbers for a box.
                    if len(ring) >= 6:
                        self.rings.extend(ring)
                        self.ring_ends.append(len(self.rings))
            case dict():
                self.runs += compressed_runs(shape, size)
            case _:
                raise WrongEntry(f"its segmentation is a {type(shape).__name__}")
        self.polygon_ends.append(len(self.ring_ends))
        self.run_ends.append(len(self.runs))

    def packed(self, class_names: list[str]) -> CocoAnnotations:
        """The arrays."""
        images = np.array(self.images)
        counts = np.bincount(images, minlength=len(self.sizes))
        num = len(images)
        shapes = (self.polygon_ends, self.run_ends) if self.with_masks else ([0] * num,) * 2
        return CocoAnnotations(
            path=self.path,
            class_names=class_names,
            category_ids=self.category_ids,
            image_ids=np.array(list(self.index_of), dtype=np.int64),
            sizes=np.array(self.sizes, dtype=np.int32).reshape(-1, 2),
            names=_ragged(np.frombuffer(bytes(self.names), np.uint8), self.name_ends),
            of_image=Ragged(np.argsort(images, kind="stable"), np.cumsum(counts)),
            annotation_ids=np.array(self.ids, dtype=np.int64),
            boxes=np.array(self.boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.array(self.labels, dtype=np.int64),
            crowd=np.array(self.crowd, dtype=np.bool_),
            rings=_ragged(np.array(self.rings, dtype=np.float32), self.ring_ends),
            polygons=_ragged(np.empty(0), shapes[0]),
            runs=_ragged(np.frombuffer(bytes(self.runs), np.uint8), shapes[1]),
            with_masks=self.with_masks,
            dropped=self.dropped,
            problems=self.problems,
        )


def _ragged(values: NDArray[Any], ends: Sequence[int]) -> Ragged:
    return Ragged(values, np.array(ends, dtype=np.int64))
