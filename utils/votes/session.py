"""One annotator's progress through the pairs of a campaign; the panel and the terminal use it."""

from collections import Counter
from collections.abc import Sequence

from utils.course.language import tr
from utils.votes.pairs import Pair, Shown, campaign_name, queue, tidy
from utils.votes.store import Vote, VoteError, VoteStore

# the front ends on the annotator's own machine: each continues what the other began
AT_HAND = ("panel", "terminal")
SIMULATED = "simulated:"  # the name of an annotator that is a rule begins with this
COMMANDS = {"a": "a", "b": "b", "t": "tie", "s": "skip", "u": "undo"}
DEFAULT_RUBRIC = (
    "Đúng là trên hết: câu trả lời sai kiến thức thua câu trả lời đúng, dù viết hay hơn.",
    "Trả lời thẳng vào câu hỏi, đủ ý chính, không lạc đề.",
    "Học sinh phổ thông đọc là hiểu: câu gọn, từ ngữ quen thuộc, ví dụ gần gũi.",
    "Dài hơn không có nghĩa là tốt hơn; đứng bên trái hay bên phải cũng không quan trọng.",
    "Hai câu hay dở như nhau thì chọn “Ngang nhau”; không đủ kiến thức để chấm thì “Bỏ qua”.",
)


def waiting(line: Sequence[Shown], votes: Sequence[Vote]) -> list[Shown]:
    """The part of the queue without a vote."""
    cast = Counter(vote.item for vote in votes)
    left = []
    for screen in line:
        if cast[screen.item]:
            cast[screen.item] -= 1
        else:
            left.append(screen)
    return left


class Session:
    """One annotator's progress through the pairs; all of its state is in the store."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        store: VoteStore,
        annotator: str,
        seed: int = 0,
        repeat_share: float = 0.1,
        source: str = "panel",
        campaign: str = "",
    ) -> None:
        self.store, self.seed, self.source = store, seed, source
        self.annotator = tidy(annotator)
        self.campaign = campaign_name(campaign) if campaign else ""
        # a visitor of an open page may have taken the same name: those votes are not this person's
        self.sources = AT_HAND if source in AT_HAND else (source,)
        self.queue = queue(pairs, seed, repeat_share)
        self.refresh()

    def refresh(self) -> None:
        """Read the annotator's votes from the store again."""
        self.votes = self.store.votes(
            self.annotator, campaign=self.campaign, source=self.sources, status=None
        )
        self.waiting = waiting(self.queue, self.votes)

    @property
    def current(self) -> Shown | None:
        """The pair to judge now; None at the end."""
        return self.waiting[0] if self.waiting else None

    @property
    def done(self) -> int:
        """The number of pairs in the queue that have a vote."""
        return len(self.queue) - len(self.waiting)

    def vote(self, choice: str) -> Vote:
        """Store the choice for the current pair and go on to the next pair."""
        shown = self.current
        if shown is None:
            raise VoteError(tr("Every pair has a vote: nothing is left to judge."))
        self.refresh()
        if self.current != shown:
            raise VoteError(
                tr(
                    "This pair has your vote already, perhaps from another window: here is the "
                    "next one."
                )
            )
        cast = self.store.add(
            Vote(
                **vars(shown),
                choice=choice,
                annotator=self.annotator,
                seed=self.seed,
                source=self.source,
                campaign=self.campaign,
            )
        )
        self.votes.append(cast)
        self.waiting.pop(0)
        return cast

    def undo(self) -> Vote | None:
        """Withdraw the latest vote if it is on one of these pairs; its pair is asked again."""
        self.refresh()
        mine = {screen.item for screen in self.queue}
        if not self.votes or self.votes[-1].item not in mine:
            return None
        withdrawn = self.store.undo(self.annotator, self.campaign, self.sources)
        self.refresh()
        return withdrawn
