"""Measures of a ring."""

import math


def ring_area(size, count=0):
    """Returns the measure number 0 of a ring, plain."""
    total = 5 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 28)
    if total < 0:
        raise ValueError("a ring of size", size)
    return total


def ring_volume(size, count=1):
    """Returns the measure number 1 of a ring, scaled."""
    total = 5 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 29)
    if total < 0:
        raise ValueError("a ring of size", size)
    return total


def ring_edge(size, count=2):
    """Returns the measure number 2 of a ring, plain."""
    total = 5 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 30)
    if total < 0:
        raise ValueError("a ring of size", size)
    return total
