"""Verify a run's certificate from its manifest and shards, with NumPy and the standard library alone.

python examples/verify_certificate.py CERTIFICATE MANIFEST STORE [TOKENIZER]

It shares no code with the engine. Exit code 0: all agrees; 1: something differs.
PROVEN: the order of the samples follows from this manifest, and the digests are those of that order. The shards here
are byte for byte those that were hashed for the certificate.
NOT PROVEN: that a training took place and gave these weights (replay a step, or train again), that the shards come from
the listed sources (build again), and who wrote the certificate (publish its SHA-256).
"""

import hashlib
import json
import math
import sys
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

MASK, U, AT_ONCE = (1 << 64) - 1, np.uint64, 1 << 20  # samples that are computed at a time


def need(holds, words):
    if not holds:
        sys.exit(f"FAILED: {words}")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def derive(*parts):  # the 64-bit key of a permutation, from numbers and names
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(value, key, turn):  # the finalizer of splitmix64, keyed
    bits = value + U((key + (turn + 1) * 0x9E3779B97F4A7C15) & MASK)
    bits = (bits ^ (bits >> U(30))) * U(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> U(27))) * U(0x94D049BB133111EB)
    return bits ^ (bits >> U(31))


def permute(places, size, key):  # a bijection of [0, size): four Feistel rounds on a grid, repeated while outside
    columns, found, outside = math.isqrt(size - 1) + 1, places.astype(U), np.arange(len(places))
    rows = -(-size // columns)
    while len(outside):
        column, row = np.divmod(found[outside], U(rows))
        for turn in range(0, 8, 2):
            column = (column + mix(row, key, turn) % U(columns)) % U(columns)
            row = (row + mix(column, key, turn + 1) % U(rows)) % U(rows)
        found[outside] = column * U(rows) + row
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


class Order:  # of a stream: a permuted row of shards, cut into lanes; each epoch permutes a lane's spans and blocks
    def __init__(self, plan, stream, first_id):
        self.seed, self.name, self.block, self.first_id = plan["seed"], stream["name"], plan["shuffle_block"], first_id
        sizes = np.array([shard["samples"] for shard in stream["shards"]], np.int64)
        self.ends, self.read = np.cumsum(sizes), np.zeros(len(sizes), np.int64)  # samples read of each shard
        row = permute(np.arange(len(sizes)), len(sizes), derive(self.seed, self.name, "shards"))
        self.sizes, self.origins, self.lane = sizes[row], (self.ends - sizes)[row], int(sizes.sum()) // plan["lanes"]

    @lru_cache(4096)  # noqa: B019
    def spans(self, lane, epoch):  # the end of each in the lane, and the shift from there to the stream
        begins = np.cumsum(self.sizes) - self.sizes
        low = np.maximum(begins, lane * self.lane)
        sizes = np.minimum(begins + self.sizes, (lane + 1) * self.lane) - low
        starts, sizes = (self.origins + low - begins)[sizes > 0], sizes[sizes > 0]
        order = permute(np.arange(len(sizes)), len(sizes), derive(self.seed, self.name, "spans", lane, epoch))
        ends = np.cumsum(sizes[order])
        return ends, starts[order] - (ends - sizes[order])

    def ids(self, lane, cursors):  # the sample ids at the cursors of a lane, which rise
        found, blocks = np.empty_like(cursors), -(-self.lane // self.block)  # blocks of an epoch
        numbers = cursors // self.lane * blocks + cursors % self.lane // self.block
        for number in np.unique(numbers).tolist():
            (epoch, block), chosen = divmod(number, blocks), slice(*np.searchsorted(numbers, [number, number + 1]))
            first, key = block * self.block, derive(self.seed, self.name, "block", lane, epoch, block)
            places = permute(cursors[chosen] % self.lane - first, min(self.block, self.lane - first), key) + first
            ends, shifts = self.spans(lane, epoch)
            found[chosen] = places + shifts[np.searchsorted(ends, places, "right")]
        self.read += np.bincount(np.searchsorted(self.ends, found, "right"), minlength=len(self.ends))
        return self.first_id + found


def deal(stage, first, count):  # yields each stream, those of some slots of a lane that it fills, and its first cursor
    entries = {}
    for name, quota in sorted(stage["samples"].items()):
        if quota:
            entries.setdefault(name.split("/")[0], []).append((quota, name))
    parts = [(sum(q for q, _ in part), sorted(part, key=lambda one: -one[0])) for part in entries.values()]
    groups = [(parts, np.arange(count), first)]  # with the slots of each, and what it has supplied before them
    while groups:
        group, slots, begin = groups.pop()
        if len(group) > 1 and len(slots):
            sums = np.array([*accumulate(quota for quota, _ in group)])
            cut = int(np.abs(2 * sums[:-1] - sums[-1]).argmin()) + 1 if stage.get("balanced") else 1
            left, total = int(sums[cut - 1]), int(sums[-1])
            exact = object if (begin + len(slots)) * total >= 2**63 else np.int64  # Python's integers are slow
            ahead = begin + np.arange(len(slots) + 1).astype(exact)
            passed_on = ahead * (total - left) // total  # to the right half; the left one rounds up
            right, start = np.diff(passed_on) > 0, int(passed_on[0])
            groups += [(group[cut:], slots[right], start), (group[:cut], slots[~right], begin - start)]
        elif len(slots) and isinstance(group[0][1], list):
            groups.append((group[0][1], slots, begin))
        elif len(slots):
            yield group[0][1], slots, begin


def batches(plan, orders, steps):  # yields the sample ids of some steps at a time, shape (steps, batch_size)
    lanes, width, start, drawn = plan["lanes"], plan["batch_size"] // plan["lanes"], 0, dict.fromkeys(orders, 0)
    for stage in plan["stages"]:
        length, before = stage["steps"] if stage["cut"] is None else stage["cut"], dict(drawn)
        for begin in range(0, end := min(length, steps - start), at_once := max(AT_ONCE // plan["batch_size"], 1)):
            count = min(at_once, end - begin)
            ids = np.empty((lanes, count * width), np.int64)
            for name, slots, first in deal(stage, begin * width, count * width):
                cursors = before[name] + first + np.arange(len(slots))
                for lane in range(lanes):
                    ids[lane, slots] = orders[name].ids(lane, cursors)
                drawn[name] = int(cursors[-1]) + 1
            yield ids.reshape(lanes, count, width).swapaxes(0, 1).reshape(count, -1)
        start += length


def verify(certificate, manifest, store, tokenizer=None):
    content, claim = Path(manifest).read_bytes(), json.loads(Path(certificate).read_bytes())
    plan, seal, form = json.loads(content), claim.pop("sha256"), {"sort_keys": True, "separators": (",", ":")}
    need(sha256(json.dumps(claim, **form).encode()) == seal, "the certificate has changed since it was written")
    known = claim["version"] == 1 and plan["version"] in (2, 3)
    need(known, "this program reads version 1 of certificates, 2 and 3 of manifests")
    need(sha256(content) == claim["plan_id"], f"{manifest} is not the plan of the certificate")
    keys = ("tokenizer_sha256", "seq_len", "batch_size", "parent")
    need(all(plan[key] == claim[key] for key in keys), f"one of {', '.join(keys)} is not the plan's")
    need(not tokenizer or sha256(Path(tokenizer).read_bytes()) == plan["tokenizer_sha256"], "TOKENIZER is another")
    firsts = np.cumsum([0, *(stream["samples"] for stream in plan["streams"])]).tolist()
    orders = {s["name"]: Order(plan, s, first) for s, first in zip(plan["streams"], firsts, strict=False)}
    digests, skipped = [""], {int(step) for step in claim["skipped"]}  # digests after each number of steps
    for step, row in enumerate(row for ids in batches(plan, orders, claim["steps"]) for row in ids.astype("<i8")):
        text = bytes.fromhex(digests[-1]) + step.to_bytes(8, "little") + row.tobytes()
        digests.append(sha256(text + b"skipped" * (step in skipped)))
    need(max(skipped, default=0) < claim["steps"] == len(digests) - 1, "its steps are not those of the plan")
    for step, digest in [*((p["step"], p["digest"]) for p in claim["checkpoints"]), (claim["steps"], claim["digest"])]:
        need(0 < step < len(digests) and digests[step] == digest, f"the digest after {step} steps is another")
    drawn, read, keys = [], {}, ("name", "remote", "index_sha256", "drawn")
    for stream in plan["streams"]:
        counts = orders[stream["name"]].read.tolist()
        drawn.append([stream["name"], stream["remote"], stream["index_sha256"], sum(counts)])
        files = [shard["zip"] or shard["raw"] for shard, count in zip(stream["shards"], counts, strict=True) if count]
        read |= {f"{stream['remote']}/{file['basename']}": file["hashes"] for file in files}
    listed = [[stream[key] for key in keys] for stream in claim["streams"]], claim["shards"].keys()
    need(([row for row in drawn if row[-1]], read.keys()) == listed, "the plan reads other streams or shards")
    for name, hashes in read.items():
        found = sha256((Path(store) / name).read_bytes())
        need(claim["shards"][name] == found == hashes.get("sha256", found), f"{name} is not the shard that was hashed")
    print(f"{claim['run']}: {claim['steps']:,} steps of plan {claim['plan_id'][:12]}, {len(skipped):,} of them skipped")
    print(f"{len(claim['checkpoints']):,} checkpoints and the end have the plan's digests; the last is {digest}")
    print(f"{len(read):,} shards are those of the certificate. Tokenizer: {tokenizer or 'not given'}")
    print(__doc__[__doc__.index("PROVEN") :].rstrip())


if __name__ == "__main__":
    try:
        verify(*sys.argv[1:])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        need(False, f"a file cannot be read, or does not hold what it should: {type(error).__name__} {error}")
