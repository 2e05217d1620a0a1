"""Writes tests/data/io: small images and what Pillow (10.4, as the published pipeline's: rows resampled before columns) makes
of them. Needs pillow, libturbojpeg and cjpeg; run it only to add a fixture.

    python3 tests/io/make_fixtures.py tests/data/io
"""
import ctypes
import gzip
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


def write_tiff(name, pages, order="<", big=False):
    """Each page: its tags (number: (type, values)) without those that say where its blocks lie, and its blocks."""
    sizes = {1: "B", 3: "H", 4: "I", 16: "Q"}
    count, offset, entry, header = ("Q", "Q", 20, 16) if big else ("H", "I", 12, 8)
    magic = {"<": b"II", ">": b"MM"}[order]
    data = magic + (struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8))
    for number, (tags, blocks) in enumerate(pages):
        tiled = 322 in tags
        tags = tags | {324 if tiled else 273: (4, [0] * len(blocks)),
                       325 if tiled else 279: (4, [len(b) for b in blocks])}
        end = len(data) + struct.calcsize(order + count) + entry * len(tags) + struct.calcsize(order + offset)
        long_size = sum(len(v) * struct.calcsize(sizes[t]) for t, v in tags.values()
                        if len(v) * struct.calcsize(sizes[t]) > struct.calcsize(offset))
        at = end + long_size
        tags[324 if tiled else 273] = (4, [at + sum(len(b) for b in blocks[:i]) for i in range(len(blocks))])
        table, outside = struct.pack(order + count, len(tags)), b""
        for tag, (kind, values) in sorted(tags.items()):
            packed = struct.pack(f"{order}{len(values)}{sizes[kind]}", *values)
            table += struct.pack(order + "HH" + offset, tag, kind, len(values))
            if len(packed) > struct.calcsize(offset):
                table += struct.pack(order + offset, end + len(outside))
                outside += packed
            else:
                table += packed.ljust(struct.calcsize(offset), b"\0")
        after = at + sum(len(b) for b in blocks) if number + 1 < len(pages) else 0
        data += table + struct.pack(order + offset, after) + outside + b"".join(blocks)
    (out / name).write_bytes(data)


def write_bmp(name, image, bits, rows, palette=b"", old=False, top_down=False, encoding=0, masks=b""):
    size = 12 if old else 40
    data = b"".join(r + b"\0" * (-len(r) % 4) for r in (rows if top_down else reversed(rows)))
    begin = 14 + size + len(masks) + len(palette)
    header = struct.pack("<2sIHHI", b"BM", begin + len(data), 0, 0, begin)
    if old:
        header += struct.pack("<IHHHH", size, image.width, image.height, 1, bits)
    else:
        header += struct.pack("<IiiHHIIiiII", size, image.width, -image.height if top_down else image.height, 1, bits,
                              encoding, len(data), 2835, 2835, len(palette) // 4, 0)
    (out / name).write_bytes(header + masks + palette + data)


def same(name, reference, mode="RGB"):
    """Pillow reads the file as the pixels of another fixture: tests compare with those."""
    with Image.open(out / name) as image, Image.open(out / reference) as wanted:
        assert image.convert(mode).tobytes() == wanted.convert(mode).tobytes(), name


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
(out / "rgb.png.gz").write_bytes(gzip.compress((out / "rgb.png").read_bytes(), mtime=0))
small.convert("L").save(out / "grey.png")
small.convert("L").convert("1").save(out / "grey1.png")
small.quantize(16).save(out / "palette.png", transparency=3)
rgba = small.copy()
rgba.putalpha(small.convert("L"))
rgba.save(out / "rgba.png")
grey_alpha = small.convert("L").convert("LA")
grey_alpha.putalpha(small.getchannel(0))
grey_alpha.save(out / "grey_alpha.png")
small.save(out / "lossy.webp", quality=80)
rgba.save(out / "lossless.webp", lossless=True, exact=True)
for name in ("rgb.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "ycck.jpg", "sampling1x4.jpg", "rgb.png", "grey.png", "grey1.png", "palette.png",
             "rgba.png", "lossy.webp", "lossless.webp"):
    expect(name)

# Pillow writes neither of these: 16-bit colour (of which the high byte is kept) and Adam7 interlacing.
rows = b"".join(b"\0" + bytes(v for x in range(37) for c in small.getpixel((x, y)) for v in (c, (x * 7 + y) % 256))
                for y in range(29))
write_png("rgb16.png", 37, 29, 16, 2, rows)
# A text of 7.5 MB in one chunk, for a test that repeats the chunk.
write_png("text_bomb.png", 1, 1, 8, 0, b"\0\7", extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(b"t" * 7500000, 9)))
passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
lines = b"".join(b"\0" + bytes(c for x in range(x0, 37, dx) for c in small.getpixel((x, y)))
                 for x0, y0, dx, dy in passes for y in range(y0, 29, dy))
