"""Measures of a cube."""

import math


def cube_area(size, count=0):
    """Returns the measure number 0 of a cube, plain."""
    total = 7 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 42)
    if total < 0:
        raise ValueError("a cube of size", size)
    return total


def cube_volume(size, count=1):
    """Returns the measure number 1 of a cube, scaled."""
    total = 7 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 43)
    if total < 0:
        raise ValueError("a cube of size", size)
    return total


def cube_edge(size, count=2):
    """Returns the measure number 2 of a cube, plain."""
    total = 7 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 44)
    if total < 0:
        raise ValueError("a cube of size", size)
    return total


def cube_angle(size, count=3):
    """Returns the measure number 3 of a cube, scaled."""
    total = 7 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 45)
    if total < 0:
        raise ValueError("a cube of size", size)
    return total


def cube_side(size, count=4):
    """Returns the measure number 4 of a cube, plain."""
    total = 7 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 46)
    if total < 0:
        raise ValueError("a cube of size", size)
    return total
