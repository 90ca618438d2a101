"""The usual preprocessing of images, to guess from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnx import ModelProto

from onnxprune.data.recipe import Channels, Recipe


@dataclass(frozen=True, slots=True)
class Usual:
    """A usual way to make inputs of pixels.

    Attributes:
        name: its name.
        recipe: what it does to values, in RGB order.
        source: who uses it.
        channels: the numbers of channels that it is for.
    """

    name: str
    recipe: Recipe
    source: str
    channels: tuple[int, ...] = (1, 3)

    def ordered(self, known: Recipe) -> Recipe:
        """Return a recipe completed by these values, in the order of its channels."""
        step = -1 if known.channels == "BGR" else 1
        mean, std = (numbers and numbers[::step] for numbers in (self.recipe.mean, self.recipe.std))
        return replace(known, scale=self.recipe.scale, mean=mean, std=std)


IMAGENET = Usual(
    "ImageNet's mean and deviation",
    Recipe(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "torchvision, timm, Hugging Face's image processors",
    (3,),
)
SIGNED = Usual("-1..1", Recipe(scale=1 / 127.5, mean=(1.0,)), "TensorFlow's slim, Keras' mode tf, Inception, MobileNet")
UNIT = Usual("0..1", Recipe(scale=1 / 255), "Ultralytics' YOLO, TensorFlow Hub, torchvision's ToTensor alone")

USUAL = (
    IMAGENET,
    SIGNED,
    UNIT,
    Usual("0..255", Recipe(scale=1.0), "Keras' EfficientNet, YOLOX, YuNet, models with their own scaling"),
    Usual("minus ImageNet's mean", Recipe(mean=(123.68, 116.779, 103.939)), "Caffe, Keras' mode caffe, VGG", (3,)),
    Usual("(x - 127) / 128", Recipe(mean=(127.0,), std=(128.0,)), "MTCNN, UltraFace; -1..1 within 1 %"),
    Usual(
        "MNIST's mean and deviation", Recipe(scale=1 / 255, mean=(0.1307,), std=(0.3081,)), "PyTorch's examples", (1,)
    ),
)
"""All of them."""

_RANGES = {"NominalRange_0_255": USUAL[3], "Normalized_0_1": UNIT, "Normalized_1_1": SIGNED}
_ORDERS: dict[str, Channels] = {"Rgb8": "RGB", "Bgr8": "BGR", "Gray8": "GRAY"}


def declared(model: ModelProto) -> Recipe:
    """Return what a file's metadata say of the preprocessing; nothing if they say nothing.

    Read are the image properties of ONNX (docs/MetadataProps.md there), and files of Ultralytics, whose models take RGB
    from 0 to 1.
    """
    said = {entry.key: entry.value for entry in model.metadata_props}
    if said.get("author") == "Ultralytics" and "stride" in said:
        return replace(UNIT.recipe, channels="RGB")
    usual = _RANGES.get(said.get("Image.NominalPixelRange", ""))
    known = Recipe(channels=_ORDERS.get(said.get("Image.BitmapPixelFormat", "")))
    return known if usual is None else usual.ordered(known)
