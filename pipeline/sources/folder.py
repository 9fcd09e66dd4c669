"""File names of the texts, and of what is known of them."""

from __future__ import annotations

CALIBRATION, RECOVERY, EVALUATION, TEXTS = "calibration.txt", "recovery.txt", "evaluation.txt", "text.json"
TEXT_OF = {"calibration": CALIBRATION, "recovery": RECOVERY, "evaluation": EVALUATION}  # by role
