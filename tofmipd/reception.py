"""One message as it comes in: line ends, size, and where its octets are kept."""

from __future__ import annotations

from typing import Protocol

from tofmipd.content import Content
from tofmipd.smtp import replies
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.stream import ChunkReader, LoneDots, MessageReader, NewlineFixer, Stuffer


class _Stage(Protocol):
    """Changes octets on their way, block by block."""

    def feed(self, block: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class Reception:
    """What a reader finds goes to ``content``, in wire form.

    ``fix`` mends bare line ends, which are refused otherwise.  ``failure`` is why the content
    could not be written, if so.
    """

    def __init__(self, limit_octets: int, *, fix: bool) -> None:
        self.content = Content()
        self.failure: OSError | None = None
        self._limit = limit_octets
        self._fix = fix
        self._stages: list[_Stage] = [NewlineFixer()] if fix else []
        self._reader: MessageReader | ChunkReader | None = None

    def whole(self) -> MessageReader:
        """The reader for what follows DATA."""
        if self._fix:
            self._stages.append(LoneDots())
        reader = self._reader = MessageReader(self._keep, self._limit)
        return reader

    def chunk(self, octets: int) -> ChunkReader:
        """The reader for the next chunk, which has so many octets."""
        if not isinstance(self._reader, ChunkReader):
            self._stages.append(Stuffer())
            self._reader = ChunkReader(self._keep)
        self._reader.expect(octets)
        return self._reader

    def chunk_problem(self) -> Reply | None:
        """Why no more chunks are wanted, if so."""
        return replies.NO_ROOM if self.failure is not None else None

    def finish(self) -> Reply | None:
        """The message is complete; what is wrong with it, if anything."""
        for number, stage in enumerate(self._stages):
            self._pass_on(stage.finish(), number + 1)
        reader = self._reader
        assert reader is not None
        if self.failure is not None:
            return replies.NO_ROOM
        if isinstance(reader, MessageReader) and reader.too_big:
            return replies.MESSAGE_TOO_BIG
        if reader.bare_newline and not self._fix:
            return replies.BARE_NEWLINE
        return None

    def close(self) -> None:
        self.content.close()

    def _keep(self, block: bytes) -> None:
        self._pass_on(block, 0)

    def _pass_on(self, block: bytes, first: int) -> None:
        for stage in self._stages[first:]:
            block = stage.feed(block)
        if not block or self.failure is not None:
            return
        try:
            self.content.write(block)
        except OSError as error:
            self.failure = error


def discard(octets: int) -> ChunkReader:
    """A reader for a chunk of so many octets that nobody wants."""
    reader = ChunkReader(lambda block: None)
    reader.expect(octets)
    return reader
