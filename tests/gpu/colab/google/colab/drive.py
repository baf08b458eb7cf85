"""A simulated Google Drive: the folder SIMULATED_DRIVE, shared by all simulated machines."""

import os
from pathlib import Path


def mount(path: str) -> None:
    """Show the shared folder in the role of /content/drive."""
    from utils.course import colab

    assert path == "/content/drive", path
    colab.DRIVE = Path(os.environ["SIMULATED_DRIVE"], "MyDrive", colab.DRIVE.name)
    colab.DRIVE.parent.mkdir(parents=True, exist_ok=True)
