"""Latency tables: how long blocks of every size take in a runtime."""
