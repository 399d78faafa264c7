"""How a split is divided into shards."""


def divide(samples: int, size: int, shard_bytes: int) -> list[range]:
    """Runs of neighbouring samples, one a shard, of equally many samples and about ``shard_bytes``.

    Samples are shuffled, so as many have about as many bytes. The borders do not depend on the size of any
    single one: when a file is repaired, all other shards stay as they are.

    Args:
        samples: of the split, at least 1.
        size: of all of them together, bytes.
    """
    count = min(max(1, round(size / shard_bytes)), samples)
    return [range(number * samples // count, (number + 1) * samples // count) for number in range(count)]
