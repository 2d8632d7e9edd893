"""Runs the programs of docs/databases.md as pasted, and checks what they find.

The commands of the page make the vectors. The query is a scaled and recompressed copy of one of the
pictures. Each program must print the same rows as `imagesvc nearest`. Programs that are marked as not run
must at least be valid Python.

The argument is the path of the program imagesvc.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/databases.md"

# Replaces `cargo run --` in the page's commands: runs the program that was built before.
CARGO = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift
exec "$PROGRAM" "$@"
"""

# The longest time for a command or a program of the page, in seconds.
TIMEOUT = 120

# The largest difference of two cosines that should be equal. They are printed with four decimals.
TOLERANCE = 0.0002


def blocks():
    """Yields the fenced blocks of the page: the heading above, the language, whether it is run, and the text."""
    pattern = r"^## (?P<heading>[^\n]+)$|^```(?P<language>\w+)(?P<mark> not run here: [^\n]+)?\n(?P<text>.*?)^```$"
    heading = None
    for match in re.finditer(pattern, (ROOT / PAGE).read_text(), re.MULTILINE | re.DOTALL):
        heading = match["heading"] or heading
        if match["language"]:
            yield heading, match["language"], match["mark"] is None, match["text"]


def make_root(folder):
    """Makes a folder like the repository's root, as far as the page's commands need it."""
    (folder / "tests").symlink_to(ROOT / "tests")
    # The query, `image.png`.
    with Image.open(ROOT / "tests/fixtures/chelsea.png") as picture:
        recompressed = io.BytesIO()
        picture.convert("RGB").resize((226, 150)).save(recompressed, "JPEG", quality=60)
    Image.open(recompressed).save(folder / "image.png")
    (folder / "bin").mkdir()
    cargo = folder / "bin/cargo"
    cargo.write_text(CARGO)
    cargo.chmod(0o755)


def run(command, folder, imagesvc):
    """Runs a command, and returns its standard output."""
    path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PROGRAM": imagesvc, "XDG_CACHE_HOME": f"{folder}/.cache"}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if finished.returncode != 0:
        sys.exit(f"{command} failed:\n{finished.stdout}{finished.stderr}")
    return finished.stdout


def rows(printed):
    """The cosines and paths that a program has printed."""
    lines = [line.split("  ", 1) for line in printed.splitlines()]
    return [(float(cosine), path) for cosine, path in lines]


def check(heading, found, expected):
    """Ends the test with an error unless both lists have the same paths, and cosines equal within TOLERANCE."""
    is_equal = [path for _, path in found] == [path for _, path in expected] and all(
        abs(cosine - reference) <= TOLERANCE for (cosine, _), (reference, _) in zip(found, expected)
    )
    if not is_equal:
        sys.exit(f"{heading} has found {found}, but imagesvc nearest finds {expected}")


def main():
    imagesvc = str(Path(sys.argv[1]).resolve())
    counts = {"run": 0, "not run": 0}
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        make_root(folder)
        expected = None
        for heading, language, is_run, text in blocks():
            start = time.monotonic()
            if language == "bash" and is_run:
                run(["bash", "-e", "-c", text], folder, imagesvc)
                nearest = [imagesvc, "nearest", "image.png", "--in", "vectors.jsonl", "--sandbox"]
                expected = rows(run(nearest, folder, imagesvc))
                cosine, path = expected[0]
                # The page's commands copy three pictures to `photos`. The query is a copy of chelsea.png.
                assert path == "photos/chelsea.png" and cosine > 0.98 and len(expected) == 3, expected
            elif language == "python" and is_run:
                check(heading, rows(run([sys.executable, "-c", text], folder, imagesvc)), expected)
                counts["run"] += 1
                print(f"ok  {heading}  {time.monotonic() - start:.1f} s")
            elif language == "python":
                compile(text, heading, "exec")
                counts["not run"] += 1
    # A test in tests/api/commands.rs finds this text, and compares its numbers with the page.
    assert counts == {"run": 5, "not run": 3}, counts
    print("5 passed, 0 failed, 3 skipped")


main()