write_png("interlaced.png", 37, 29, 8, 2, lines, interlace=1)

# TIFF: some by Pillow, and what it does not write.
grey = small.convert("L")
palette = small.quantize(16)
small.save(out / "lzw.tif", compression="tiff_lzw", tiffinfo={317: 2})
small.save(out / "jpeg.tif", compression="jpeg", quality=85)
grey.save(out / "deflate_grey.tif", compression="tiff_adobe_deflate")
palette.save(out / "packbits_palette.tif", compression="packbits")
small.convert("CMYK").save(out / "cmyk.tif")
for name, reference in (("lzw.tif", "rgb.png"), ("deflate_grey.tif", "grey.png"),
                        ("packbits_palette.tif", "palette.png")):
    same(name, reference)
for name in ("jpeg.tif", "cmyk.tif"):
    expect(name)
small.save(out / "pages.tif", save_all=True, append_images=[grey])
grey.convert("1").save(out / "one_bit.tif")
grey.convert("F").save(out / "float.tif")


def tags(samples, bits, photometric, **more):
    return {256: (4, [37]), 257: (4, [29]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric]),
            277: (3, [samples])} | {int(k[1:]): v for k, v in more.items()}


def samples16(x, y):
    return [c << 8 | (x * 7 + y) % 256 for c in small.getpixel((x, y))]


flat = small.tobytes()
dark = bytes(255 - v for v in grey.tobytes())
write_tiff("min_is_white.tif", [(tags(1, 8, 0, _278=(4, [5])), [dark[y * 37:(y + 5) * 37] for y in range(0, 29, 5)])])
same("min_is_white.tif", "grey.png")
# A Zstandard frame of one segment that holds its bytes as they are.
raw = struct.pack("<IBH", 0xFD2FB528, 0x60, len(flat) - 256) + struct.pack("<I", 1 | len(flat) << 3)[:3] + flat
write_tiff("zstd.tif", [(tags(3, 8, 2) | {259: (3, [50000])}, [raw])])
infrared = b"".join(flat[3 * i:3 * i + 3] + dark[i:i + 1] for i in range(37 * 29))
write_tiff("infrared.tif", [(tags(4, 8, 2, _338=(3, [0])), [infrared])])
# Five channels in a BigTIFF, one after the other: the colours, darkness, and grey.
planes = [flat[c::3] for c in range(3)] + [dark, grey.tobytes()]
write_tiff("channels5.tif", [(tags(5, 8, 1, _284=(3, [2]), _278=(4, [10])),
                              [p[y * 37:(y + 10) * 37] for p in planes for y in range(0, 29, 10)])], big=True)
# The samples of rgb16.png, big-endian, in tiles: interleaved, and plane by plane.
def tile(left, top, channels):
    values = [samples16(min(x, 36), min(y, 28))[c]
              for y in range(top, top + 16) for x in range(left, left + 16) for c in channels]
    return struct.pack(f">{len(values)}H", *values)


