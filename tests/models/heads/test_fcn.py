"""The FCN head against numbers of mmsegmentation's FCNHead."""

import torch

from gmf_platform.models.heads import FCNHead


def build(reference):
    head = FCNHead((20, 40, 60, 80), 7, channels=reference.setting("channels"), dropout=0.0)
    head.load_state_dict(reference.group("weights/"))  # strict: the names are mmsegmentation's
    return head, [reference[f"input/feature_{i}"].requires_grad_() for i in range(4)]


def test_logits_and_gradients_of_the_reference(read_reference):
    reference = read_reference("fcn_aux_head")
    head, features = build(reference)
    assert reference.error("eval/logits", head.eval()(features)) < 3e-5
    logits = head.train()(features)
    assert reference.error("train/logits", logits) < 3e-5
    logits.square().mean().backward()
    assert reference.error("grad/input_2", features[2].grad) < 3e-5
    assert [feature.grad is None for feature in features] == [True, True, False, True]
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_several_convolutions_on_the_last_map():
    head = FCNHead((4, 6), 5, index=-1, channels=8, num_convs=3)
    assert [conv.conv.in_channels for conv in head.convs] == [6, 8, 8]
    assert head([torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 5)]).shape == (2, 5, 4, 5)
