"""Names of classes as people read them: ImageNet's are numbers of WordNet."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

__all__ = ["titled"]

_WORDNET_ID = re.compile(r"(?P<task>\w+/)?(?P<id>n\d{8})")


def titled(class_names: Sequence[str]) -> list[str]:
    """Names of classes; of those that are ids of WordNet, what they stand for.

    ``n01440764`` becomes ``tench (n01440764)``, in joint training with the task before it. The id
    stays, since two classes of ImageNet are a crane. Other names stay as they are.
    """
    return [_titled(name) for name in class_names]


def _titled(name: str) -> str:
    found = _WORDNET_ID.fullmatch(name)
    word = _word(found["id"]) if found else ""
    return f"{found['task'] or ''}{word} ({found['id']})" if found and word else name


@cache
def _word(wordnet_id: str) -> str:
    """The first word for it; empty for one that is not in the whole ImageNet."""
    try:
        return _info().label_name_to_description(wordnet_id).partition(",")[0]
    except KeyError:
        return ""


@cache
def _info() -> Any:
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo("imagenet-1k")  # the words are of all
