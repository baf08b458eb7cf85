"""Vote in a terminal on the pairs of a campaign, exchange pairs, or accept votes that wait."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.errors import CourseError
from utils.course.session import SEED
from utils.votes import label_in_terminal, open_store, read_pairs, write_pairs
from utils.votes.pairs import campaign_name
from utils.votes.schema import ACCEPTED, DEMO, PROMPTS, QUARANTINED, REFUSED, WAITING
from utils.votes.store import VoteStore
from utils.votes.terminal import CONTROL

DECISIONS = {"accept": ACCEPTED, "refuse": REFUSED}  # option -> the votes' status


def options() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python tools/run.py label")
    parser.add_argument("--name", default="", help="your name; it is asked for if it is missing")
    parser.add_argument("--campaign", default="", help="default: the latest one in the store")
    parser.add_argument("--import", dest="read", metavar="FILE", help="add the pairs of this file")
    parser.add_argument("--export", metavar="FILE", help="write the pairs to a file, and stop")
    parser.add_argument("--list", action="store_true", help="list the campaigns, and stop")
    for status in DECISIONS:
        parser.add_argument(
            f"--{status}",
            metavar="CAMPAIGN",
            help=f"{status} its votes from the demo and the class page, and stop; the demo's "
            f"campaign is {DEMO}; with --name, only the votes of this visitor",
        )
    return parser.parse_args()


def chosen(store: VoteStore, wanted: str) -> str:
    """The campaign to vote on; an error if none has pairs."""
    names = [campaign.name for campaign in store.campaigns() if campaign.pairs]
    if not names:
        raise CourseError(
            f"{store} has no pairs to vote on: run notebook 07, or add a file with --import FILE."
        )
    return pick(names, wanted)


def pick(names: Sequence[str], wanted: str) -> str:
    """The wanted one of these campaigns; by default the latest one that is no class's prompts."""
    own = [name for name in names if not name.endswith(PROMPTS)]
    name = campaign_name(wanted) if wanted else (own or names)[-1]
    if name not in names:
        raise CourseError(f"There is no campaign {name!r}: use one of {', '.join(names)}.")
    return name


def decide(store: VoteStore, status: str, campaign: str, name: str) -> None:
    """Print the votes of a campaign that wait, and accept or refuse them."""
    campaign = campaign_name(campaign)
    votes = store.votes(campaign=campaign, source=QUARANTINED, status=None)
    if not votes:
        raise CourseError(f"Campaign {campaign!r} has no vote from the demo or the class page.")
    for vote in votes:
        if vote.status == WAITING and name in ("", vote.annotator):
            print(CONTROL.sub("", f"{vote.annotator}: {vote.choice} · {vote.question}"))
    changed = store.decide(status, campaign, annotators=[name] if name else None)
    print(f"{changed} votes of {campaign} {status}")


def main() -> None:
    """Import, list, export, accept or refuse, or ask for votes."""
    arguments = options()
    store, wanted = open_store(), arguments.campaign
    for option, status in DECISIONS.items():
        if campaign := getattr(arguments, option):
            return decide(store, status, campaign, arguments.name)
    if arguments.read:
        name, pairs = read_pairs(arguments.read)
        wanted = wanted or name
        print(f"{wanted}: {len(store.add_pairs(wanted, pairs))} pairs")
    if arguments.list:
        for each in store.campaigns():
            print(f"{each.name}: {each.pairs} pairs, {each.votes} votes, made {each.made_at[:10]}")
        return
    name = chosen(store, wanted)
    if arguments.export:
        print(f"{write_pairs(arguments.export, name, store.pairs(name))} pairs of {name} written")
        return
    print(f"{name} · {store}")
    # the seed of notebook 07, so that its panel goes on with the same screens
    label_in_terminal(store.pairs(name), store, arguments.name, SEED, campaign=name)


if __name__ == "__main__":
    try:
        main()
    except CourseError as error:
        sys.exit(str(error))
