"""Servers and independent clients under load."""
