"""The runtimes that are timed, each opened in one way."""
