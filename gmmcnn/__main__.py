"""``python -m gmmcnn``."""

from gmmcnn.cli import main

if __name__ == "__main__":  # and not in the processes that the jobs of a sweep are
    main()
