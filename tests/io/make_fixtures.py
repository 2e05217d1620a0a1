"""Writes tests/data/io: small images and what Pillow (10.4, as the published pipeline's: rows resampled before columns) makes
of them. Needs pillow, libturbojpeg and cjpeg; run it only to add a fixture.

    python3 tests/io/make_fixtures.py tests/data/io
"""
import ctypes
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from PIL import Image

out = Path(sys.argv[1])


def pattern(width, height):
    """Smooth gradients, hard edges and some texture."""
    image = Image.new("RGB", (width, height))
    for y in range(height):
        for x in range(width):
            edge = 255 if (x // 7 + y // 5) % 2 else 0
            image.putpixel((x, y), (x * 255 // width, edge, (x * x + 3 * y * y + x * y) % 256))
    return image


def expect(name):
    """The decoded pixels, as RGB bytes after width and height."""
    with Image.open(out / name) as image:
        rgb = image.convert("RGB")
        (out / (name + ".rgb")).write_bytes(struct.pack("<ii", *rgb.size) + rgb.tobytes())


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(name, width, height, depth, color, scanlines, interlace=0, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    (out / name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra +
                             chunk(b"IDAT", zlib.compress(scanlines, 9)) + chunk(b"IEND", b""))


def write_ycck(name, image):
    turbo = ctypes.CDLL("libturbojpeg.so.0")
    turbo.tjInitCompress.restype = ctypes.c_void_p
    handle, buffer, size = ctypes.c_void_p(turbo.tjInitCompress()), ctypes.c_void_p(), ctypes.c_ulong()
    inks = bytes(255 - v for v in image.convert("CMYK").tobytes())
    assert turbo.tjCompress2(handle, inks, image.width, 0, image.height, 11, ctypes.byref(buffer), ctypes.byref(size), 0, 90,
                             0) == 0
    (out / name).write_bytes(ctypes.string_at(buffer, size.value))


small = pattern(37, 29)
small.save(out / "rgb.jpg", quality=85)
small.save(out / "progressive.jpg", quality=85, progressive=True)
small.convert("L").save(out / "grey.jpg", quality=85)
small.convert("CMYK").save(out / "cmyk.jpg", quality=85)
write_ycck("ycck.jpg", small)
ppm = f"P6 {small.width} {small.height} 255\n".encode() + small.tobytes()
(out / "sampling1x4.jpg").write_bytes(subprocess.run(["cjpeg", "-sample", "1x4"], input=ppm, stdout=subprocess.PIPE,
                                                     check=True).stdout)
small.save(out / "rgb.png")
small.convert("L").save(out / "grey.png")
small.convert("L").convert("1").save(out / "grey1.png")
small.quantize(16).save(out / "palette.png", transparency=3)
rgba = small.copy()
rgba.putalpha(small.convert("L"))
rgba.save(out / "rgba.png")
small.save(out / "lossy.webp", quality=80)
rgba.save(out / "lossless.webp", lossless=True, exact=True)
for name in ("rgb.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "ycck.jpg", "sampling1x4.jpg", "rgb.png", "grey.png", "grey1.png", "palette.png",
             "rgba.png", "lossy.webp", "lossless.webp"):
    expect(name)

# Pillow writes neither of these: 16-bit colour (of which the high byte is kept) and Adam7 interlacing.
rows = b"".join(b"\0" + bytes(v for x in range(37) for c in small.getpixel((x, y)) for v in (c, (x * 7 + y) % 256))
                for y in range(29))
write_png("rgb16.png", 37, 29, 16, 2, rows)
passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
lines = b"".join(b"\0" + bytes(c for x in range(x0, 37, dx) for c in small.getpixel((x, y)))
                 for x0, y0, dx, dy in passes for y in range(y0, 29, dy))
write_png("interlaced.png", 37, 29, 8, 2, lines, interlace=1)

resampled = pattern(61, 47)
resampled.save(out / "source.png")
cases = {"down": (None, (24, 20)), "up": (None, (100, 80)), "mixed": (None, (17, 90)),
         "crop": ((13, 9, 40, 30), (16, 16)), "one": ((5, 6, 6, 7), (4, 3))}
for name, (box, size) in cases.items():
    source = resampled.crop(box) if box else resampled
    result = source.resize(size, Image.BICUBIC)
    (out / f"source_{name}.rgb").write_bytes(struct.pack("<ii", *result.size) + result.tobytes())
