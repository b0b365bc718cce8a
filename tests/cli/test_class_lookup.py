import pytest

from gmf_platform.cli.class_lookup import imported_signature, resolve_class
from gmf_platform.cli.sources import Entry
from gmf_platform.errors import UserError


class Base:
    def __init__(self, root, *, batch=1):
        pass


class Passing(Base):
    def __init__(self, crop, **kwargs):
        super().__init__(**kwargs)


class Closed(Base):
    def __init__(self, crop):
        super().__init__(crop)


class Plain(Base):
    pass


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (Base, ["root", "batch"]),
        (Passing, ["crop", "root", "batch"]),
        (Closed, ["crop"]),
        (Plain, ["root", "batch"]),
    ],
)
def test_imported_signature(cls, names):
    assert list(imported_signature(cls).parameters) == names


def entry(value):
    return Entry("model.loss.class_path", value, "a.yaml:3")


def test_classes_made_while_a_module_is_imported(modules):
    modules("makers", "Made = type('Made', (), {'__init__': lambda self, size=3: None})\n")
    signature = resolve_class(entry("makers.Made"))
    assert (signature.name, signature.parameters["size"].default) == ("Made", "3")
    with pytest.raises(UserError, match=r"a.yaml:3: .*no class 'Mad' in makers; did you mean 'Mad"):
        resolve_class(entry("makers.Mad"))


def test_module_that_fails(modules):
    modules("broken", "raise RuntimeError('no such card')\n")
    with pytest.raises(UserError, match="cannot import broken: RuntimeError: no such card"):
        resolve_class(entry("broken.Thing"))


def test_module_with_a_mistake_in_it(modules):
    modules("typo", "class Thing(:\n")
    with pytest.raises(UserError, match="cannot import typo: SyntaxError"):
        resolve_class(entry("typo.Thing"))
