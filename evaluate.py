#!/usr/bin/env python3
"""Score a student beside its teacher: `python evaluate.py --humaneval`. See `evaluation/run.py`."""

if __name__ == "__main__":
    import sys

    from tutelage.evaluation.run import main

    sys.exit(main())
