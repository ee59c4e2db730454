"""Inputs of hostile hands, and what the program answers: `python -m tests.hostile [--markdown] [NAME ...]`."""
