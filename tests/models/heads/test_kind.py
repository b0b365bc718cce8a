import pytest
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.heads import ClassificationHead, FCNHead, RetinaNet
from gmf_platform.models.heads.kind import check_head

CHANNELS = [20, 40, 60, 80]


def test_heads_of_their_task_pass():
    check_head("model.head", RetinaNet(CHANNELS, 3, channels=16), "features", "sizes", "targets")
    check_head("model.head", FCNHead(CHANNELS, 3, channels=16), "features")
    check_head("model.head", ClassificationHead(CHANNELS, 3), "features")
    check_head("model.head", nn.Sequential(nn.Flatten()), "features")


@pytest.mark.parametrize(
    ("make", "takes"),
    [(FCNHead, ("features", "sizes", "targets")), (RetinaNet, ("features",))],
)
def test_heads_of_another_task_are_refused(make, takes):
    said = (
        rf"^model\.head: {make.__name__} is a head for another task: its forward takes \(features"
    )
    with pytest.raises(UserError, match=said):
        check_head("model.head", make(CHANNELS, 3, channels=16), *takes)
