"""
The POSTs that wait to be appended: bounded, and a share of each in turn.  Pure: no clock, no store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncplumber.errors import PlumberError, TooManyRequests
from asyncplumber.event import Draft, Stored
from asyncplumber.sending import Receipt

GROUP = 1000  # drafts in one append: more gains nothing and makes the first of them wait
SHARE = 100  # drafts of one POST in a group, while other POSTs wait for a place in it
# Drafts that wait for the store, some 270 bytes and 12 us each beside their payloads: a second of
# work at most.
WAITING_EVENTS = 50_000
WAITING = (
    64 * 1024 * 1024
)  # bytes of payloads that wait for the store; beyond that a POST is told to come back

# What becomes of a POST: a receipt for each of its drafts, or why there is none.
Outcome = list[Receipt] | PlumberError


class Post:
    """The drafts of one POST on their way, and who is told what became of them, once."""

    __slots__ = ("broken", "drafts", "handed", "left", "receipts", "settle", "since", "size")

    def __init__(
        self, drafts: Sequence[Draft], settle: Callable[[Outcome], None], since: float
    ) -> None:
        """`since` is when it came, in seconds of the intake's clock."""
        self.drafts = drafts
        self.handed = 0  # drafts that were handed to the store
        self.left = len(drafts)  # drafts whose receipts are not there yet
        self.receipts: list[
            Receipt | None
        ] = []  # in the order of the drafts, where there are several
        self.broken: PlumberError | None = None  # of the first draft that was not kept
        self.since = since
        self.size = (
            len(drafts[0].payload)
            if len(drafts) == 1
            else sum([len(draft.payload) for draft in drafts])
        )
        self.settle: Callable[[Outcome], None] | None = settle


class Group:
    """
    Drafts that were appended together.  Once they are kept: their results, and how many here got
    each.
    """

    __slots__ = ("given", "pieces", "results", "size")

    def __init__(self) -> None:
        self.pieces: list[
            tuple[Post, int, Sequence[Draft]]
        ] = []  # of a POST, from which draft on, which
        self.size = 0  # bytes of the payloads
        self.results: list[Stored | PlumberError] | None = None
        self.given: list[int] = []  # for each result that is `Stored`


class WaitingPosts:
    """POSTs in the order in which their next drafts are appended."""

    def __init__(self, size_limit: int, events_limit: int) -> None:
        """
        `size_limit` is in bytes of payloads, `events_limit` in drafts; both count what is being
        appended too.
        """
        self._size_limit = size_limit
        self._events_limit = events_limit
        self._posts: list[Post] = []
        self.size = 0
        self._events = 0

    def __len__(self) -> int:
        return len(self._posts)

    def add(self, post: Post) -> None:
        """The last in the row."""
        self._posts.append(post)
        self.size += post.size
        self._events += len(post.drafts)

    def is_full(self, events: int) -> TooManyRequests | None:
        """
        Return the error for a POST of so many events that would come now, None if there is room.

        It costs less than to read what a large POST says, which would be in vain.  Where nothing
        waits, each POST is taken.
        """
        if self.size > self._size_limit or (
            self._events and self._events + events > self._events_limit
        ):
            return TooManyRequests("the store does not keep up with what is posted", retry_after=1)
        return None

    def gather(self) -> tuple[Group, list[Draft]]:
        """
        Take a group out of what waits, a share of each POST in turn.

        A connection has one POST under way at a time.  So nobody waits for the thousands of events
        of another connection.
        """
        group, drafts = Group(), list[Draft]()
        pieces, size, room = group.pieces, 0, GROUP
        while self._posts and room:
            posts, self._posts = self._posts, []
            for at, post in enumerate(posts):
                own = post.drafts
                if not room:
                    # Those that had no turn are the first of the next group.
                    self._posts = posts[at:] + self._posts
                    break
                if post.settle is None:  # it was answered with an error
                    self._drop(post)
                elif len(own) == 1:
                    pieces.append((post, 0, own))
                    drafts.append(own[0])
                    size += post.size
                    room -= 1
                else:
                    begin = post.handed
                    piece = own[begin : begin + min(SHARE, room)]
                    post.handed += len(piece)
                    pieces.append((post, begin, piece))
                    drafts += piece
                    size += sum([len(draft.payload) for draft in piece])
                    room -= len(piece)
                    if post.handed < len(own):
                        self._posts.append(post)
        group.size = size
        return group, drafts

    def _drop(self, post: Post) -> None:
        """What of this POST still waits is not appended."""
        rest = post.drafts[post.handed :]
        post.handed = len(post.drafts)
        self.size -= sum([len(draft.payload) for draft in rest])
        self._events -= len(rest)

    def drop_until(self, moment: float) -> list[Post]:
        """Append no more of the POSTs that came until then, and return them."""
        dropped = [post for post in self._posts if post.since <= moment]
        for post in dropped:
            self._drop(post)
        self._posts = [post for post in self._posts if post.since > moment]
        return dropped

    def appended(self, group: Group, count: int) -> None:
        """The store has answered for this group of so many drafts."""
        self.size -= group.size
        self._events -= count
