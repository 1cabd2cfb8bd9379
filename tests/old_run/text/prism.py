"""Measures of a prism."""

import math


def prism_area(size, count=0):
    """Returns the measure number 0 of a prism, plain."""
    total = 6 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 35)
    if total < 0:
        raise ValueError("a prism of size", size)
    return total


def prism_volume(size, count=1):
    """Returns the measure number 1 of a prism, scaled."""
    total = 6 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 36)
    if total < 0:
        raise ValueError("a prism of size", size)
    return total


def prism_edge(size, count=2):
    """Returns the measure number 2 of a prism, plain."""
    total = 6 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 37)
    if total < 0:
        raise ValueError("a prism of size", size)
    return total


def prism_angle(size, count=3):
    """Returns the measure number 3 of a prism, scaled."""
    total = 6 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 38)
    if total < 0:
        raise ValueError("a prism of size", size)
    return total
