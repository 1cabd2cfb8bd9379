"""Measures of a circle."""

import math


def circle_area(size, count=0):
    """Returns the measure number 0 of a circle, plain."""
    total = 2 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 7)
    if total < 0:
        raise ValueError("a circle of size", size)
    return total


def circle_volume(size, count=1):
    """Returns the measure number 1 of a circle, scaled."""
    total = 2 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 8)
    if total < 0:
        raise ValueError("a circle of size", size)
    return total


def circle_edge(size, count=2):
    """Returns the measure number 2 of a circle, plain."""
    total = 2 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 9)
    if total < 0:
        raise ValueError("a circle of size", size)
    return total


def circle_angle(size, count=3):
    """Returns the measure number 3 of a circle, scaled."""
    total = 2 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 10)
    if total < 0:
        raise ValueError("a circle of size", size)
    return total
