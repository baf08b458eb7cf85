"""Google Drive as a folder that SIMULATED_DRIVE names, shared by all simulated machines."""

import os
from pathlib import Path


def mount(path: str) -> None:
    """What Colab shows under /content/drive lies in the shared folder here."""
    from utils.course import colab

    assert path == "/content/drive", path
    colab.DRIVE = Path(os.environ["SIMULATED_DRIVE"], "MyDrive", colab.DRIVE.name)
    colab.DRIVE.parent.mkdir(parents=True, exist_ok=True)
