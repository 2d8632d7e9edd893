"""NumPy reads the vectors of .npy files, in memory and mapped."""

import numpy
import rows

# The folder has four good pictures. `imagesvc embed` wrote four rows of people.jsonl, and run.py added a fifth.
for name, count in [("folder", 4), ("people", 5)]:
    expected = rows.vectors(rows.read(f"{name}.jsonl"))
    for mmap_mode in [None, "r"]:
        found = numpy.load(f"{name}.npy", mmap_mode=mmap_mode, allow_pickle=False)
        assert found.shape == (count, 1536) and found.dtype.str == "<f4", (found.shape, found.dtype)
        assert found.flags.c_contiguous and found.flags.aligned
        assert rows.same_bits(found, expected), name

# The folder contains the same picture under two names, rocket.jpg and again.jpg.
folder = rows.read("folder.jsonl")
found = numpy.load("folder.npy")
position = {row["path"]: n for n, row in enumerate(folder)}
rocket, again, chelsea = (found[position[f"photos/{name}"]] for name in ["rocket.jpg", "again.jpg", "chelsea.png"])
assert numpy.array_equal(rocket, again) and not numpy.array_equal(rocket, chelsea)
