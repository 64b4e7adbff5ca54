"""Textbook figures with captions that people wrote: what rules ask of them, judged by reading."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

from stages.conversations.conversations import KINDS
from stages.conversations.filters import judged
from stages.conversations.templates import turns_of


def test_every_figure_gets_a_description_and_many_a_question(shared_data: Path) -> None:
    lines = (shared_data / "openstax_ccby" / "manifest.jsonl").read_text().splitlines()
    kinds: Counter[str] = Counter()
    asked = 0
    for line in lines:
        entry = json.loads(line)
        captions = [{"caption_id": str(place), "text": text} for place, text in enumerate(entry["captions"])]
        turns = turns_of(captions, [], Random(entry["file"]), KINDS)
        verdicts = list(judged(turns, entry["captions"], [], grounded=0.6, longest=2000))
        kept = [turn for turn, verdict in zip(turns, verdicts, strict=True) if verdict == "kept"]
        assert "ungrounded" not in verdicts, "rules say nothing that no caption says"
        assert "description" in {turn.kind for turn in kept} or "too_long" in verdicts
        kinds.update(turn.kind for turn in kept)
        asked += len(kept) > 1
    assert asked > len(lines) / 3
    assert kinds["count"] > 100
    assert kinds["colour"] + kinds["question"] > 60, "of a colour, or of what has it"
    assert kinds["colour"] > 25
    assert kinds["medium"] > 280, "what kind of picture it is"
