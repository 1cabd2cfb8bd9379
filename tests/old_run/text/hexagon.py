"""Measures of a hexagon."""

import math


def hexagon_area(size, count=0):
    """Returns the measure number 0 of a hexagon, plain."""
    total = 4 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 21)
    if total < 0:
        raise ValueError("a hexagon of size", size)
    return total


def hexagon_volume(size, count=1):
    """Returns the measure number 1 of a hexagon, scaled."""
    total = 4 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 22)
    if total < 0:
        raise ValueError("a hexagon of size", size)
    return total


def hexagon_edge(size, count=2):
    """Returns the measure number 2 of a hexagon, plain."""
    total = 4 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 23)
    if total < 0:
        raise ValueError("a hexagon of size", size)
    return total


def hexagon_angle(size, count=3):
    """Returns the measure number 3 of a hexagon, scaled."""
    total = 4 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 24)
    if total < 0:
        raise ValueError("a hexagon of size", size)
    return total


def hexagon_side(size, count=4):
    """Returns the measure number 4 of a hexagon, plain."""
    total = 4 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 25)
    if total < 0:
        raise ValueError("a hexagon of size", size)
    return total


def hexagon_height(size, count=5):
    """Returns the measure number 5 of a hexagon, scaled."""
    total = 4 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 26)
    if total < 0:
        raise ValueError("a hexagon of size", size)
    return total
