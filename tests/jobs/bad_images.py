"""bad_images.py FOLDER: images that a camera, a scraper or an attacker may leave in a data set. Prints those that must be
refused, one a line; all others can be decoded."""
import os
import struct
import sys
import zlib

here = os.path.dirname(os.path.abspath(__file__))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows=None):
    """A black one with one bit a pixel; with fewer rows than its header says where `rows` is given."""
    compressor = zlib.compressobj(9)
    pixels = b"".join(compressor.compress(bytes(1 + (width + 7) // 8)) for _ in range(height if rows is None else rows))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) +
            chunk(b"IDAT", pixels + compressor.flush()) + chunk(b"IEND", b""))


def sample(name):
    with open(os.path.join(here, "../data/io", name), "rb") as file:
        return file.read()


good = {"cmyk.jpg": sample("cmyk.jpg"), "deep.png": sample("rgb16.png"), "png-named.jpg": sample("rgb.png"),
        "grey.PNG": sample("grey.png"), "one-pixel.png": png(1, 1), "thread.png": png(1, 3000), "large.png": png(12000, 12000)}
refused = {"truncated.jpg": sample("rgb.jpg")[:700], "empty.jpg": b"", "text.jpg": b"404: this picture has moved\n",
           "headless.png": sample("rgb.png")[8:], "absurd.png": png(60000, 60000, 1), "cut-off.png": png(3000, 3000, 1)}
os.makedirs(sys.argv[1])
for name, content in (good | refused).items():
    with open(os.path.join(sys.argv[1], name), "wb") as file:
        file.write(content)
os.symlink("nowhere", os.path.join(sys.argv[1], "dangling.jpg"))
os.makedirs(os.path.join(sys.argv[1], "folder.jpg"))
print("\n".join(sorted([*refused, "dangling.jpg"])))
