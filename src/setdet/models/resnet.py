"""ResNet-vd: the backbone of rtdetr-r18 to -r101 (He et al. 2018, "Bag of Tricks for Image Classification")."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from setdet.models.layers import ConvNorm
from setdet.models.variants import ResNetConfig


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels, kernel=3, stride=stride, activation="relu")
        self.conv2 = ConvNorm(channels, channels, kernel=3)
        self.shortcut = Shortcut(channels_in, channels, stride=stride) if project else nn.Identity()

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height2 width2"]:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 (which carries the stride) and 1×1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels, activation="relu")
        self.conv2 = ConvNorm(channels, channels, kernel=3, stride=stride, activation="relu")
        self.conv3 = ConvNorm(channels, channels * self.expansion)
        self.shortcut = Shortcut(channels_in, channels * self.expansion, stride=stride) if project else nn.Identity()

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height2 width2"]:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x), inplace=True)


class Shortcut(nn.Module):
    """The "D" tweak: average pooling carries the stride, so that no pixel is thrown away."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.conv = ConvNorm(channels_in, channels_out)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height2 width2"]:
        return self.conv(self.pool(x))


class ResNetVD(nn.Module):
    """Pictures → (S3, S4, S5) at strides 8, 16, 32."""

    def __init__(self, *, config: ResNetConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(  # the "C" tweak: three 3×3 convolutions in place of one 7×7
            ConvNorm(3, 32, kernel=3, stride=2, activation="relu"),
            ConvNorm(32, 32, kernel=3, activation="relu"),
            ConvNorm(32, 64, kernel=3, activation="relu"),
        )
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        block_type = BasicBlock if config.block == "basic" else Bottleneck
        channels_in = 64
        stages = []
        for index, (channels, count) in enumerate(zip((64, 128, 256, 512), config.blocks, strict=True)):
            blocks = []
            for position in range(count):
                first = position == 0
                stride = 2 if first and index > 0 else 1
                blocks.append(block_type(channels_in, channels, stride=stride, project=first))
                channels_in = channels * block_type.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[
        Float[Tensor, "batch c3 h3 w3"],
        Float[Tensor, "batch c4 h4 w4"],
        Float[Tensor, "batch c5 h5 w5"],
    ]:
        s2 = self.stages[0](self.pool(self.stem(images)))
        s3 = self.stages[1](s2)
        s4 = self.stages[2](s3)
        s5 = self.stages[3](s4)
        return s3, s4, s5
