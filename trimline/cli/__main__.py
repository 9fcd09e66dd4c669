"""``python -m trimline.cli``: the command, where its script is not installed."""

from trimline.cli.app import main

main()
