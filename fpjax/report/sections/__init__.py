"""The sections of the page, in order. A new one is a template, a `Section` and its place here."""

from .models import DETECTORS, GLOSSARY, METHOD, PICTURES, THREAT, TRAINING
from .studies import BOUND, CANARIES, COUNTING, EVIDENCE, LIKELIHOOD, SEARCH

SECTIONS = (
    EVIDENCE, SEARCH, COUNTING, CANARIES, DETECTORS, LIKELIHOOD, BOUND, PICTURES, TRAINING, METHOD, THREAT, GLOSSARY,
)  # fmt: skip
