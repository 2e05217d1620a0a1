"""Writes the tar files beside it, with Python's tarfile: python3 make_fixtures.py. Run it only to add a fixture."""
import gzip
import io
import struct
import tarfile
import zlib
from pathlib import Path

here = Path(__file__).parent


def png(width, value):
    """A grey PNG of one value: width and value tell the images apart."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes([value]) * width) * 4
    header = struct.pack(">IIBBBBB", width, 4, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(name, members, form, links=()):
    with tarfile.open(here / name, "w", format=form) as archive:
        for path, content in members:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for path, target in links:
            info = tarfile.TarInfo(path)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


long = "folder/" * 20 + "sample"
write("ustar-000.tar", [("a.png", png(5, 1)), ("a.cls", b"3\n"), ("b.seg.png", png(99, 0)), ("b.png", png(6, 2)),
                        ("b.cls", b"10"), ("__meta__.txt", b"x"), (".hidden.png", png(98, 0))],
      tarfile.USTAR_FORMAT, links=[("link.png", "/etc/passwd")])
write("ustar-001.tar", [("../../up/c.png", png(7, 3)), ("../../up/c.cls", b"0"), ("/absolute/d.v1.png", png(8, 4)),
                        ("/absolute/d.cls", b"\0\1\2\n\n\n"), ("e.cls", b"1")], tarfile.USTAR_FORMAT)
write("gnu.tar", [(long + ".png", png(9, 5)), (long + ".json", b'{"label": "tench"}')], tarfile.GNU_FORMAT)
write("pax.tar", [(long + "-\u00e9.png", png(10, 6)), (long + "-\u00e9.json", b'{"cls": "ray", "caption": "x"}'),
                  ("f.png", png(11, 7)), ("f.json", b"{broken")], tarfile.PAX_FORMAT)
write("n02.tar", [("n02_1.png", png(12, 8)), ("n02_2.png", gzip.compress(png(13, 9), mtime=0))], tarfile.GNU_FORMAT)
write("folders.tar", [("./cat/1.png", png(15, 11)), ("dog/deep/2.png", png(16, 12)), ("3.png", png(17, 13))], tarfile.GNU_FORMAT)
write("n01.tar", [("n01_1.png", png(14, 10))], tarfile.GNU_FORMAT)

whole = (here / "ustar-000.tar").read_bytes()
(here / "truncated.tar").write_bytes(whole[:1024 + 512 + 1])  # in the content of a.cls: a.png is whole
damaged = bytearray(whole)
damaged[1024 + 3] ^= 1  # the name of a.cls no longer has the header's checksum
(here / "checksum.tar").write_bytes(damaged)
