"""The POSTs that wait to be appended: bounded, and a share of each in turn.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncplumber.errors import PlumberError, TooManyRequests
from asyncplumber.event import Draft, Stored
from asyncplumber.sending import Receipt

MAX_GROUP = 1000  # drafts in one append: more gains nothing and makes the first of them wait
FAIR_SHARE = 100  # drafts of one POST in a group, while other POSTs wait for a place in it
# Drafts that wait for the store.  Each costs some 270 bytes beside its payload, and 12 µs: together
# a second of work at most.
MAX_WAITING_EVENTS = 50_000
MAX_WAITING_BYTES = 64 * 1024 * 1024  # of payloads that wait for the store

# What a POST is answered with: a receipt for each of its drafts, or an error.
Outcome = list[Receipt] | PlumberError


class Post:
    """The drafts of one POST on their way to the store and back."""

    __slots__ = ("drafts", "settle", "since", "size")

    def __init__(
        self, drafts: Sequence[Draft], settle: Callable[[Outcome], None], since: float
    ) -> None:
        """
        Args:
            drafts: One draft; for several there is `LargePost`.
            settle: Called once with the outcome.
            since: When the POST came, in seconds of the intake's clock.
        """
        self.drafts = drafts
        self.settle: Callable[[Outcome], None] | None = settle  # None: the POST is answered
        self.since = since
        self.size = len(drafts[0].payload)  # bytes


class LargePost(Post):
    """A POST of several drafts, which may be appended in pieces."""

    __slots__ = ("broken", "handed", "left", "receipts")

    def __init__(
        self, drafts: Sequence[Draft], settle: Callable[[Outcome], None], since: float
    ) -> None:
        super().__init__(drafts, settle, since)
        self.size = sum([len(draft.payload) for draft in drafts])
        self.handed = 0  # drafts that were handed to the store
        self.left = len(drafts)  # drafts without a receipt
        # In the order of the drafts; None until the first of several pieces is answered.
        self.receipts: list[Receipt | None] | None = None
        self.broken: PlumberError | None = None  # of the first draft that was not kept


class Group:
    """Drafts that are appended together, and the answers of the store and the hub."""

    __slots__ = ("began", "count", "delivered", "given", "pieces", "results", "size")

    def __init__(
        self, pieces: list[tuple[Post, int, Sequence[Draft]]], count: int, size: int
    ) -> None:
        """
        Args:
            pieces: A POST, the number of its first draft in this group, its drafts in this group.
            count: The number of drafts.
            size: The bytes of their payloads.
        """
        self.pieces = pieces
        self.count = count
        self.size = size
        self.results: list[Stored | PlumberError] | None = None  # None: the store has not answered
        self.given: Sequence[int] = ()  # subscribers here, for each result that is `Stored`
        # When it was handed to the store, and to the hub, in seconds of the intake's clock.
        self.began = self.delivered = 0.0


class WaitingPosts:
    """POSTs in the order in which their next drafts are appended."""

    def __init__(self, max_bytes: int, max_events: int) -> None:
        """
        Args:
            max_bytes: Bytes of payloads that may wait; what is being appended counts.
            max_events: The same in drafts.
        """
        self._max_bytes = max_bytes
        self._max_events = max_events
        self._posts: list[Post] = []
        self._bytes = 0
        self._events = 0

    def __len__(self) -> int:
        return len(self._posts)

    def add(self, post: Post) -> None:
        """Put a POST at the end of the queue."""
        self._posts.append(post)
        self._bytes += post.size
        self._events += len(post.drafts)

    def is_full(self, events: int) -> TooManyRequests | None:
        """
        Return the error for a POST of so many events that would come now, None if there is room.

        Asking costs less than parsing a large POST that would be refused.  Where nothing waits,
        a POST of any size is taken.
        """
        if self._bytes > self._max_bytes or (
            self._events and self._events + events > self._max_events
        ):
            return TooManyRequests("the store does not keep up with what is posted", retry_after=1)
        return None

    def gather(self) -> tuple[Group, list[Draft]]:
        """
        Take the next group out of the queue, and return its drafts as well.

        Each POST has a fair share.  A connection has one POST under way at a time, so no connection
        waits for the thousands of events of another one.
        """
        pieces: list[tuple[Post, int, Sequence[Draft]]] = []
        drafts: list[Draft] = []
        size, room = 0, MAX_GROUP
        while self._posts and room:
            posts, self._posts = self._posts, []
            for post in posts:
                if not room:
                    # The POSTs that had no turn are the first of the next group.
                    self._posts = posts[posts.index(post) :] + self._posts
                    break
                if post.settle is None:  # it was answered with an error
                    self._drop(post)
                elif not isinstance(post, LargePost):
                    pieces.append((post, 0, post.drafts))
                    drafts += post.drafts
                    size += post.size
                    room -= 1
                else:
                    begin = post.handed
                    piece = post.drafts[begin : begin + min(FAIR_SHARE, room)]
                    post.handed += len(piece)
                    pieces.append((post, begin, piece))
                    drafts += piece
                    size += sum([len(draft.payload) for draft in piece])
                    room -= len(piece)
                    if post.handed < len(post.drafts):
                        self._posts.append(post)
        return Group(pieces, len(drafts), size), drafts

    def _drop(self, post: Post) -> None:
        """Append no more of this POST."""
        rest = post.drafts
        if isinstance(post, LargePost):
            rest = rest[post.handed :]
            post.handed = len(post.drafts)
        self._bytes -= sum([len(draft.payload) for draft in rest])
        self._events -= len(rest)

    def drop_until(self, moment: float) -> list[Post]:
        """Append no more of the POSTs that came until then, and return them."""
        dropped = [post for post in self._posts if post.since <= moment]
        for post in dropped:
            self._drop(post)
        self._posts = [post for post in self._posts if post.since > moment]
        return dropped

    def appended(self, group: Group) -> None:
        """Make room: the store has answered for this group."""
        self._bytes -= group.size
        self._events -= group.count
