"""A small ResNet, registered with torchvision as a user would register one: seconds, not minutes."""

from torch import Tensor, nn
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


class TwoLayers(nn.Module):
    """Two convolutions with BatchNorm: compiled in a second, for tests of everything around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


@register_model()
def two_layers(weights: None = None) -> TwoLayers:
    return TwoLayers()
