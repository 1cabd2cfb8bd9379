"""Measures of a cone."""

import math


def cone_area(size, count=0):
    """Returns the measure number 0 of a cone, plain."""
    total = 8 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 49)
    if total < 0:
        raise ValueError("a cone of size", size)
    return total


def cone_volume(size, count=1):
    """Returns the measure number 1 of a cone, scaled."""
    total = 8 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 50)
    if total < 0:
        raise ValueError("a cone of size", size)
    return total


def cone_edge(size, count=2):
    """Returns the measure number 2 of a cone, plain."""
    total = 8 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 51)
    if total < 0:
        raise ValueError("a cone of size", size)
    return total


def cone_angle(size, count=3):
    """Returns the measure number 3 of a cone, scaled."""
    total = 8 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 52)
    if total < 0:
        raise ValueError("a cone of size", size)
    return total


def cone_side(size, count=4):
    """Returns the measure number 4 of a cone, plain."""
    total = 8 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 53)
    if total < 0:
        raise ValueError("a cone of size", size)
    return total


def cone_height(size, count=5):
    """Returns the measure number 5 of a cone, scaled."""
    total = 8 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 54)
    if total < 0:
        raise ValueError("a cone of size", size)
    return total
