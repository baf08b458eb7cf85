"""Files that are written completely or not at all, and their way to the user's own machine."""

import os
import tempfile
from pathlib import Path


def offer_download(path: str | Path) -> object:
    """On Colab, the browser downloads the file; elsewhere, a link for the cell's last line."""
    path = Path(path)
    try:
        from google.colab import files
    except ImportError:
        from IPython.display import FileLink

        return FileLink(os.path.relpath(path))
    return files.download(str(path))


def write_whole(path: str | Path, text: str, mode: int = 0o644) -> None:
    """Write a UTF-8 file; if the run is killed, the previous file stays complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(new, mode)  # mkstemp's files are for their owner only
        os.replace(new, path)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise
