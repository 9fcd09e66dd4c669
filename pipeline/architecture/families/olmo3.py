"""OLMo 3: OLMo 2 with a window in three blocks of four."""

from dataclasses import replace

from pipeline.architecture.families.olmo2 import OLMO2

OLMO3 = replace(OLMO2, model_type="olmo3", class_prefix="Olmo3")
