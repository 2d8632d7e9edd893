"""Checks an answer of a route for single pictures."""

import math
import re


def check(status, headers, answer):
    """Returns the answer, which must be a success."""
    assert status == 200, (status, answer)
    vector = answer["vector"]
    assert len(vector) == 1536 and all(math.isfinite(number) for number in vector), len(vector)
    assert re.fullmatch(r"[0-9a-f-]{36}\.(jpg|png)", answer["saved_as"]), answer["saved_as"]
    assert answer["path"] == "downloads/" + answer["saved_as"]
    assert headers["x-request-id"] and headers["x-cache"] in ("hit", "miss"), headers
    return answer
