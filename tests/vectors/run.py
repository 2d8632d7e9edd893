"""Makes files of vectors with imagesvc, and runs the programs `with_*.py` of this folder, which read them.

Arguments: the names of the programs to run. Without arguments, all of them run."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
IMAGESVC = Path(os.environ.get("IMAGESVC_BINARY", ROOT / "target/debug/imagesvc"))

# The time limit of each process, in seconds.
TIMEOUT = 120

# The lines of list.jsonl. The Parquet columns must contain numbers and nested values as they are written
# here. "name" and "Name" are two columns. If a line contains a field twice, like "n", its last value counts.
PEOPLE = [
    r'{"name": "Ada \"the first\"", "path": "photos/rocket.jpg", "n": 12345678901234567890.10}',
    r'{"name": "Gr\u00fc\u00dfe, 世界 \ud83d\ude80", "path": "photos/chelsea.png", "n": -1E-7, "ok": true}',
    r'{"path": "photos/hubble_deep_field.jpg", "name": null, "tags": {"a": [1.0, null , "x"]}, "Name": "upper"}',
    r'{"name": "", "path": "photos/again.jpg", "n": "1", "n": "last", "a.b": "dot", "line": "1\n2\t3\\"}',
]

# Numbers for the beginning of a vector. The first is rounded wrongly if it is rounded twice. Some others are
# very large or very small.
HARD_NUMBERS = ["1.0000000596046447753906250000000001", "-0.0", "1e-45", "3.4028234e38", "1E-60", "0.1"]


def make_files(folder):
    """Makes folder.* from a folder of pictures, and people.* from a list."""
    photos = folder / "photos"
    photos.mkdir()
    for name in ["rocket.jpg", "chelsea.png", "hubble_deep_field.jpg"]:
        shutil.copy(ROOT / "tests/fixtures" / name, photos)
    shutil.copy(photos / "rocket.jpg", photos / "again.jpg")  # the same picture under two names
    (photos / "broken.jpg").write_text("no picture")  # this picture fails, so the exit code is 1
    (folder / "list.jsonl").write_text("\n".join(PEOPLE) + "\n")

    # The first command writes the rows to folder.jsonl. Both files are made from these rows.
    embed(folder, "photos", "--out", "folder.parquet", code=1)
    embed(folder, "photos", "--out", "folder.npy", code=1)
    embed(folder, "list.jsonl", "--out", "people.jsonl")
    with open(folder / "people.jsonl", "a") as rows:
        rows.write(hard_row((folder / "people.jsonl").read_text().splitlines()[0]) + "\n")
    # These files are made from all rows of people.jsonl, also from the added one. No picture is sent, because
    # each already has a row.
    embed(folder, "list.jsonl", "--out", "people.parquet")
    embed(folder, "list.jsonl", "--out", "people.npy")


def hard_row(row):
    """A row with HARD_NUMBERS in place of the first numbers of another row."""
    before, numbers = row.removesuffix("]}").split('"vector":[')
    numbers = HARD_NUMBERS + numbers.split(",")[len(HARD_NUMBERS) :]
    path = json.dumps(json.loads(row)["path"])
    return before.replace(path, '"photos/hard.jpg"') + '"vector":[' + ",".join(numbers) + "]}"


def embed(folder, *arguments, code=0):
    """Runs `imagesvc embed`, which must end with this exit code."""
    env = {"IMAGESVC_MIN_FREE_BYTES": "0", "XDG_CACHE_HOME": str(folder / "cache")}
    command = [IMAGESVC, "embed", "--sandbox", *arguments]
    result = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == code, (arguments, result.returncode, result.stderr)


def run(program, files_folder):
    """Runs a program in a copy of `files_folder`. Returns whether it succeeded."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(files_folder, folder, dirs_exist_ok=True)
        env = os.environ | {"PYTHONPATH": str(FOLDER), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            subprocess.run([sys.executable, FOLDER / program], cwd=folder, env=env, timeout=TIMEOUT, check=True)
            is_ok = True
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(error, file=sys.stderr)
            is_ok = False
    print(f"{'ok' if is_ok else 'FAILED'}  {program}  {round((time.monotonic() - start) * 1000)} ms", flush=True)
    return is_ok


def main():
    programs = sys.argv[1:] or sorted(path.name for path in FOLDER.glob("with_*.py"))
    assert programs, "there are no programs"
    with tempfile.TemporaryDirectory() as files_folder:
        make_files(Path(files_folder))
        results = [run(program, files_folder) for program in programs]
    sys.exit(0 if all(results) else 1)


main()
