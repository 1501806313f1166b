"""The picture of README: a stimulus and what several runs made of it, with names.

    python benchmarks/picture.py demo.gif demo=robust standard=standard

Each RUN=NAME is a run's folder and the words below which its first video plays.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from leaps_jax import render
from leaps_jax.model import FPS
from leaps_jax.runs import contact_sheet


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="RUN=NAME")
    options = parser.parse_args()
    names, videos = [], []
    for text in options.runs:
        folder, _, name = text.partition("=")
        record = json.loads((Path(folder) / "run.json").read_text())
        arrays = np.load(Path(folder) / "videos.npz")
        if not names:
            names.append(f"stimulus: {record['classes'][0]}")
            videos.append(arrays["stimuli"][0])
        names.append(name)
        videos.append(arrays["videos"][0])
    size = max(video.shape[1] for video in videos)
    large = [video.repeat(size // video.shape[1], 1) for video in videos]
    large = [video.repeat(size // video.shape[2], 2) for video in large]
    pictures = (np.stack(large) * 255).round().astype(np.uint8)
    pictures = pictures.repeat(2, 2).repeat(2, 3)
    shown = contact_sheet.captioned(names, pictures, columns=len(names))
    render.write_video(options.out, shown, FPS / record["settings"]["stride"])


if __name__ == "__main__":
    main()
