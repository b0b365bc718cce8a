import torch
from torch import nn

from gmf_platform.models.operations import multiply_adds, on_meta


class Net(nn.Module):
    """A convolution and a layer after it, of which the operations can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 10, 4, stride=4)
        self.norm = nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 7)
        self.tied = self.head

    def forward(self, images):
        features = self.norm(self.backbone(images / 255))
        return self.head(features.mean((2, 3)))


def test_multiply_adds():
    places = 500 * 1000
    net = Net()
    assert multiply_adds(net, (2000, 4000)) == places * 3 * 16 * 10 + 10 * 7
    assert multiply_adds(net, (2000, 4000), part="backbone") == places * 3 * 16 * 10


def test_the_model_is_left_as_it_is():
    net = Net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    multiply_adds(net, (64, 64))
    assert net.training
    for name, tensor in net.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])


def test_a_copy_without_memory():
    net = Net()
    copy = on_meta(net)
    assert {x.device.type for x in copy.state_dict().values()} == {"meta"}
    assert copy.head.weight is copy.tied.weight
    assert copy.head.weight.requires_grad
    assert net.state_dict().keys() == copy.state_dict().keys()
