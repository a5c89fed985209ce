"""Faults on purpose: real runs whose processes are killed, stopped and starved, and what must hold after each."""
