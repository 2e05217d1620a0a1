"""What the shell tests read the files of a run with."""
import glob  # noqa: F401 (for those who import all of this)
import json
import os
import struct
import xml.etree.ElementTree  # noqa: F401

import h5py


def read(path):
    with open(path) as file:
        return json.load(file)


def lines(path, key):
    """Those lines of a .jsonl file that have the key."""
    with open(path) as file:
        return [line for line in map(json.loads, file) if key in line]


def column(path, key):
    return [line[key] for line in lines(path, key)]


def h5(path):
    return h5py.File(path, "r")


def safetensors(path):
    """The header of a .safetensors file, whose tensors must cover the rest of it without gaps."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        begin = file.tell()
    header.pop("__metadata__", None)
    places = sorted(tensor["data_offsets"] for tensor in header.values())
    assert [begin for begin, _ in places] == [0] + [end for _, end in places[:-1]]
    assert begin + places[-1][1] == os.path.getsize(path)
    return {name: tensor["shape"] for name, tensor in header.items()}

