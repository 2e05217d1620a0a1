#!/usr/bin/env python3
"""The published input pipeline on torchvision and Pillow, on one thread, whole and part by part.

decode_augment_peer.py FOLDER [opencv]; with the latter, decoding and resizing are OpenCV's.
The same parts and protocol as decode_augment.cpp: for each line of standard input, which names a part, every file of the
folder once, and a JSON object on standard output. tests/bench/decode_augment runs both in turn.
"""
import io
import json
import math
import pathlib
import sys
import time

import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F

torch.set_num_threads(1)
GLOBAL, LOCAL, LOCALS = 224, 98, 8
BICUBIC = T.InterpolationMode.BICUBIC

flip = T.RandomHorizontalFlip(0.5)
colour = [T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), T.RandomGrayscale(p=0.2)]
blur = T.GaussianBlur(9, (0.1, 2.0))
solarize = T.RandomSolarize(128, p=0.2)
normal = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]


def cropped(size, scale):
    return T.RandomResizedCrop(size, scale=scale, interpolation=BICUBIC)


# The probabilities of blur are those that the published code has in effect.
global1 = T.Compose([cropped(GLOBAL, (0.32, 1.0)), flip, *colour, *normal])
global2 = T.Compose([cropped(GLOBAL, (0.32, 1.0)), flip, *colour, T.RandomApply([blur], p=0.9), solarize, *normal])
local = T.Compose([cropped(LOCAL, (0.05, 0.32)), flip, *colour, T.RandomApply([blur], p=0.5), *normal])


def decode(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def whole(data):
    image = decode(data)
    return [global1(image), global2(image)] + [local(image) for _ in range(LOCALS)]


def centred(whole_width, whole_height, share):
    """Left, top, width and height of a centred box with this share of an image's area."""
    width, height = (max(1, int(side * math.sqrt(share))) for side in (whole_width, whole_height))
    return (whole_width - width) // 2, (whole_height - height) // 2, width, height


def resized(image, share, size):
    left, top, width, height = centred(*image.size, share)
    return F.resized_crop(image, top, left, height, width, [size, size], BICUBIC)


def colours(crop):
    crop = F.adjust_brightness(crop, 0.9)
    crop = F.adjust_contrast(crop, 1.1)
    crop = F.adjust_saturation(crop, 1.1)
    return F.adjust_hue(crop, 0.03)


files = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).iterdir())]
images = [decode(data) for data in files]
crops = [resized(image, 0.66, GLOBAL) for image in images]
parts = {
    "whole": lambda i: whole(files[i]),
    "decode": lambda i: decode(files[i]),
    "copy": lambda i: images[i].copy(),
    "resize": lambda i: [resized(images[i], *crop) for crop in [(0.66, GLOBAL)] * 2 + [(0.185, LOCAL)] * LOCALS],
    "colour": lambda i: colours(crops[i]),
    "blur": lambda i: F.gaussian_blur(crops[i], [9, 9], [1.0, 1.0]),
    "normalize": lambda i: normal[1](normal[0](crops[i])),
}
if sys.argv[2:] == ["opencv"]:
    import cv2
    import numpy

    cv2.setNumThreads(1)
    encoded = [numpy.frombuffer(data, numpy.uint8) for data in files]
    arrays = [numpy.array(image) for image in images]

    def resized_by_opencv(array, share, size):
        left, top, width, height = centred(array.shape[1], array.shape[0], share)
        part = array[top:top + height, left:left + width]  # INTER_AREA: its only filter that does not alias
        return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)

    parts["decode"] = lambda i: cv2.cvtColor(cv2.imdecode(encoded[i], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    parts["copy"] = lambda i: arrays[i].copy()
    parts["resize"] = lambda i: [resized_by_opencv(arrays[i], *crop)
                                 for crop in [(0.66, GLOBAL)] * 2 + [(0.185, LOCAL)] * LOCALS]
for line in sys.stdin:
    part = parts[line.strip()]
    begin = time.perf_counter()
    for i in range(len(files)):
        part(i)
    print(json.dumps({"milliseconds": (time.perf_counter() - begin) / len(files) * 1e3}), flush=True)
