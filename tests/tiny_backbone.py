"""A small ResNet, registered with torchvision as a user would register one: seconds, not minutes."""

from torch import nn
from torchvision.models import ResNet
from torchvision.models._api import register_model
from torchvision.models.resnet import BasicBlock


class TinyResNet(ResNet):
    """Four stages of one block, a quarter as wide as ResNet-18's."""

    def _make_layer(self, block: type[BasicBlock], planes: int, *args: object, **kw: object):
        return super()._make_layer(block, planes // 4, *args, **kw)


@register_model()
def tiny_resnet(weights: None = None, **options: object) -> TinyResNet:
    network = TinyResNet(BasicBlock, [1, 1, 1, 1], **options)
    network.fc = nn.Linear(512 // 4, 1000)
    return network


class MicroResNet(ResNet):
    """The same, 64 times as narrow as ResNet-18."""

    def _make_layer(self, block: type[BasicBlock], planes: int, *args: object, **kw: object):
        return super()._make_layer(block, planes // 64, *args, **kw)


@register_model()
def micro_resnet(weights: None = None, **options: object) -> MicroResNet:
    network = MicroResNet(BasicBlock, [1, 1, 1, 1], **options)
    network.fc = nn.Linear(512 // 64, 1000)
    return network
