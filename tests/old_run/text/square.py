"""Measures of a square."""

import math


def square_area(size, count=0):
    """Returns the measure number 0 of a square, plain."""
    total = 1 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 0)
    if total < 0:
        raise ValueError("a square of size", size)
    return total


def square_volume(size, count=1):
    """Returns the measure number 1 of a square, scaled."""
    total = 1 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 1)
    if total < 0:
        raise ValueError("a square of size", size)
    return total


def square_edge(size, count=2):
    """Returns the measure number 2 of a square, plain."""
    total = 1 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 2)
    if total < 0:
        raise ValueError("a square of size", size)
    return total
