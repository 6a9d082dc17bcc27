"""``python -m gmmcnn``."""

from gmmcnn.cli import main

main()
