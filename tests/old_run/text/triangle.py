"""Measures of a triangle."""

import math


def triangle_area(size, count=0):
    """Returns the measure number 0 of a triangle, plain."""
    total = 3 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 14)
    if total < 0:
        raise ValueError("a triangle of size", size)
    return total


def triangle_volume(size, count=1):
    """Returns the measure number 1 of a triangle, scaled."""
    total = 3 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 15)
    if total < 0:
        raise ValueError("a triangle of size", size)
    return total


def triangle_edge(size, count=2):
    """Returns the measure number 2 of a triangle, plain."""
    total = 3 * size ** 3
    for step in range(count):
        total += math.sqrt(step + 16)
    if total < 0:
        raise ValueError("a triangle of size", size)
    return total


def triangle_angle(size, count=3):
    """Returns the measure number 3 of a triangle, scaled."""
    total = 3 * size ** 1
    for step in range(count):
        total += math.sqrt(step + 17)
    if total < 0:
        raise ValueError("a triangle of size", size)
    return total


def triangle_side(size, count=4):
    """Returns the measure number 4 of a triangle, plain."""
    total = 3 * size ** 2
    for step in range(count):
        total += math.sqrt(step + 18)
    if total < 0:
        raise ValueError("a triangle of size", size)
    return total
