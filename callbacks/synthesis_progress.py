"""Progress of synthesis: a line now and then, with rates, and what a target would cost."""

import time


class SynthesisProgress:
    """Shows spans and speech ids per second.

    Args:
        title: in front, such as "rank 3 of 8".
        target_ids: speech ids that are wanted in all, for the estimate; 0 gives none.
        every_sec: seconds between lines.
    """

    def __init__(self, title: str = "", target_ids: float = 0.0, every_sec: float = 10.0) -> None:
        self.title, self.target_ids, self.every_sec = title, target_ids, every_sec
        self.spans = self.ids = self.shards = self.kept = self.documents = 0
        self._began = self._said = time.monotonic()

    def spoke(self, spans: int, ids: int) -> None:
        """So many more spans came back."""
        self.spans += spans
        self.ids += ids
        if time.monotonic() - self._said >= self.every_sec:
            self._said = time.monotonic()
            print(self, flush=True)

    def shard_done(self, documents: int, kept: bool) -> None:
        """A shard is there."""
        self.kept += kept
        self.shards += not kept
        self.documents += 0 if kept else documents

    def cost(self) -> str:
        """How long one such process would need for the target."""
        if not self.target_ids or not self.ids:
            return ""
        hours = self.target_ids * (time.monotonic() - self._began) / self.ids / 3600
        return f", {self.target_ids:.3g} ids would take {hours:.3g} h of a process like this one"

    def __str__(self) -> str:
        elapsed = max(1e-9, time.monotonic() - self._began)
        kept = f" (and {self.kept} that were there)" if self.kept else ""
        title = self.title + "  " if self.title else ""
        return (
            f"{title}{self.shards} shards{kept}, {self.documents} documents, {self.spans} spans, {self.spans / elapsed:.1f}/s, "
            f"{self.ids} speech ids, {self.ids / elapsed:.0f}/s{self.cost()}"
        )
