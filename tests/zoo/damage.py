"""What tests of weights share: one line of an error, and a pickle with code."""

import os


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)
