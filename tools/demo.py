"""Serve the web demo with the models that the notebooks of this profile have saved."""

import argparse
import logging
import os
import secrets
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course import artifacts, profiles
from utils.course.errors import CourseError


def main() -> None:
    """Build the page, print its address, and serve it until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 allows access from other machines, with a password that is printed",
    )
    parser.add_argument("--port", type=int, help="default: the first free port from 7860")
    parser.add_argument(
        "--share",
        action="store_true",
        help="a public link through gradio's tunnel, with a password that is printed",
    )
    arguments = parser.parse_args()
    profile = profiles.choose()
    if profile.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # hides its CPU warnings
    import transformers

    from utils.show import demo

    transformers.logging.disable_progress_bar()
    page = demo.build(artifacts.shelf(profile.name))
    where = {"host": arguments.host, "port": arguments.port, "share": arguments.share}
    auth = None
    if arguments.share or arguments.host not in demo.LOOPBACK:
        auth = "demo", secrets.token_urlsafe(12)  # new at every start
    try:
        address = demo.launch(page, **where, auth=auth)
    except OSError:
        port = arguments.port or "7860-7959"
        sys.exit(f"The demo cannot listen on {arguments.host}:{port}: choose another --port.")
    print(f"The demo of profile {profile.name} is at {address} (Ctrl-C stops it).", flush=True)
    if auth:
        print(f"User name: {auth[0]} · password: {auth[1]}", flush=True)
    try:
        while True:
            time.sleep(0.5)  # on Windows Ctrl-C cannot end a wait without a limit
    except KeyboardInterrupt:
        page.close(verbose=False)


if __name__ == "__main__":
    try:
        main()
    except CourseError as error:
        sys.exit(str(error))
