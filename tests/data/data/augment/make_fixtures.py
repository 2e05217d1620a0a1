"""Makes the pictures beside it, which test_augment.cpp compares allosaur's image operations with.

Needs pillow and torchvision (made with 13.0.0 and 0.26.0): python make_fixtures.py
"""
import pathlib

import numpy
from PIL import Image
from torchvision.transforms import InterpolationMode, functional as F

here = pathlib.Path(__file__).parent


def save(image, name):
    image.save(here / f"{name}.png", optimize=True)


# Smooth colours, saturated patches, greys and noise: every branch of the colour arithmetic is met.
random = numpy.random.default_rng(1)
height, width = 40, 52
y, x = numpy.mgrid[0:height, 0:width]
pixels = numpy.stack([x * 255 / width, y * 255 / height, 255 - (x + y) * 255 / (width + height)], -1)
pixels[8:16, 8:24] = [250, 20, 10]
pixels[20:30, 30:44] = [5, 90, 240]
pixels[30:38, 4:20] = (numpy.arange(16) * 17)[None, :, None]
pixels += random.normal(0, 12, pixels.shape)
source = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))

save(source, "source")
for name, adjust, amounts in [
    ("brightness", F.adjust_brightness, (0.6, 1.4)),
    ("contrast", F.adjust_contrast, (0.6, 1.4)),
    ("saturation", F.adjust_saturation, (0.8, 1.2)),
    ("hue", F.adjust_hue, (-0.1, 0.07)),
]:
    for amount in amounts:
        save(adjust(source, amount), f"{name}_{amount}")
save(F.rgb_to_grayscale(source, num_output_channels=3), "grayscale")
save(F.solarize(source, 128), "solarize")
save(F.hflip(source), "flip")
for sigma in (0.3, 2.0):
    save(F.gaussian_blur(source, [9, 9], [sigma, sigma]), f"blur_{sigma}")
bicubic = InterpolationMode.BICUBIC
save(F.resized_crop(source, top=5, left=7, height=30, width=37, size=[24, 24], interpolation=bicubic), "crop_24")
save(F.resized_crop(source, top=11, left=20, height=9, width=11, size=[32, 32], interpolation=bicubic), "crop_32")
# The order in which everything is done to a crop.
crop = F.resized_crop(source, top=5, left=7, height=30, width=37, size=[24, 24], interpolation=bicubic)
hue, contrast = (lambda i: F.adjust_hue(i, 0.07)), (lambda i: F.adjust_contrast(i, 0.7))
brightness, saturation = (lambda i: F.adjust_brightness(i, 1.3)), (lambda i: F.adjust_saturation(i, 1.2))
blur = lambda i: F.gaussian_blur(i, [9, 9], [0.8, 0.8])
grey = lambda i: F.rgb_to_grayscale(i, num_output_channels=3)
for name, operations in [
    ("order_colour", (F.hflip, hue, contrast, brightness, saturation, blur, lambda i: F.solarize(i, 128))),
    ("order_grey", (saturation, brightness, hue, contrast, grey, blur)),
]:
    result = crop
    for operation in operations:
        result = operation(result)
    save(result, name)
save(F.center_crop(F.resize(source, 27, interpolation=bicubic), [24, 24]), "view_27_24")
