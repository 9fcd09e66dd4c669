"""``python -m trimline.cli``: the command, where its script is not installed."""

from trimline.cli.app import main

if __name__ == "__main__":  # a process that multiprocessing spawns imports this file under another name
    main()