corners = [(x, y) for y in range(0, 29, 16) for x in range(0, 37, 16)]
sides = {"_322": (4, [16]), "_323": (4, [16])}
write_tiff("tiles16.tif", [(tags(3, 16, 2, **sides), [tile(x, y, (0, 1, 2)) for x, y in corners])], order=">")
write_tiff("planes16.tif", [(tags(3, 16, 2, _284=(3, [2]), **sides),
                             [tile(x, y, (c,)) for c in range(3) for x, y in corners])], order=">")
# A map with a smaller copy of itself.
half = small.resize((18, 14))
write_tiff("overview.tif", [(tags(3, 8, 2), [flat]),
                            (tags(3, 8, 2, _254=(4, [1])) | {256: (4, [18]), 257: (4, [14])}, [half.tobytes()])])
same("overview.tif", "rgb.png")

small.save(out / "rgb.bmp")
rgba.save(out / "rgb32.bmp")
palette.save(out / "palette8.bmp")
grey.convert("1").save(out / "grey1.bmp")
bgr = [bytes(v for x in range(37) for v in reversed(small.getpixel((x, y)))) for y in range(29)]
write_bmp("top_down.bmp", small, 24, bgr, top_down=True)
write_bmp("old.bmp", small, 24, bgr, old=True)
bgrx = [b"".join(r[3 * x:3 * x + 3] + b"\xff" for x in range(37)) for r in bgr]
write_bmp("masks.bmp", small, 32, bgrx, encoding=3, masks=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF))
index = palette.load()
nibbles = [bytes(index[x, y] << 4 | (index[x + 1, y] if x < 36 else 0) for x in range(0, 37, 2)) for y in range(29)]
colours = palette.getpalette()
entries = b"".join(bytes([*reversed(colours[3 * i:3 * i + 3]), 0]) for i in range(len(colours) // 3))
write_bmp("palette4.bmp", small, 4, nibbles, palette=entries)
write_bmp("run_length.bmp", small, 8, [bytes([37, 1, 0, 0])] * 29, palette=entries, encoding=1)
for name, reference in (("rgb.bmp", "rgb.png"), ("rgb32.bmp", "rgb.png"), ("top_down.bmp", "rgb.png"),
                        ("old.bmp", "rgb.png"), ("masks.bmp", "rgb.png"), ("palette8.bmp", "palette.png"),
                        ("palette4.bmp", "palette.png"), ("grey1.bmp", "grey1.png")):
    same(name, reference)

small.save(out / "p6.ppm")
grey.save(out / "p5.pgm")
grey.convert("1").save(out / "p4.pbm")
(out / "p3.ppm").write_text("P3 # colours\n37 29\n# their white:\n255\n" + "\n".join(map(str, flat)))
(out / "p2.pgm").write_text("P2\n37 29 15\n" + " ".join(str(v >> 4) for v in grey.tobytes()) + "\n")
(out / "p1.pbm").write_text("P1\n37 29\n" + "\n".join("".join("0" if grey.convert("1").getpixel((x, y)) else "1"
                                                             for x in range(37)) for y in range(29)) + "\n")
wide = [v for y in range(29) for x in range(37) for v in samples16(x, y)]
(out / "p6_16.ppm").write_bytes(b"P6\n37 29\n65535\n" + struct.pack(f">{len(wide)}H", *wide))
for name, reference in (("p6.ppm", "rgb.png"), ("p3.ppm", "rgb.png"), ("p5.pgm", "grey.png"), ("p4.pbm", "grey1.png"),
                        ("p1.pbm", "grey1.png")):
    same(name, reference)
expect("p2.pgm")

resampled = pattern(61, 47)
resampled.save(out / "source.png")
cases = {"down": (None, (24, 20)), "up": (None, (100, 80)), "mixed": (None, (17, 90)),
         "crop": ((13, 9, 40, 30), (16, 16)), "one": ((5, 6, 6, 7), (4, 3))}
for name, (box, size) in cases.items():
    source = resampled.crop(box) if box else resampled
    result = source.resize(size, Image.BICUBIC)
    (out / f"source_{name}.rgb").write_bytes(struct.pack("<ii", *result.size) + result.tobytes())
