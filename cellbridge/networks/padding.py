"""Images of odd size: reflected at their far edges up to a size that a backbone can halve or cut into patches, and cropped again."""

from torch.nn import functional

from cellbridge.errors import ConfigError
from cellbridge.typing import Images


def padded_size(size_px: int, multiple_of: int) -> int:
    """Return the next multiple.

    Raises
    ------
    ConfigError : the image is too small to be reflected that far.
    """
    padded = -(-size_px // multiple_of) * multiple_of
    if padded - size_px >= size_px:
        raise ConfigError(
            f"{size_px} px would have to be reflected up to {padded} px for this network. Use fewer network.widths, smaller "
            "network.dit.patch_px, or a larger size_px."
        )
    return padded


def pad_to_multiple(images: Images, multiple_of: int) -> Images:
    """Reflect images at the bottom and the right until their sides are multiples."""
    down, right = (-side % multiple_of for side in images.shape[-2:])
    return functional.pad(images, (0, right, 0, down), mode="reflect") if down or right else images


def crop_to(images: Images, like: Images) -> Images:
    """Cut off what `pad_to_multiple` added to images of the shape of `like`."""
    height, width = like.shape[-2:]
    return images[..., :height, :width]
