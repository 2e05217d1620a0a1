"""deep_images.py FOLDER CHANNELS: labelled TIFF images of 12 bits in 16, for training and testing. The classes differ in the
brightness of the last channel; the others hold noise."""
import os
import random
import struct
import sys

folder, channels = sys.argv[1], int(sys.argv[2])
width, height = 24, 20


def tiff(samples):
    """Not compressed, samples interleaved: grey with one channel, of no colour with others."""
    end = 8 + 2 + 9 * 12 + 4  # of header and tags
    bits = struct.pack(f"<{max(channels, 2)}H", *[16] * max(channels, 2))
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, end if channels > 2 else 16), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, end + len(bits)), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, 2 * len(samples))]
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4) + bits +
            struct.pack(f"<{len(samples)}H", *samples))


random.seed(1)
for part, images in ("train", 12), ("test", 4):
    for name, middle in ("bright", 3000), ("dark", 1000):
        os.makedirs(os.path.join(folder, part, name))
        for i in range(images):
            samples = [random.randrange(4096) if c + 1 < channels else middle + random.randrange(-500, 500)
                       for _ in range(width * height) for c in range(channels)]
            with open(os.path.join(folder, part, name, f"{i:02}.tif"), "wb") as file:
                file.write(tiff(samples))
