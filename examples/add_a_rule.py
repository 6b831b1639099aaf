"""Filter sentence pairs by the engine's rules and by a rule of your own. Writes JSON Lines for a stream's `pairs`.

python examples/add_a_rule.py [PAIRS] [OUT]

The rules of `clean.pair_rules` are part of the package, so that the fingerprint of a stream names all that decides its
bytes. A rule of your own runs before the build: name the file that this program writes in your YAML,

    streams:
      en-zh: {pairs: [runs/examples/filtered.jsonl], directions: [en-zh]}

The build identifies the file by its content, so it notices when a changed rule gives other pairs. To add a rule to the
package instead, see the comment above `_PAIR_CHECKS` in dataengine/cleaning/rules/pairs.py.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from dataengine.cleaning.rules.pairs import PAIR_RULES, check_pairs
from dataengine.cleaning.rules.settings import PairRules
from dataengine.records.parts import whole_file
from dataengine.records.read import read_records
from dataengine.records.types import RecordFormat

PAIRS, OUT = "demo/data/en-zh.train.jsonl.zst", "runs/examples/filtered.jsonl"
BRACKETS = str.maketrans("（）【】", "()[]")


def drops(english: str, chinese: str) -> bool:
    """A rule of one's own: the sides have different numbers of brackets."""
    return any(english.count(mark) != chinese.translate(BRACKETS).count(mark) for mark in "()[]")


def main(pairs: str, out: Path) -> Counter[str]:
    """Write the pairs that stay to `out`; return how many pairs each rule drops, and how many stay."""
    counts: Counter[str] = Counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for records in read_records(whole_file(pairs), RecordFormat(("en", "zh"), one_line=True)):
            counts["unusable"] += len(records.rejects)
            reasons = check_pairs(*records.texts, ("en", "zh"), PairRules(max_length_ratio=4))
            for english, chinese, reason in zip(*records.texts, reasons.tolist(), strict=True):
                rule = PAIR_RULES[reason - 1] if reason else "own rule" if drops(english, chinese) else "kept"
                counts[rule] += 1
                if rule == "kept":
                    file.write(json.dumps({"en": english, "zh": chinese}, ensure_ascii=False) + "\n")
    return counts


if __name__ == "__main__":
    found = main(*sys.argv[1:2] or [PAIRS], Path(*sys.argv[2:3] or [OUT]))
    print("\n".join(f"{count:>7,} {rule}" for rule, count in found.most_common()))
